//! Ends of mappings: whoever ends one, it is told once, to the NAT log and to those who listen to events.
//!
//! The sweep and the agent tell what they end, the programs report it in a ring buffer, which has this one
//! reader ([`Ends::take`]). Both may report the same mapping.

use crate::datapath::{
    EndedMapping, EndedReports, Identity, MappingLog, Reports, Watch, lock, seconds,
};
use crate::events::{Ended, Ends as Both, Kind, Sender, What, end};
use crate::nat_log::{Numbered, Recorder, number};
use crate::time::now_milliseconds;
use anyhow::Result;
use netdp_common::flow::age;
use netdp_common::layout::Secret;
use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Reports of programs that are taken at once.
const TAKEN_AT_ONCE: usize = 1024;

/// Rounds of that, which take all that the ring buffer has room for: programs may report as fast as this takes.
const ROUNDS: u32 = 8;

/// Numbers of ended mappings that are remembered, of programs and of others each: a pass of the sweep may take
/// seconds from the moment at which it has read a mapping.
const REMEMBERED: usize = 65_536;

/// The ends, as several threads tell them.
pub(crate) type SharedEnds = Arc<Mutex<Ends>>;

/// Whoever is told of ends, and passes them on.
pub(crate) struct Ends {
    reports: Box<dyn Reports>,
    secret: Secret,
    /// Reports for which there was no room, as last read.
    lost: u64,
    by_programs: Remembered,
    by_others: Remembered,
    log: Option<Arc<Mutex<Recorder>>>,
    /// True once the log has ended: reports stay where they are, for the next agent's.
    is_closed: bool,
    events: Option<Sender>,
}

impl Ends {
    /// Opens the reports of programs pinned below `bpffs`. `secret`: the node's, for the numbers of mappings.
    ///
    /// # Errors
    /// Returns an error if a map is missing, has another type or size, or can't be read.
    pub(crate) fn open(bpffs: &Path, secret: Secret) -> Result<Self> {
        Self::over(Box::new(EndedReports::open(bpffs)?), secret)
    }

    /// Creates it over reports.
    ///
    /// # Errors
    /// Returns an error if the number of lost reports can't be read.
    pub(crate) fn over(reports: Box<dyn Reports>, secret: Secret) -> Result<Self> {
        Ok(Self {
            lost: reports.lost()?,
            reports,
            secret,
            by_programs: Remembered::default(),
            by_others: Remembered::default(),
            log: None,
            is_closed: false,
            events: None,
        })
    }

    /// Tells the NAT log from now on, which knows of this number of lost reports.
    pub(crate) fn tell_log(&mut self, log: Arc<Mutex<Recorder>>, lost: u64) {
        self.log = Some(log);
        self.lost = lost;
    }

    /// Tells the NAT log what has ended up to now, and nothing after that.
    pub(crate) fn close_log(&mut self) {
        self.take();
        self.log = None;
        self.is_closed = true;
    }

    /// Tells those who listen to events from now on.
    pub(crate) fn tell_events(&mut self, events: Sender) {
        self.events = Some(events);
    }

    /// Takes the reports of programs. To be called often while anyone wants them: they have room for some
    /// thousand.
    pub(crate) fn take(&mut self) {
        if self.is_closed {
            return;
        }
        let begun = now_milliseconds();
        for _ in 0..ROUNDS {
            let taken = self.reports.take(TAKEN_AT_ONCE);
            let now = self.reports.now().ok();
            for ended in &taken {
                let number = number(self.secret, &ended.mapping);
                if !self.by_others.has(number) && self.by_programs.insert(number) {
                    self.pass_on(now.unwrap_or(ended.at), number, ended);
                }
            }
            if taken.len() < TAKEN_AT_ONCE {
                break;
            }
        }
        let Ok(lost) = self.reports.lost() else {
            return;
        };
        let more = lost.wrapping_sub(self.lost);
        self.lost = lost;
        if let (Some(events), 1..) = (&self.events, more) {
            events.lost(Kind::End, more);
        }
        if let Some(log) = &self.log {
            lock(log).taken(begun, more);
        }
    }

    /// Returns the number of reports that were lost so far.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the datapath's clock, in ticks.
    ///
    /// # Errors
    /// Returns an error if the clock can't be read.
    pub(crate) fn ticks(&self) -> Result<u32> {
        self.reports.now()
    }

    fn pass_on(&self, now: u32, number: u64, ended: &EndedMapping) {
        if let Some(log) = &self.log {
            let ended = Numbered { number, of: *ended };
            lock(log).ends(now, &ended);
        }
        if let Some(events) = &self.events
            && events.is_wanted(Kind::End)
        {
            events.send(What::End(event(ended)));
        }
    }

    fn lives(&self, now: u32, live: &[Identity]) {
        let Some(log) = &self.log else {
            return;
        };
        let mut log = lock(log);
        for mapping in live {
            let number = number(self.secret, mapping);
            // It may have ended since it was read.
            if !self.by_programs.has(number) && !self.by_others.has(number) {
                let of = *mapping;
                log.lives(now, Numbered { number, of });
            }
        }
    }
}

impl MappingLog for Ends {
    fn watch(&self) -> Option<Watch> {
        self.log.as_ref().map(|log| lock(log).watch())
    }

    fn wants_ends(&self) -> bool {
        let is_heard = |events: &Sender| events.is_wanted(Kind::End);
        self.log.is_some() || self.events.as_ref().is_some_and(is_heard)
    }

    fn removing(&mut self) {
        if let Some(log) = &self.log {
            lock(log).removing();
        }
    }

    fn tell(&mut self, now: u32, live: &[Identity], ended: &[EndedMapping]) {
        if !ended.is_empty() {
            // Those that programs have ended before are among them.
            self.take();
        }
        self.lives(now, live);
        for ended in ended {
            let number = number(self.secret, &ended.mapping);
            if !self.by_programs.has(number) && self.by_others.insert(number) {
                self.pass_on(now, number, ended);
            }
        }
        if let (Some(log), false) = (&self.log, ended.is_empty()) {
            lock(log).removed();
        }
    }

    fn lost_track(&mut self, most: usize) {
        if let Some(log) = &self.log {
            lock(log).lost_track(most);
        }
    }

    fn passed(&mut self, begun: u32) {
        // Those that programs have ended meanwhile, the pass may not have seen.
        self.take();
        if let Some(log) = &self.log {
            lock(log).passed(begun);
        }
    }
}

/// Returns the event about a mapping.
fn event(ended: &EndedMapping) -> Ended {
    let Identity {
        tuple,
        addr,
        id,
        created,
    } = ended.mapping;
    Ended {
        ends: Both {
            protocol: tuple.proto,
            pod: end(tuple.src, tuple.src_id),
            to: end(tuple.dst, tuple.dst_id),
            seen_as: end(addr, id),
        },
        why: ended.why,
        age: seconds(age(ended.at, created)),
        packets: ended.packets,
        bytes: ended.bytes,
    }
}

/// The numbers that were added last.
#[derive(Default)]
struct Remembered {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Remembered {
    fn has(&self, number: u64) -> bool {
        self.set.contains(&number)
    }

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
