//! The decision about a packet, and its outcome.

use crate::layout::DropReason;

/// A verdict. One word (the drop reasons leave niches for the other variants), because a BPF
/// function returns a single register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass the packet unmodified.
    Pass,
    /// Rewrite one end of the packet to [`crate::packet::Packet::new`].
    Rewrite,
    /// Rewrite an ICMP error: the outer header and the packet inside.
    RewriteError,
    /// Rewrite only the packet inside an ICMP error that the node itself sends.
    RewriteInner,
    /// Queue the fragment until the first fragment of its datagram arrives; pass it if there is no
    /// room.
    Hold,
    /// Drop the packet for this reason: it must not leave untranslated.
    Drop(DropReason),
}

const _: () = assert!(size_of::<Verdict>() == 4 && size_of::<Option<Verdict>>() == 4);

/// The outcome for a packet, by the number of its TC action (`TC_ACT_*`,
/// include/uapi/linux/pkt_cls.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Outcome {
    /// The packet goes on, and other programs on the hook also run: `TC_ACT_UNSPEC`, which is the
    /// number of `TCX_NEXT`, too.
    Pass = -1,
    /// The packet is dropped, or queued, and no further program runs: `TC_ACT_SHOT`.
    Drop = 2,
    /// The packet goes to another interface: `TC_ACT_REDIRECT`.
    Redirect = 7,
}

/// The kernel failed to rewrite a packet, which may be half written: it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;
