//! Timeouts of mappings and inbound flows: idle times by protocol, state, and traffic.

use super::carried::Carried;
use super::tcp::{TcpState, tcp_state};
use crate::layout::proto;

/// Seconds of silence after which `--on-reload drain` ends a flow that the policy would no longer
/// create.
pub const DRAIN_SECONDS: u64 = 30;

/// Seconds of silence after which a flow that keeps the pod's address expires: the timeout of an
/// established connection's mapping.
pub const INBOUND_SECONDS: u64 = 432_000;

/// Returns the seconds of silence after which an unanswered flow from outside expires, by protocol:
/// the timeouts of mappings without a reply.
#[must_use]
pub const fn asked_seconds(protocol: u32) -> u64 {
    match protocol {
        proto::TCP => 240,
        proto::UDP | proto::UDP_LITE => 120,
        proto::ICMP | proto::ICMPV6 => 60,
        _ => 600,
    }
}

/// Returns the seconds of silence after which an answered flow from outside has ended, by protocol
/// and by whether one side of a connection has closed: the timeouts of the mappings of such flows.
#[must_use]
pub const fn live_seconds(protocol: u32, half_closed: bool) -> u64 {
    match protocol {
        proto::TCP if half_closed => 7_440,
        proto::TCP => INBOUND_SECONDS,
        proto::UDP | proto::UDP_LITE => 300,
        proto::ICMP | proto::ICMPV6 => 60,
        _ => 600,
    }
}

/// Seconds for which a connection from outside that has closed keeps the pod's address: the time
/// during which a peer retransmits its FIN (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
pub const CLOSED_SECONDS: u64 = 60;

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
    use super::super::carried::Carried;
    use super::super::clock::ticks32;
    use super::super::tcp::SEEN_DATA;
    use super::Timeouts;
    use crate::layout::proto;

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
