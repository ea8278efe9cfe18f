//! Verdicts for fragments.

use super::addr::Addr;

/// [`Fragment::verdict`]: fragments of the datagram pass.
pub const FRAGMENT_PASS: u32 = 0;

/// [`Fragment::verdict`]: fragments of the datagram are rewritten.
pub const FRAGMENT_REWRITE: u32 = 1;

/// [`Fragment::verdict`]: fragments of the datagram are dropped.
pub const FRAGMENT_DROP: u32 = 2;

/// The verdict for the fragments of one datagram. Key: a [`Tuple`](super::Tuple) whose ids hold the
/// upper and the lower half of the IP identification.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The address to write into the packet.
    pub addr: Addr,
    /// One of `FRAGMENT_*`.
    pub verdict: u32,
    /// The IPv4 identification to write, or `packet::KEEP_IP_ID`.
    pub new_ip_id: u32,
    /// The time of the last fragment, in ticks.
    pub last_seen: u32,
    /// Padding, always zero.
    pub pad: u32,
}
