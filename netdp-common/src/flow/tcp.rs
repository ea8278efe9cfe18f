//! TCP state, from the segments seen in each direction.

use crate::packet::{ACK, FIN, L4, RST, SYN, TcpSegment};

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

/// Part of this half's traffic was carried over into the `traffic` map. Says nothing about TCP, and
/// is set in halves of every protocol; it stays until the mapping ends.
pub const SEEN_CARRIED_OVER: u32 = 64;

/// All kinds of segments that this direction itself has sent.
pub const SEEN_OWN: u32 = SEEN_SYN | SEEN_FIN | SEEN_RST | SEEN_DATA;

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
            segment.flags & RST == 0 && !(segment.flags & SYN != 0 && seen & SEEN_OWN == SEEN_SYN)
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
    let reply = reply & SEEN_OWN;
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

#[cfg(test)]
mod tests {
    use super::{SEEN_DATA, SEEN_FIN, SEEN_RST, SEEN_SYN, TcpState, observe, tcp_state};
    use crate::packet::{ACK, FIN, RST, SYN, TcpSegment};

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
}
