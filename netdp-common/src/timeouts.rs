//! Timeouts of mappings: idle times by protocol, state, and traffic.

use crate::abi::Mapping;
use crate::conntrack::{TcpState, age, tcp_state, ticks32};
use crate::tuple::{Tuple, proto};

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
                let closing = reply.closing();
                let acknowledged = closing.is_over(original.tcp_ack, reply.tcp_ack);
                (reply.seen(), reply.packets, reply.last_seen, acknowledged)
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
            packets: original.packets,
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

/// Idle times in seconds after which a mapping ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before it is established (RFC 5382 REQ-5: at least 4 minutes).
    pub tcp_opening: u64,
    /// TCP established (RFC 5382 REQ-5: at least 2 h 4 min; netfilter: 5 days).
    pub tcp_established: u64,
    /// TCP picked up mid-stream, before a reply (netfilter: 300).
    pub tcp_unreplied: u64,
    /// TCP with one side closed. The time that a transfer may take: RFC 5382's minimum for
    /// established connections.
    pub tcp_half_closed: u64,
    /// TCP after both FINs or a RST (RFC 7857 2.1 and 2.2: 4 minutes).
    pub tcp_closing: u64,
    /// UDP before a reply (RFC 4787 REQ-5: at least 2 minutes).
    pub udp_unreplied: u64,
    /// UDP with replies (RFC 4787 REQ-5: 5 minutes recommended).
    pub udp_replied: u64,
    /// A UDP request to a port below 1024 and its reply (RFC 4787 REQ-5: at least 2 minutes, less
    /// for such ports). It does not shorten the interval of sweeps below that of the other
    /// timeouts: the next sweep that is due ends the mapping.
    pub udp_lookup: u64,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: u64,
    /// Any other protocol (netfilter: 600).
    pub generic: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: 240,
            tcp_established: 432_000,
            tcp_unreplied: 300,
            tcp_half_closed: 7_440,
            tcp_closing: 240,
            udp_unreplied: 120,
            udp_replied: 300,
            udp_lookup: 120,
            icmp: 60,
            generic: 600,
        }
    }
}

impl Timeouts {
    /// Returns the shortest of the timeouts that determine the interval of sweeps, in seconds.
    #[must_use]
    pub fn shortest(&self) -> u64 {
        let Self {
            tcp_opening,
            tcp_established,
            tcp_unreplied,
            tcp_half_closed,
            tcp_closing,
            udp_unreplied,
            udp_replied,
            udp_lookup: _,
            icmp,
            generic,
        } = *self;
        [
            tcp_opening,
            tcp_established,
            tcp_unreplied,
            tcp_half_closed,
            tcp_closing,
            udp_unreplied,
            udp_replied,
            icmp,
            generic,
        ]
        .into_iter()
        .fold(u64::MAX, u64::min)
    }

    /// Returns the shortest of this protocol's timeouts, in seconds.
    #[must_use]
    pub fn shortest_of(&self, protocol: u32) -> u64 {
        match protocol {
            proto::TCP => self
                .tcp_opening
                .min(self.tcp_established)
                .min(self.tcp_unreplied)
                .min(self.tcp_half_closed)
                .min(self.tcp_closing),
            proto::UDP => self.udp_unreplied.min(self.udp_replied),
            proto::ICMP | proto::ICMPV6 => self.icmp,
            _ => self.generic,
        }
    }

    /// Returns the shortest timeout in seconds that a mapping can get instead of a longer one, by a
    /// packet that changes its state: TCP that closes, UDP that is answered. A mapping with a
    /// longer remaining time lasts for at least this long, regardless of the packets that come.
    #[must_use]
    pub fn shortest_renewed(&self) -> u64 {
        self.shortest_of(proto::TCP).min(self.udp_replied)
    }

    /// Returns the timeout of a mapping in seconds, from its traffic.
    #[must_use]
    pub const fn of(&self, carried: &Carried) -> u64 {
        match carried.protocol {
            proto::TCP => match tcp_state(carried.original, carried.reply) {
                TcpState::SynSent | TcpState::SynReceived => self.tcp_opening,
                TcpState::Established => self.tcp_established,
                TcpState::Unreplied => self.tcp_unreplied,
                TcpState::HalfClosed => self.tcp_half_closed,
                TcpState::TimeWait | TcpState::Closed => self.tcp_closing,
            },
            proto::UDP if carried.replies == 0 => self.udp_unreplied,
            proto::UDP if carried.is_lookup() => self.udp_lookup,
            proto::UDP => self.udp_replied,
            proto::ICMP | proto::ICMPV6 => self.icmp,
            _ => self.generic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Carried, Timeouts};
    use crate::conntrack::{SEEN_DATA, ticks32};
    use crate::tuple::proto;

    #[test]
    fn mid_stream_is_short_until_answered() {
        let t = Timeouts::default();
        let mut carried = Carried {
            protocol: proto::TCP,
            peer_port: 80,
            acknowledged: false,
            original: SEEN_DATA,
            reply: 0,
            packets: 1,
            replies: 0,
            lasted: 0,
        };
        assert_eq!(t.of(&carried), t.tcp_unreplied);
        carried.reply = SEEN_DATA;
        carried.replies = 1;
        assert_eq!(t.of(&carried), t.tcp_established);
    }

    #[test]
    fn a_question_to_a_well_known_port_ends_soon_after_its_answer() {
        let t = Timeouts::default();
        let asked = |protocol, peer_port, replies, lasted| {
            t.of(&Carried {
                protocol,
                peer_port,
                acknowledged: false,
                original: 0,
                reply: 0,
                packets: replies,
                replies,
                lasted: ticks32(lasted),
            })
        };
        assert_eq!(asked(proto::UDP, 53, 1, 0), t.udp_lookup);
        assert_eq!(asked(proto::UDP, 53, 0, 0), t.udp_unreplied);
        assert_eq!(asked(proto::UDP, 443, 9, 3), t.udp_replied, "a stream");
        assert_eq!(asked(proto::UDP, 443, 3, 1), t.udp_replied, "a handshake");
        assert_eq!(asked(proto::UDP, 1024, 1, 0), t.udp_replied);
        assert_eq!(asked(proto::ICMP, 0, 1, 0), t.icmp);
    }

    #[test]
    fn defaults_are_at_or_above_the_floors() {
        let t = Timeouts::default();
        assert!(t.tcp_opening >= 240 && t.tcp_closing >= 240);
        assert!(t.tcp_established >= 7_440 && t.tcp_half_closed >= 7_440);
        assert!(t.udp_unreplied >= 120 && t.udp_replied >= 300 && t.icmp >= 60);
    }
}
