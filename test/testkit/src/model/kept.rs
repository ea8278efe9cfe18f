//! The model's state of a flow that keeps the pod's address.

use super::super::build::{ACK, FIN, RST, SYN};
use super::Carries;
use super::flow::Moment;

/// Record of a flow that keeps the pod's address.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    last: Moment,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The pod has not answered yet.
    Asked,
    Live {
        fin_out: bool,
        fin_in: bool,
    },
    Closed,
    /// The record may have ended, or ended and begun again.
    Doubtful,
}

const LIVE: State = State::Live {
    fin_out: false,
    fin_in: false,
};

impl Kept {
    /// Returns the record of a flow in which the pod itself has sent.
    pub fn live(now: Moment) -> Self {
        Self {
            last: now,
            state: LIVE,
        }
    }

    /// Reports whether it is still valid; `None` if that cannot be determined.
    pub fn counts(&self, carries: Carries, now: Moment) -> Option<bool> {
        if self.state == State::Doubtful {
            return None;
        }
        self.last
            .is_past(now, self.limit(carries))
            .map(|past| !past)
    }

    fn limit(&self, carries: Carries) -> u64 {
        match (carries, self.state) {
            (_, State::Closed) => 60,
            (Carries::Tcp(_), State::Asked) => 240,
            (Carries::Tcp(_), LIVE) => 432_000,
            (Carries::Tcp(_), _) => 7_440,
            (Carries::Udp, State::Asked) => 120,
            (Carries::Udp, _) => 300,
            (Carries::Echo | Carries::EchoReply, _) => 60,
        }
    }

    /// Records a packet from the pod.
    pub fn sent(&mut self, carries: Carries, now: Moment) {
        self.last = now;
        let rst = matches!(carries, Carries::Tcp(flags) if flags & RST != 0);
        let fin = matches!(carries, Carries::Tcp(flags) if flags & FIN != 0);
        self.state = match self.state {
            State::Asked if !rst && !matches!(carries, Carries::Echo) => LIVE,
            State::Live { fin_in, .. } if rst || fin && fin_in => State::Closed,
            State::Live { fin_in, .. } if fin => State::Live {
                fin_out: true,
                fin_in,
            },
            other => other,
        };
    }

    /// Returns the record after a packet from the peer.
    pub fn came(before: Option<Self>, carries: Carries, now: Moment) -> Option<Self> {
        let asked = Self {
            last: now,
            state: State::Asked,
        };
        let begins = carries.begins().then_some(asked);
        let Some(mut kept) = before else {
            return begins;
        };
        match kept.counts(carries, now) {
            Some(true) => {}
            Some(false) => return begins,
            None => {
                kept.state = State::Doubtful;
                kept.last = now;
                return Some(kept);
            }
        }
        let flags = match carries {
            Carries::Tcp(flags) => flags,
            _ => 0,
        };
        match kept.state {
            State::Live { fin_out, .. } => {
                kept.last = now;
                if flags & FIN != 0 {
                    kept.state = if fin_out {
                        State::Closed
                    } else {
                        State::Live {
                            fin_out,
                            fin_in: true,
                        }
                    };
                }
            }
            _ if matches!(carries, Carries::Tcp(flags) if flags & (SYN | ACK) == SYN)
                && begins.is_some() =>
            {
                return begins;
            }
            _ if begins.is_some() => kept.last = now,
            _ => {}
        }
        Some(kept)
    }
}
