//! Progress of closing a TCP connection.

use crate::layout::Mapping;
use crate::packet::{ACK, TcpSegment, UNKNOWN_LENGTH};

/// The bits of a sequence number in [`Closing`].
const CLOSING_NUMBER: u32 = (1 << 21) - 1;

/// [`Closing`]: the FIN was the pod's.
const CLOSING_PODS: u32 = 1 << 21;

/// [`Closing`]: a FIN was seen.
const CLOSING_BEGUN: u32 = 1 << 22;

/// [`Closing`]: the other side's FIN has been acknowledged.
const CLOSING_OTHERS: u32 = 1 << 23;

/// The sender of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The pod, in the original direction.
    Pod,
    /// Its peer.
    Peer,
}

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

    /// Returns how far the connection of a reply half has closed.
    #[inline(always)]
    #[must_use]
    pub const fn of(reply: &Mapping) -> Self {
        Self::from_parts(reply.epoch, reply.uplink)
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
    pub const fn after(self, fin: TcpSegment, sender: Sender) -> Self {
        let side = match sender {
            Sender::Pod => CLOSING_PODS,
            Sender::Peer => 0,
        };
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
