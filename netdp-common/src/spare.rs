//! Which mappings make room for new ones where the tables are nearly full.

use crate::abi::Mapping;
use crate::conntrack::{TcpState, tcp_state, ticks};
use crate::tuple::{Tuple, proto};

/// Which live mappings make room, the first ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    /// Both sides have closed, a while ago.
    Closed,
    /// Nothing has come back for a while.
    Unanswered,
    /// Closed just now: what was lost may be sent once more.
    Closing,
    /// The answer may be under way.
    Asking,
}

/// Seconds of silence after which nothing is sent again for a closed connection:
/// a few retransmission timeouts (RFC 6298 2.4: 1 s at least, 0.2 s in Linux).
const CLOSED_SECONDS: u64 = 1;
/// Seconds after which nobody waits for an answer any more: what resolvers wait.
const UNANSWERED_SECONDS: u64 = 5;

/// Whether and how willingly a mapping that has been idle for so many ticks makes
/// room; `None`: never.
#[must_use]
pub fn spare(tuple: &Tuple, original: &Mapping, reply: &Mapping, idle: u32) -> Option<Spare> {
    let seen = (original.tcp_seen, reply.tcp_seen);
    class(tuple.proto, seen, reply.packets, idle)
}

/// The same from what decides it: what both directions of a TCP connection were `seen` to
/// send, and how many packets came back.
#[inline(always)]
#[must_use]
pub const fn class(protocol: u32, seen: (u32, u32), replies: u32, idle: u32) -> Option<Spare> {
    let idle = idle as u64;
    let closed = if idle >= ticks(CLOSED_SECONDS) {
        Spare::Closed
    } else {
        Spare::Closing
    };
    let unanswered = if idle >= ticks(UNANSWERED_SECONDS) {
        Spare::Unanswered
    } else {
        Spare::Asking
    };
    if protocol == proto::TCP {
        return match tcp_state(seen.0, seen.1) {
            TcpState::Closed | TcpState::TimeWait => Some(closed),
            TcpState::SynSent | TcpState::Unreplied => Some(unanswered),
            TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => None,
        };
    }
    if replies == 0 { Some(unanswered) } else { None }
}

#[cfg(test)]
mod tests {
    use super::{Spare, spare};
    use crate::abi::Mapping;
    use crate::addr::Addr;
    use crate::conntrack::{SEEN_FIN, SEEN_SYN, ticks};
    use crate::tuple::{Tuple, proto};

    fn half(tcp_seen: u32, packets: u32) -> Mapping {
        Mapping {
            addr: Addr::from_v4([10, 0, 0, 1]),
            id: 1,
            flags: 0,
            last_seen: 0,
            created: 0,
            tcp_ack: 0,
            tcp_seen,
            packets,
        }
    }

    #[test]
    fn what_may_still_have_a_packet_under_way_is_spared_last() {
        let addr = Addr::from_v4([10, 0, 0, 2]);
        let seconds = |seconds| u32::try_from(ticks(seconds)).unwrap();
        let ask = |protocol, original, reply: Mapping, idle| {
            let tuple = Tuple::new(addr, addr, 1, 2, protocol);
            spare(&tuple, &half(original, 1), &reply, idle)
        };
        let udp = |packets, idle| ask(proto::UDP, 0, half(0, packets), idle);
        assert_eq!(udp(0, seconds(4)), Some(Spare::Asking));
        assert_eq!(udp(0, seconds(6)), Some(Spare::Unanswered));
        assert_eq!(udp(1, seconds(1000)), None);
        let syn = |idle| ask(proto::TCP, SEEN_SYN, half(0, 0), idle);
        assert_eq!(syn(0), Some(Spare::Asking));
        assert_eq!(syn(seconds(6)), Some(Spare::Unanswered));
        let both = SEEN_SYN | SEEN_FIN;
        let closing = |idle| ask(proto::TCP, both, half(both, 3), idle);
        assert_eq!(closing(0), Some(Spare::Closing));
        assert_eq!(closing(seconds(2)), Some(Spare::Closed));
        let open = ask(proto::TCP, SEEN_SYN, half(SEEN_SYN, 3), seconds(5000));
        assert_eq!(open, None, "established");
        assert!(Spare::Closed < Spare::Unanswered && Spare::Unanswered < Spare::Closing);
    }
}
