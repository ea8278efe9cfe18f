//! The scratch of one decision.

use super::claim::Claim;
use super::evict::Recycling;
use crate::packet::{Inner, Packet};
use crate::slot::Key;

/// The scratch of one decision: the current packet and working memory. All-zero bytes are a valid
/// value: the datapath keeps one for each CPU in a map, because the 512-byte stack has no room for
/// it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch {
    /// The packet to decide about.
    pub pkt: Packet,
    /// The packet inside `pkt`, if that is an ICMP error.
    pub inner: Inner,
    pub(super) claim: Claim,
    pub(super) recycling: Recycling,
    /// The key of the source of a packet that may begin a mapping.
    pub(super) source: Key,
}

impl Scratch {
    /// The initial value, before the first packet.
    pub const EMPTY: Self = Self {
        pkt: Packet::EMPTY,
        inner: Inner::EMPTY,
        claim: Claim::EMPTY,
        recycling: Recycling::EMPTY,
        source: Key::NONE,
    };
}
