//! The mappings that are evicted if the tables are nearly full, or if no port is left towards a
//! destination.

use super::carried::Carried;
use super::clock::ticks32;
use super::tcp::{TcpState, tcp_state};
use super::timeouts::CLOSED_SECONDS;
use crate::layout::proto;

/// The eviction class of a mapping, in the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvictionClass {
    /// The connection closed a while ago.
    Closed,
    /// A request was answered a while ago, and no packet came after the reply.
    Answered,
    /// There has been no reply for a while.
    Unanswered,
    /// The connection closed just now: lost segments may still be retransmitted.
    Closing,
    /// The reply may be in flight.
    Asking,
    /// Both sides have closed, but a FIN may not have arrived: not evicted yet.
    LastAck,
}

/// Ticks of silence after which nothing is retransmitted for a closed connection: a few
/// retransmission timeouts (RFC 6298 2.4: 1 s at least, 0.2 s in Linux).
pub const CLOSED_TICKS: u32 = ticks32(1);

/// Ticks after which a reply is no longer expected: the timeout of resolvers.
pub const UNANSWERED_TICKS: u32 = ticks32(5);

/// Ticks after which a request and its reply are over (netfilter's timeout for UDP that is not a
/// stream: `UDP_CT_UNREPLIED`, net/netfilter/nf_conntrack_proto_udp.c, Linux 6.12).
pub const ANSWERED_TICKS: u32 = ticks32(30);

/// Ticks after which a UDP stream is no longer one (`UDP_CT_REPLIED` there; the minimum of RFC 4787
/// REQ-5).
pub const STREAM_TICKS: u32 = ticks32(120);

/// Returns the eviction class of a mapping that has been idle for that many ticks; `None`: never
/// evict.
#[inline(always)]
#[must_use]
pub const fn eviction_class(carried: &Carried, idle: u32) -> Option<EvictionClass> {
    let closed = if idle >= CLOSED_TICKS {
        EvictionClass::Closed
    } else {
        EvictionClass::Closing
    };
    let unanswered = if idle >= UNANSWERED_TICKS {
        EvictionClass::Unanswered
    } else {
        EvictionClass::Asking
    };
    if carried.protocol == proto::TCP {
        return match tcp_state(carried.original, carried.reply) {
            // The time during which a FIN is retransmitted.
            TcpState::TimeWait if !carried.acknowledged && idle < ticks32(CLOSED_SECONDS) => {
                Some(EvictionClass::LastAck)
            }
            TcpState::Closed | TcpState::TimeWait => Some(closed),
            TcpState::SynSent | TcpState::Unreplied => Some(unanswered),
            TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => None,
        };
    }
    if carried.replies == 0 {
        return Some(unanswered);
    }
    let answered = if carried.is_lookup() {
        UNANSWERED_TICKS
    } else {
        ANSWERED_TICKS
    };
    if carried.is_exchange() && idle >= answered {
        Some(EvictionClass::Answered)
    } else {
        None
    }
}

/// Reports whether a UDP stream has been idle for so long that its port may be given to another
/// flow if no other is left.
#[inline(always)]
#[must_use]
pub const fn is_silent_stream(carried: &Carried, idle: u32) -> bool {
    carried.protocol == proto::UDP && carried.replies != 0 && idle >= STREAM_TICKS
}

/// Reports whether the port of a connection that has closed, with both FINs acknowledged or long
/// ago, may be used for another connection to the same peer, whatever its sequence number: if a RST
/// has ended it and nothing is in flight any more, or once the peer's TIME-WAIT is over
/// (`TCP_TIMEWAIT_LEN`, include/net/tcp.h, Linux 6.12).
#[inline(always)]
#[must_use]
pub const fn is_free_again(reset: bool, idle: u32) -> bool {
    reset && idle >= CLOSED_TICKS || idle >= ticks32(CLOSED_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::super::carried::Carried;
    use super::super::clock::ticks32;
    use super::super::tcp::{SEEN_FIN, SEEN_SYN};
    use super::{EvictionClass, eviction_class, is_silent_stream};
    use crate::layout::proto;

    const TCP: Carried = Carried {
        protocol: proto::TCP,
        peer_port: 443,
        acknowledged: false,
        original: SEEN_SYN,
        reply: 0,
        packets: 1,
        replies: 0,
        lasted: 0,
    };

    fn udp(peer_port: u16, replies: u32, lasted: u64) -> Carried {
        Carried {
            protocol: proto::UDP,
            peer_port,
            packets: replies.max(1),
            replies,
            lasted: ticks32(lasted),
            original: 0,
            ..TCP
        }
    }

    #[test]
    fn what_may_still_have_a_packet_under_way_is_spared_last() {
        assert_eq!(
            eviction_class(&udp(53, 0, 0), ticks32(4)),
            Some(EvictionClass::Asking)
        );
        assert_eq!(
            eviction_class(&udp(53, 0, 0), ticks32(6)),
            Some(EvictionClass::Unanswered)
        );
        assert_eq!(eviction_class(&TCP, 0), Some(EvictionClass::Asking));
        assert_eq!(
            eviction_class(&TCP, ticks32(6)),
            Some(EvictionClass::Unanswered)
        );
        let last_ack = Carried {
            original: SEEN_SYN | SEEN_FIN,
            reply: SEEN_SYN | SEEN_FIN,
            replies: 3,
            ..TCP
        };
        assert_eq!(eviction_class(&last_ack, 0), Some(EvictionClass::LastAck));
        assert_eq!(
            eviction_class(&last_ack, ticks32(59)),
            Some(EvictionClass::LastAck)
        );
        assert_eq!(
            eviction_class(&last_ack, ticks32(60)),
            Some(EvictionClass::Closed)
        );
        let both = Carried {
            acknowledged: true,
            original: SEEN_SYN | SEEN_FIN,
            reply: SEEN_SYN | SEEN_FIN,
            replies: 3,
            ..TCP
        };
        assert_eq!(eviction_class(&both, 0), Some(EvictionClass::Closing));
        assert_eq!(
            eviction_class(&both, ticks32(2)),
            Some(EvictionClass::Closed)
        );
        let open = Carried {
            reply: SEEN_SYN,
            replies: 3,
            ..TCP
        };
        assert_eq!(eviction_class(&open, ticks32(5000)), None, "established");
        assert!(
            EvictionClass::Closed < EvictionClass::Answered
                && EvictionClass::Answered < EvictionClass::Unanswered
        );
        assert!(
            EvictionClass::Unanswered < EvictionClass::Closing
                && EvictionClass::Asking < EvictionClass::LastAck
        );
    }

    #[test]
    fn an_answered_question_makes_room_and_a_stream_does_not() {
        assert_eq!(
            eviction_class(&udp(53, 1, 1), ticks32(4)),
            None,
            "asked once more"
        );
        assert_eq!(
            eviction_class(&udp(53, 1, 1), ticks32(5)),
            Some(EvictionClass::Answered)
        );
        assert_eq!(
            eviction_class(&udp(443, 3, 1), ticks32(29)),
            None,
            "a handshake"
        );
        assert_eq!(
            eviction_class(&udp(443, 3, 1), ticks32(30)),
            Some(EvictionClass::Answered)
        );
        assert_eq!(eviction_class(&udp(5353, 1, 1), ticks32(29)), None);
        assert_eq!(
            eviction_class(&udp(5353, 1, 1), ticks32(30)),
            Some(EvictionClass::Answered)
        );
        assert_eq!(
            eviction_class(&udp(53, 9, 3), ticks32(1000)),
            None,
            "a stream"
        );
        assert!(!is_silent_stream(&udp(53, 9, 3), ticks32(119)));
        assert!(is_silent_stream(&udp(53, 9, 3), ticks32(120)));
        assert!(!is_silent_stream(&udp(53, 0, 3), ticks32(120)));
        let echo = Carried {
            protocol: proto::ICMP,
            ..udp(0, 1, 0)
        };
        assert_eq!(eviction_class(&echo, ticks32(29)), None);
        assert_eq!(
            eviction_class(&echo, ticks32(30)),
            Some(EvictionClass::Answered)
        );
        let tunnel = Carried {
            protocol: 47,
            ..udp(0, 1, 0)
        };
        assert_eq!(
            eviction_class(&tunnel, ticks32(500)),
            None,
            "it has no other port"
        );
    }
}
