//! The model's state of one flow, and the rules by which it ends.

use super::super::build::{ACK, Build, FIN, Kind, RST, SYN};
use super::Carries;
use netdp_common::layout::Tuple;
use std::net::SocketAddr;
use std::time::Instant;

/// Payload bytes of every segment, see [`Build::new`].
pub const PAYLOAD: u32 = 19;

/// A point in time: the seconds that the walk has waited, and the real time that passes besides.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub waited: u64,
    pub real: Instant,
}

impl Moment {
    /// Reports whether `limit` seconds have passed by `now`; `None` if that is too close to call.
    pub fn is_past(self, now: Self, limit: u64) -> Option<bool> {
        let least = now.waited - self.waited;
        let most = least + self.real.elapsed().as_secs() + 2;
        if least > limit {
            Some(true)
        } else if most < limit {
            Some(false)
        } else {
            None
        }
    }
}

/// TCP state of one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    packets: u32,
    syn: bool,
    fin: bool,
    rst: bool,
    /// It has sent a segment other than a SYN.
    other: bool,
    acknowledged: bool,
    /// Its last acknowledgement number is beyond the sequence number of pods' SYNs.
    ahead: bool,
    /// Its last acknowledgement number; before there was one, the number that acknowledges its SYN.
    ack: u32,
    /// The number that acknowledges its FIN.
    end: u32,
    /// Its FIN was acknowledged at some time.
    fin_arrived: bool,
}

/// A live mapping and the state of its connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The source that the server sees.
    pub wire: SocketAddr,
    /// The packet that opened the flow.
    pub first: Build,
    /// The wire tuple: that of its replies.
    pub reply: Tuple,
    /// The uplink of its last egress packet.
    pub uplink: usize,
    out: Side,
    back: Side,
    begun: Moment,
    last: Moment,
}

impl Flow {
    pub fn new(wire: SocketAddr, first: Build, reply: Tuple, uplink: usize, now: Moment) -> Self {
        Self {
            wire,
            first,
            reply,
            uplink,
            out: Side::default(),
            back: Side::default(),
            begun: now,
            last: now,
        }
    }

    /// Records a packet from the pod, the first one included.
    pub fn sends(&mut self, packet: &Build, carries: Carries, now: Moment) {
        self.out.packets += 1;
        let Carries::Tcp(flags) = carries else {
            self.last = now;
            return;
        };
        if flags == SYN && self.is_closed() {
            let ahead = self.back.ahead;
            self.out = Side::default();
            self.back = Side {
                ahead,
                ..Side::default()
            };
            self.last = now;
        } else if flags & RST == 0 {
            self.out.rst = false;
        }
        self.out.note(flags, &mut self.last, now);
        if let Kind::Tcp { seq, ack, .. } = packet.kind {
            self.out.numbers(flags, seq, ack);
        }
        self.note_fins();
    }

    fn note_fins(&mut self) {
        let (out, back) = (&mut self.out, &mut self.back);
        out.fin_arrived |= out.fin && back.ack == out.end;
        back.fin_arrived |= back.fin && out.ack == back.end;
    }

    /// Reports whether a RST or both FINs have closed it.
    pub fn is_closed(&self) -> bool {
        self.out.rst || self.back.rst || self.out.fin && self.back.fin
    }

    /// Reports whether neither side has anything left to send.
    fn has_ended(&self) -> bool {
        self.out.rst || self.back.rst || self.out.fin_arrived && self.back.fin_arrived
    }

    fn is_half_closed(&self) -> bool {
        (self.back.syn || self.back.other) && (self.out.fin || self.back.fin)
    }

    /// Records a packet from the server; reports whether the packet is the node's and ends the
    /// mapping.
    pub fn gets(&mut self, sent: Option<Sent>, now: Moment) -> bool {
        let Some(sent) = sent else {
            self.back.packets += 1;
            self.last = now;
            return false;
        };
        let flags = sent.flags;
        if flags & RST == 0 && flags & (SYN | ACK) == SYN && self.is_closed() {
            return true;
        }
        self.back.packets += 1;
        let believed = if flags & RST != 0 {
            if self.out.other {
                sent.in_sequence && self.out.acknowledged
            } else {
                flags & ACK != 0 && self.out.syn && sent.acknowledges
            }
        } else if flags & (SYN | ACK) == SYN {
            !self.out.other && !self.is_half_closed()
        } else {
            // In sequence, if the pod has acknowledged anything; else after the pod's SYN.
            let in_window = sent.seq.wrapping_sub(self.out.ack) < WINDOW;
            if flags & SYN == 0 && (!self.out.other || in_window) {
                self.back.rst = false;
            }
            true
        };
        if believed {
            self.back.note(flags, &mut self.last, now);
            // In an established connection a SYN acknowledges nothing.
            let begins = flags & SYN != 0 && !self.back.other;
            if begins || flags & (SYN | ACK) == ACK {
                self.back.ahead = sent.acknowledges;
            }
            self.back.numbers(flags, sent.seq, sent.ack);
            self.note_fins();
        }
        false
    }

    /// Reports whether another flow may take its port; `None` if that is too close to call.
    pub fn gives_way(&self, now: Moment) -> Option<bool> {
        let tcp = matches!(self.first.kind, Kind::Tcp { .. });
        let seconds = match tcp {
            // A SYN beyond every sequence number that the peer has seen may take the port at once,
            // unless a FIN may be retransmitted.
            true if self.is_closed() && !self.back.ahead && self.has_ended() => return None,
            true if self.out.rst || self.back.rst => 1,
            true if self.is_closed() => 60,
            true if self.back.syn || self.back.other => return Some(false),
            false if self.back.packets > 0 => return self.gives_way_answered(now),
            _ => 5,
        };
        self.last.is_past(now, seconds)
    }

    fn gives_way_answered(&self, now: Moment) -> Option<bool> {
        // To port 443, or a ping.
        let (exchange, stream) = match self.first.kind {
            Kind::Udp if self.is_lookup() => (5, self.last.is_past(now, 120)),
            Kind::Udp => (30, self.last.is_past(now, 120)),
            _ => (30, Some(false)),
        };
        match self.is_exchange() {
            Some(true) => self.last.is_past(now, exchange),
            Some(false) => stream,
            None => None,
        }
    }

    /// Reports whether it may consist of one query and its response.
    fn is_lookup(&self) -> bool {
        self.out.packets <= 2 && self.back.packets <= 2
    }

    /// Reports whether no packet came later than a response would; `None` if that is too close to
    /// call.
    fn is_exchange(&self) -> Option<bool> {
        if self.last.waited != self.begun.waited {
            // Each wait of a walk is longer than a response takes.
            Some(false)
        } else if (self.last.real - self.begun.real).as_secs() < 1 {
            Some(true)
        } else {
            None
        }
    }

    /// Reports whether it is a connection that is closed or was never answered.
    pub fn may_begin_anew(&self) -> bool {
        self.is_closed() || !self.is_answered()
    }

    /// Reports whether it has only sent SYNs: a further SYN is a retransmission.
    pub fn is_asking(&self) -> bool {
        self.out.syn && !self.out.other && !self.is_closed() && !self.is_answered()
    }

    /// Reports whether a reply came; for TCP, a credible one.
    pub fn is_answered(&self) -> bool {
        match self.first.kind {
            Kind::Tcp { .. } => self.back.syn || self.back.other,
            _ => self.back.packets > 0,
        }
    }

    /// Reports whether it has expired; `None` if that is too close to call.
    pub fn is_over(&self, now: Moment) -> Option<bool> {
        let udp = matches!(self.first.kind, Kind::Udp) && self.back.packets > 0;
        if udp && self.is_lookup() && self.is_exchange() != Some(false) {
            // The walk schedules no sweep for it: it expires with the next one that is due.
            return match (self.last.is_past(now, 120), self.last.is_past(now, 300)) {
                (Some(false), _) => Some(false),
                (_, Some(true)) => Some(true),
                _ => None,
            };
        }
        self.last.is_past(now, self.timeout())
    }

    /// Returns the timeout from the table in docs/architecture.md, in seconds.
    fn timeout(&self) -> u64 {
        let (out, back) = (&self.out, &self.back);
        let answered = back.syn || back.other;
        match self.first.kind {
            Kind::Udp if back.packets > 0 => 300,
            Kind::Udp => 120,
            Kind::Echo => 60,
            _ if out.rst || back.rst || out.fin && back.fin => 240,
            _ if answered && (out.fin || back.fin) => 7_440,
            _ if !out.other => 240,
            _ if !answered => 300,
            _ => 432_000,
        }
    }
}

/// Numbers after a side's last acknowledgement at which segments of the other side may lie.
const WINDOW: u32 = 1 << 24;

/// A TCP segment from a server.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub flags: u8,
    /// It has the sequence number that the pod expects next.
    pub in_sequence: bool,
    /// It acknowledges the pod's SYN.
    pub acknowledges: bool,
    pub seq: u32,
    pub ack: u32,
}

impl Side {
    fn numbers(&mut self, flags: u8, seq: u32, ack: u32) {
        if flags & FIN != 0 {
            self.end = seq + PAYLOAD + 1;
        }
        if flags & (SYN | ACK) == ACK {
            self.ack = ack;
        } else if flags & SYN != 0 && !self.other {
            self.ack = seq + 1;
        }
    }

    fn note(&mut self, flags: u8, last: &mut Moment, now: Moment) {
        let repeated = flags & SYN != 0 && self.syn && !self.other && !self.fin && !self.rst;
        if flags & RST == 0 && !repeated {
            *last = now;
        }
        // Until the side has acknowledged anything, its SYN determines the number that acknowledges
        // it.
        if flags & SYN == 0 {
            self.acknowledged |= flags & ACK != 0;
        } else if !self.other {
            self.acknowledged = false;
        }
        self.syn |= flags & SYN != 0;
        self.other |= flags & SYN == 0;
        self.fin |= flags & FIN != 0;
        self.rst |= flags & RST != 0;
    }
}
