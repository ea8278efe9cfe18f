//! Mappings that programs end themselves, for the NAT log and for those who listen to events.

use super::{Mapping, Traffic, Tuple};

/// Bytes of the ring buffer `ended`, a power of two: some 6,200 mappings.
pub const ENDED_BYTES: usize = 1 << 20;

/// [`Ended::why`]: it gave way to another flow, because there was no room or no other port.
pub const ENDED_FOR_ROOM: u32 = 1;

/// [`Ended::why`]: the flow leaves by another uplink, or its address is gone.
pub const ENDED_MOVED: u32 = 2;

/// [`Ended::why`]: its ports have begun another connection, which is not translated.
pub const ENDED_UNTRANSLATED: u32 = 3;

/// [`Ended::why`]: the node itself uses its wire tuple.
pub const ENDED_FOR_NODE: u32 = 4;

/// A mapping that a program has ended while [`super::SETTING_LOG_ENDS`] or [`super::EVENTS_END`] is set: an
/// entry of `ended`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The original tuple.
    pub tuple: Tuple,
    /// The original half as it was.
    pub original: Mapping,
    /// The reply half as it was; an original half's copy without traffic where there was none.
    pub reply: Mapping,
    /// Traffic that was carried over from the two halves.
    pub carried: [Traffic; 2],
    /// The time, in ticks.
    pub at: u32,
    /// `ENDED_*`.
    pub why: u32,
}
