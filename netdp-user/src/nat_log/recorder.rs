//! The recorder, which makes events of what it is told of mappings, each once.

use super::counters::Cause;
use super::queue::{Event, Gap, Numbered, Queue};
use super::state::Clock;
use crate::datapath::{EndedMapping, EndedReports, Identity, MappingLog, Watch};
use crate::time::now_milliseconds as now;
use anyhow::Result;
use netdp_common::layout::{Addr, Secret};
use netdp_common::packet::siphash;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Reports of programs that are taken at once.
const TAKEN_AT_ONCE: usize = 1024;

/// Numbers of ended mappings that are remembered: a program and the sweep, or two programs, may end one
/// at the same moment.
const REMEMBERED: usize = 16_384;

/// Recorder of what the sweep and the programs tell.
pub(super) struct Recorder {
    queue: Arc<Queue>,
    reports: EndedReports,
    secret: Secret,
    clock: Clock,
    watch: Watch,
    /// Numbers and begins of the mappings in the log that began after `watch.since`.
    begun: HashMap<u64, u32>,
    /// True if a begin did not fit into the queue since the last pass.
    is_behind: bool,
    ended: Remembered,
    /// Reports for which there was no room, as last read.
    lost: u64,
    /// Time at which all reports had been taken, in milliseconds since 1970.
    taken_at: u64,
}

impl Recorder {
    /// Creates the recorder that goes on where an earlier one ended: with its `watch`, and the number
    /// of reports that were `lost` by then.
    pub fn new(
        queue: Arc<Queue>,
        reports: EndedReports,
        secret: Secret,
        clock: Clock,
        (watch, lost, taken_at): (Watch, u64, u64),
    ) -> Self {
        Self {
            queue,
            reports,
            secret,
            clock,
            watch,
            begun: HashMap::new(),
            is_behind: false,
            ended: Remembered::default(),
            lost,
            taken_at,
        }
    }

    fn number(&self, mapping: &Identity) -> u64 {
        number(self.secret, mapping)
    }

    /// Takes the reports of programs. To be called often: they have room for some thousand.
    pub fn take_reports(&mut self) {
        let begun = now();
        loop {
            let taken = self.reports.take(TAKEN_AT_ONCE);
            let Ok(at) = self.reports.now() else {
                return;
            };
            for ended in &taken {
                self.ends(at, ended);
            }
            if taken.len() < TAKEN_AT_ONCE {
                break;
            }
        }
        self.note_lost();
        self.taken_at = begun;
    }

    /// Returns the number of reports that were lost so far.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the datapath's clock, in ticks.
    pub fn ticks(&self) -> Result<u32> {
        self.reports.now()
    }

    /// Converts ticks by this clock from now on.
    pub const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    fn note_lost(&mut self) {
        let Ok(lost) = self.reports.lost() else {
            return;
        };
        let more = lost.wrapping_sub(self.lost);
        self.lost = lost;
        if more == 0 {
            return;
        }
        self.queue.counters.lose(Cause::Programs, more);
        // Some may have begun since the last pass.
        let from = self.watch.since.map(|since| self.clock.time(since));
        self.queue.add_gap(Gap {
            n: Some(more),
            from: from.unwrap_or(self.taken_at).min(self.taken_at),
            until: now(),
            why: Cause::Programs.name(),
        });
    }

    fn begins(&mut self, number: u64, mapping: &Identity) {
        if self.begun.contains_key(&number) {
            return;
        }
        let event = Event::Begin(Numbered {
            number,
            of: *mapping,
        });
        if self.queue.push(std::iter::once(event)) {
            self.begun.insert(number, mapping.created);
        } else {
            // The next pass sees it again.
            self.is_behind = true;
        }
    }

    fn ends(&mut self, now: u32, ended: &EndedMapping) {
        let mapping = &ended.mapping;
        let number = self.number(mapping);
        if !self.ended.insert(number) {
            return;
        }
        let is_new = self.watch.is_new(now, mapping.created) && !self.begun.contains_key(&number);
        let begin = Event::Begin(Numbered {
            number,
            of: *mapping,
        });
        let end = Event::End(Numbered { number, of: *ended });
        let fits = if is_new {
            self.queue.push([begin, end].into_iter())
        } else {
            self.queue.push(std::iter::once(end))
        };
        if fits {
            if is_new {
                self.begun.insert(number, mapping.created);
            }
            return;
        }
        let until = self.clock.time(ended.at);
        let from = if is_new {
            self.clock.time(mapping.created)
        } else {
            until
        };
        self.queue.lose(from, until);
    }
}

impl MappingLog for Recorder {
    fn watch(&self) -> Watch {
        self.watch
    }

    fn removing(&mut self) {
        self.queue.removing();
    }

    fn tell(&mut self, now: u32, live: &[Identity], ended: &[EndedMapping]) {
        for mapping in live {
            let number = self.number(mapping);
            if self.watch.is_new(now, mapping.created) {
                self.begins(number, mapping);
            } else {
                let mapping = Numbered {
                    number,
                    of: *mapping,
                };
                // Where there is no room, it is said with the next interval.
                self.queue.push(std::iter::once(Event::Alive(mapping, now)));
            }
        }
        for ended in ended {
            self.ends(now, ended);
        }
        if !ended.is_empty() {
            self.queue.removed();
        }
    }

    fn lost_track(&mut self, most: usize) {
        self.queue.removed();
        self.queue.counters.lose(Cause::Sweep, most as u64);
        let from = self.watch.since.map(|since| self.clock.time(since));
        self.queue.add_gap(Gap {
            n: None,
            from: from.unwrap_or(self.taken_at),
            until: now(),
            why: Cause::Sweep.name(),
        });
    }

    fn passed(&mut self, begun: u32) {
        // Those that programs have ended meanwhile, the pass may not have seen.
        self.take_reports();
        if std::mem::take(&mut self.is_behind) {
            return;
        }
        self.watch.since = Some(begun);
        let watch = self.watch;
        self.begun
            .retain(|_, created| watch.is_new(begun, *created));
        self.queue.passed(begun);
    }
}

/// Returns the number of a mapping, by a node's secret: nothing about the mapping can be learnt from it
/// without that, and it is the same after a restart.
pub(crate) fn number(secret: Secret, mapping: &Identity) -> u64 {
    let [a, b] = words(&mapping.tuple.src);
    let [c, d] = words(&mapping.tuple.dst);
    let [e, f] = words(&mapping.addr);
    let ports = u64::from(mapping.tuple.src_id) << 32
        | u64::from(mapping.tuple.dst_id) << 16
        | u64::from(mapping.id);
    let rest = u64::from(mapping.tuple.proto) << 32 | u64::from(mapping.created);
    siphash::hash(secret, [a, b, c, d, e, f, ports, rest])
}

/// Returns an address as two words.
fn words(addr: &Addr) -> [u64; 2] {
    let [high, low] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&addr.octets()[at..at + 8]);
        u64::from_be_bytes(half)
    });
    [high, low]
}

/// The numbers that were added last.
#[derive(Default)]
struct Remembered {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Remembered {
    /// Adds a number, and reports whether it is new.
    fn insert(&mut self, number: u64) -> bool {
        if !self.set.insert(number) {
            return false;
        }
        self.order.push_back(number);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }
}
