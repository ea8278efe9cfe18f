//! What the model knows of one flow: when it ends.

use super::super::build::{ACK, Build, FIN, Kind, RST, SYN};
use super::Carries;
use netdp_common::tuple::Tuple;
use std::net::SocketAddr;
use std::time::Instant;

/// A moment: seconds that the walk has waited, and the real time that passes
/// beside them.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub waited: u64,
    pub real: Instant,
}

impl Moment {
    /// Whether `limit` seconds have passed by `now`; `None` where that is too
    /// close to tell.
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

/// One direction.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    packets: u32,
    syn: bool,
    fin: bool,
    rst: bool,
    /// Anything but a SYN.
    other: bool,
    acknowledged: bool,
}

/// A live mapping.
#[derive(Clone, Debug)]
pub struct Flow {
    /// What the server sees.
    pub wire: SocketAddr,
    /// The packet that began it.
    pub first: Build,
    /// The tuple of its replies.
    pub reply: Tuple,
    out: Side,
    back: Side,
    last: Moment,
}

impl Flow {
    pub fn new(wire: SocketAddr, first: Build, reply: Tuple, now: Moment) -> Self {
        Self {
            wire,
            first,
            reply,
            out: Side::default(),
            back: Side::default(),
            last: now,
        }
    }

    /// A packet of the pod, the first included.
    pub fn sends(&mut self, carries: Carries, now: Moment) {
        self.out.packets += 1;
        let Carries::Tcp(flags) = carries else {
            self.last = now;
            return;
        };
        let closed = self.out.rst || self.back.rst || self.out.fin && self.back.fin;
        if flags == SYN && closed {
            let acknowledged = self.out.acknowledged;
            self.out = Side::default();
            self.out.acknowledged = acknowledged;
            self.back = Side::default();
            self.last = now;
        }
        self.out.note(flags, &mut self.last, now);
    }

    /// A packet of the server.
    pub fn gets(&mut self, flags: Option<u8>, in_sequence: bool, now: Moment) {
        self.back.packets += 1;
        let Some(flags) = flags else {
            self.last = now;
            return;
        };
        let believed = if self.out.other {
            in_sequence && self.out.acknowledged
        } else {
            flags & ACK != 0
        };
        if flags & RST == 0 || believed {
            self.back.note(flags, &mut self.last, now);
        }
    }

    /// Whether it has ended; `None` where that is too close to tell.
    pub fn is_over(&self, now: Moment) -> Option<bool> {
        self.last.is_past(now, self.timeout())
    }

    /// By the table in docs/architecture.md.
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

impl Side {
    fn note(&mut self, flags: u8, last: &mut Moment, now: Moment) {
        let repeated = flags & SYN != 0 && self.syn && !self.other && !self.fin && !self.rst;
        if flags & RST == 0 && !repeated {
            *last = now;
        }
        self.syn |= flags & SYN != 0;
        self.other |= flags & SYN == 0;
        self.fin |= flags & FIN != 0;
        self.rst |= flags & RST != 0;
        self.acknowledged |= flags & ACK != 0;
    }
}
