//! TCP state, from the segments seen in each direction, and time. The resulting timeouts of
//! mappings are in [`crate::timeouts`].
//!
//! Time is in ticks of 2^26 ns (67.1 ms) of `CLOCK_MONOTONIC`, as `u32`: it wraps after 9 years,
//! all comparisons are wrapping, and it takes four bytes of a map value.

use crate::packet::{L4, TcpSegment, UNKNOWN_LENGTH};
use crate::tuple::proto;

/// The right shift that converts nanoseconds to ticks.
pub const TICK_SHIFT: u32 = 26;

/// Converts seconds to ticks, rounded up.
#[must_use]
pub const fn ticks(seconds: u64) -> u64 {
    (seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT)
}

/// Converts seconds to ticks, as [`ticks`], for times of days at most.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "9 years fit")]
pub const fn ticks32(seconds: u64) -> u32 {
    ticks(seconds) as u32
}

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

/// TCP header flag FIN (RFC 9293 3.1).
pub const FIN: u8 = 0x01;
/// TCP header flag SYN (RFC 9293 3.1).
pub const SYN: u8 = 0x02;
/// TCP header flag RST (RFC 9293 3.1).
pub const RST: u8 = 0x04;
/// TCP header flag ACK (RFC 9293 3.1).
pub const ACK: u8 = 0x10;

/// This direction sent a SYN.
pub const SEEN_SYN: u32 = 1;
/// This direction sent a FIN.
pub const SEEN_FIN: u32 = 2;
/// This direction sent a RST that its peer will accept.
pub const SEEN_RST: u32 = 4;
/// This direction sent a segment other than a SYN.
pub const SEEN_DATA: u32 = 8;
/// The other direction sent a RST. A hint in reply halves for the search for a port, which reads no
/// other halves; no state is derived from it.
pub const SEEN_OTHERS_RST: u32 = 16;
/// The other direction sent a FIN. A hint like [`SEEN_OTHERS_RST`].
pub const SEEN_OTHERS_FIN: u32 = 32;
/// All hints about the other direction.
pub const SEEN_OTHERS: u32 = SEEN_OTHERS_RST | SEEN_OTHERS_FIN;

/// Returns the `SEEN_*` bits of a direction after one more segment.
#[inline(always)]
#[must_use]
pub const fn observe(seen: u32, segment: TcpSegment) -> u32 {
    let mut seen = seen;
    if segment.flags & SYN != 0 {
        seen |= SEEN_SYN;
    } else {
        seen |= SEEN_DATA;
    }
    if segment.flags & FIN != 0 {
        seen |= SEEN_FIN;
    }
    if segment.flags & RST != 0 {
        seen |= SEEN_RST;
    }
    seen
}

/// Reports whether a packet refreshes its mapping. A SYN that is retransmitted before a reply does
/// not (netfilter: `TCP_CONNTRACK_SYN_SENT` keeps its timer,
/// `net/netfilter/nf_conntrack_proto_tcp.c`, Linux 6.12), nor does a RST (RFC 7857 7.1).
#[inline(always)]
#[must_use]
pub const fn refreshes(seen: u32, l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => {
            segment.flags & RST == 0
                && !(segment.flags & SYN != 0 && seen & !SEEN_OTHERS == SEEN_SYN)
        }
        _ => true,
    }
}

/// Reports whether the connection was reset or closed by both sides, so that a new SYN reopens the
/// tuple.
#[inline(always)]
#[must_use]
pub const fn is_closing(original: u32, reply: u32) -> bool {
    (original | reply) & SEEN_RST != 0 || original & reply & SEEN_FIN != 0
}

/// The state of a TCP connection, derived from its two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// The pod sent a SYN; there was no reply.
    SynSent,
    /// Both sent a SYN; the pod has not acknowledged.
    SynReceived,
    /// Both directions can carry data.
    Established,
    /// Picked up mid-stream; no reply yet.
    Unreplied,
    /// One side has sent a FIN; the other may send for an unlimited time.
    HalfClosed,
    /// Both sides have sent a FIN.
    TimeWait,
    /// A RST ended it.
    Closed,
}

/// Returns the state for the `SEEN_*` bits of the original and the reply direction.
#[must_use]
pub const fn tcp_state(original: u32, reply: u32) -> TcpState {
    let reply = reply & !SEEN_OTHERS;
    if (original | reply) & SEEN_RST != 0 {
        return TcpState::Closed;
    }
    match (original & SEEN_FIN != 0, reply & SEEN_FIN != 0) {
        (true, true) => return TcpState::TimeWait,
        (true, false) | (false, true) if reply != 0 => return TcpState::HalfClosed,
        _ => {}
    }
    match (original & SEEN_DATA != 0, reply) {
        (false, 0) => TcpState::SynSent,
        (true, 0) => TcpState::Unreplied,
        (false, _) => TcpState::SynReceived,
        (true, _) => TcpState::Established,
    }
}

/// The maximum distance of an acknowledgement of a SYN from it, in bytes: data that was sent with
/// the SYN (RFC 7413).
const WITH_SYN: u32 = 1460;
/// The maximum distance of a segment from the other side's acknowledgement, in bytes: more than any
/// window in use; both sides of it together are a 128th of the sequence space.
const WINDOW: u32 = 1 << 24;

/// Reports whether an endpoint accepts a RST, from the segments that it sent: `seen`, and `acked`,
/// its last acknowledgement number, or before there was one, the number that acknowledges its SYN
/// (RFC 9293 3.5.3; RFC 5961 3.2: exactly the next sequence number, otherwise the endpoint only
/// sends a challenge ACK).
#[must_use]
pub const fn rst_is_acceptable(seen: u32, acked: u32, rst: TcpSegment) -> bool {
    if rst.bad_checksum != 0 {
        return false;
    }
    if seen & SEEN_DATA != 0 {
        return rst.seq == acked;
    }
    rst.flags & ACK != 0 && seen & SEEN_SYN != 0 && rst.ack.wrapping_sub(acked) <= WITH_SYN
}

/// Reports whether a segment lies in a window after its receiver's acknowledgement.
#[must_use]
pub const fn is_in_window(seen: u32, acked: u32, segment: TcpSegment) -> bool {
    seen & SEEN_DATA == 0 || segment.seq.wrapping_sub(acked) < WINDOW
}

/// Reports whether a FIN belongs to this connection: it is near to its receiver's acknowledgement,
/// which need not be the latest one.
#[must_use]
pub const fn fin_is_plausible(seen: u32, acked: u32, segment: TcpSegment) -> bool {
    is_in_window(seen, acked, segment) || acked.wrapping_sub(segment.seq) < WINDOW
}

/// The bits of a sequence number in [`Closing`].
const CLOSING_NUMBER: u32 = (1 << 21) - 1;
/// [`Closing`]: the FIN was the pod's.
const CLOSING_PODS: u32 = 1 << 21;
/// [`Closing`]: a FIN was seen.
const CLOSING_BEGUN: u32 = 1 << 22;
/// [`Closing`]: the other side's FIN has been acknowledged.
const CLOSING_OTHERS: u32 = 1 << 23;

/// The progress of the acknowledgement of FINs, in 24 bits: the side whose FIN waits for it, the
/// lower bits of the number that will acknowledge it, and whether the other side's FIN has been
/// acknowledged. The last acknowledgement number of each side is stored anyway, so that only FINs
/// write here. If FINs cross each other, one remains unconfirmed until it is retransmitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing(u32);

impl Closing {
    /// No FIN was seen.
    pub const NONE: Self = Self(0);

    /// Builds the value from its [`Self::parts`].
    #[inline(always)]
    #[must_use]
    pub const fn from_parts(upper: u8, lower: u16) -> Self {
        Self((upper as u32) << 16 | lower as u32)
    }

    /// Returns the upper eight bits and the lower sixteen.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "it has 24 bits")]
    pub const fn parts(self) -> (u8, u16) {
        ((self.0 >> 16) as u8, self.0 as u16)
    }

    #[inline(always)]
    const fn waits_for(self, ack: u32) -> bool {
        self.0 & CLOSING_BEGUN != 0 && (self.0 ^ ack) & CLOSING_NUMBER == 0
    }

    /// Returns the value after a FIN, whether it is the first one or a retransmission.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, fin: TcpSegment, pods: bool) -> Self {
        let side = if pods { CLOSING_PODS } else { 0 };
        let own = self.0 & CLOSING_BEGUN == 0 || self.0 & CLOSING_PODS == side;
        let others = if own {
            self.0 & CLOSING_OTHERS
        } else if fin.flags & ACK != 0 && self.waits_for(fin.ack) {
            CLOSING_OTHERS
        } else {
            // The earlier FIN is still waiting.
            return self;
        };
        if fin.payload == UNKNOWN_LENGTH {
            return Self::NONE;
        }
        let end = fin.seq.wrapping_add(fin.payload as u32).wrapping_add(1);
        Self(CLOSING_BEGUN | side | others | end & CLOSING_NUMBER)
    }

    /// Reports whether both FINs have been acknowledged, from the last acknowledgement numbers of
    /// the pod and its peer.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self, pods_ack: u32, peers_ack: u32) -> bool {
        let ack = if self.0 & CLOSING_PODS != 0 {
            peers_ack
        } else {
            pods_ack
        };
        self.0 & CLOSING_OTHERS != 0 && self.waits_for(ack)
    }

    /// Reports whether both FINs may have been acknowledged, as far as the peer's last
    /// acknowledgement number shows.
    #[inline(always)]
    #[must_use]
    pub const fn may_be_over(self, peers_ack: u32) -> bool {
        self.0 & CLOSING_OTHERS != 0 && (self.0 & CLOSING_PODS == 0 || self.waits_for(peers_ack))
    }
}

/// Returns the ticks that are left until `timeout` seconds have passed since the later of the two
/// moments; 0 if they have passed.
#[must_use]
pub const fn left(now: u32, original_seen: u32, reply_seen: u32, timeout: u64) -> u64 {
    ticks(timeout).saturating_sub(idle(now, original_seen, reply_seen) as u64)
}

/// Returns the ticks since the later of the two moments. A moment after `now` (another CPU was a
/// tick ahead) counts as now.
#[must_use]
pub const fn idle(now: u32, original_seen: u32, reply_seen: u32) -> u32 {
    let (original, reply) = (age(now, original_seen), age(now, reply_seen));
    if reply < original { reply } else { original }
}

/// Returns the ticks from `then` to `now`; 0 if `then` lies ahead.
#[must_use]
pub const fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::{
        ACK, FIN, RST, SEEN_DATA, SEEN_FIN, SEEN_RST, SEEN_SYN, SYN, TcpState, age, left, observe,
        tcp_state, ticks,
    };
    use crate::packet::TcpSegment;

    fn segment(flags: u8) -> TcpSegment {
        TcpSegment {
            flags,
            bad_checksum: 0,
            payload: 0,
            seq: 0,
            ack: 0,
        }
    }

    #[test]
    fn a_connection_walks_the_table() {
        use TcpState::*;
        let (mut o, mut r) = (0, 0);
        let steps: &[(bool, u8, TcpState)] = &[
            (true, SYN, SynSent),
            (true, SYN, SynSent),
            (false, SYN | ACK, SynReceived),
            (true, ACK, Established),
            (false, ACK, Established),
            (true, FIN | ACK, HalfClosed),
            (false, ACK, HalfClosed),
            (false, FIN | ACK, TimeWait),
            (true, ACK, TimeWait),
        ];
        for &(out, flags, state) in steps {
            let half = if out { &mut o } else { &mut r };
            *half = observe(*half, segment(flags));
            assert_eq!(tcp_state(o, r), state, "after flags {flags:#x}");
        }
    }

    #[test]
    fn the_server_may_close_first() {
        let r = SEEN_SYN | SEEN_DATA | SEEN_FIN;
        assert_eq!(tcp_state(SEEN_SYN | SEEN_DATA, r), TcpState::HalfClosed);
    }

    #[test]
    fn a_rst_of_either_side_closes() {
        let o = observe(SEEN_SYN, segment(RST));
        assert_eq!(o & SEEN_RST, SEEN_RST);
        assert_eq!(tcp_state(o, 0), TcpState::Closed);
        assert_eq!(tcp_state(SEEN_SYN, SEEN_RST), TcpState::Closed);
    }

    #[test]
    fn simultaneous_open_establishes() {
        let o = observe(observe(0, segment(SYN)), segment(ACK));
        let r = observe(0, segment(SYN));
        assert_eq!(tcp_state(o, r), TcpState::Established);
    }

    #[test]
    fn expiry_is_exact_and_survives_the_wrap() {
        let expired = |now, original, reply, timeout| left(now, original, reply, timeout) == 0;
        let limit = u32::try_from(ticks(60)).unwrap();
        for base in [0, 1_000, u32::MAX - 10, u32::MAX] {
            let at = base.wrapping_add(limit);
            assert!(expired(at, base, base, 60));
            assert!(!expired(at.wrapping_sub(1), base, base, 60));
            assert!(!expired(at, base, at, 60), "the later direction counts");
            assert!(!expired(at, at, base, 60), "the later direction counts");
            assert!(!expired(
                base,
                base.wrapping_add(1),
                base.wrapping_add(1),
                60
            ));
        }
        assert_eq!(left(limit - 7, 0, 0, 60), 7);
        assert_eq!(age(5, 7), 0);
    }
}
