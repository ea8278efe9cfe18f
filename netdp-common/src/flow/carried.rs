//! The traffic that a mapping has carried.

use super::clock::{age, ticks32};
use super::closing::Closing;
use crate::layout::{Half, Mapping, Tuple, proto};

/// The traffic of a mapping so far, as far as its timeout depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// IP protocol number.
    pub protocol: u32,
    /// The peer's port, host byte order, where the protocol has ports.
    pub peer_port: u16,
    /// True if a connection that both sides have closed had both FINs acknowledged.
    pub acknowledged: bool,
    /// `SEEN_*` bits of the original direction.
    pub original: u32,
    /// `SEEN_*` bits of the reply direction.
    pub reply: u32,
    /// Packets of the original direction (wrapping).
    pub packets: u32,
    /// Packets of the reply direction (wrapping).
    pub replies: u32,
    /// Ticks from the first packet to the last one.
    pub lasted: u32,
}

/// Maximum duration of a request and its reply, in ticks; longer traffic is a stream (`stream_ts`
/// in net/netfilter/nf_conntrack_proto_udp.c, Linux 6.12).
const EXCHANGE_TICKS: u32 = ticks32(2);

/// Ports below this one are well-known (RFC 6335 6).
const WELL_KNOWN: u16 = 1024;

impl Carried {
    /// Returns the traffic of a mapping; without a reply half there was no reply.
    #[must_use]
    pub const fn by(tuple: &Tuple, original: &Mapping, reply: Option<&Mapping>) -> Self {
        let (seen, replies, reply_at, acknowledged) = match reply {
            Some(reply) => {
                let closing = Closing::of(reply);
                let acknowledged = closing.is_over(original.tcp_ack, reply.tcp_ack);
                (
                    reply.seen(),
                    reply.packets(Half::Reply),
                    reply.last_seen,
                    acknowledged,
                )
            }
            None => (0, 0, original.last_seen, false),
        };
        let begun = original.created;
        Self {
            protocol: tuple.proto,
            peer_port: tuple.dst_id,
            acknowledged,
            original: original.seen(),
            reply: seen,
            packets: original.packets(Half::Original),
            replies,
            lasted: lasted(begun, original.last_seen, reply_at),
        }
    }

    /// Reports whether a reply came, and nothing since, so that it is not a stream.
    #[inline(always)]
    #[must_use]
    pub const fn is_exchange(&self) -> bool {
        let asks = matches!(
            self.protocol,
            proto::UDP | proto::UDP_LITE | proto::ICMP | proto::ICMPV6
        );
        asks && self.replies != 0 && self.lasted <= EXCHANGE_TICKS
    }

    /// Reports whether it was a request to a well-known UDP port and its reply, each sent at most
    /// twice, and nothing since: such flows may time out early (RFC 4787 REQ-5 a).
    #[inline(always)]
    #[must_use]
    pub const fn is_lookup(&self) -> bool {
        self.protocol == proto::UDP
            && self.peer_port < WELL_KNOWN
            && self.packets <= 2
            && self.replies <= 2
            && self.is_exchange()
    }
}

/// Returns the ticks from the beginning of a mapping to the later of the two moments.
#[inline(always)]
#[must_use]
pub const fn lasted(begun: u32, original_seen: u32, reply_seen: u32) -> u32 {
    let (original, reply) = (age(original_seen, begun), age(reply_seen, begun));
    if reply > original { reply } else { original }
}
