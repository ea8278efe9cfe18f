//! Flows that keep the pod's address.

/// A flow that keeps the pod's address although its peer is masqueraded: it began outside, to an
/// address behind the node, or an earlier policy bypassed it. Holds flows that the pod has not
/// answered yet, closed flows, and flows whose pod or peer has used up its share; all others are in
/// [`Live`]. Key: the tuple of the pod's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Last packet in either direction, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which the record expires; 0 stands for
    /// [`crate::flow::INBOUND_SECONDS`], the maximum for [`crate::flow::asked_seconds`].
    pub limit: u32,
}

/// [`Live::seen`]: the pod has sent a FIN.
pub const LIVE_FIN_OUT: u32 = 1;

/// [`Live::seen`]: the peer has sent a FIN.
pub const LIVE_FIN_IN: u32 = 2;

/// [`Live::seen`]: the position of the lower 16 bits of the index of the interface by which the
/// pod's last packet came.
pub const LIVE_ORIGIN_SHIFT: u32 = 16;

/// A flow as [`Inbound`] that the pod has answered. Same key. Value of `inbound_live`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Last packet in either direction, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which it has ended; 0: by its protocol and state.
    pub limit: u32,
    /// `LIVE_*` bits and the interface.
    pub seen: u32,
    /// Last TCP acknowledgement number of the pod.
    pub ack: u32,
}
