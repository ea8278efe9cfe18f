//! Ends mappings whose time has come.
//!
//! A mapping's time is the later of what its two halves saw. Whatever is swept
//! had been silent for its whole timeout: no live flow is ever collected.

mod accounts;
mod fate;
mod pass;
mod replies;
mod schedule;
mod sticky;

use super::maps::Maps;
use anyhow::{Context as _, Result};
use fate::Fate;
use netdp_common::conntrack::{TICK_SHIFT, age, ticks};
use netdp_common::siphash;
use netdp_common::timeouts::Timeouts;
use netdp_common::tuple::Tuple;
use pass::Pass;
use replies::Replies;
use schedule::{Rest, Schedule};
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sticky::Sticky;

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Mappings that live on.
    pub live: usize,
    /// Mappings that ended by time.
    pub expired: usize,
    /// Mappings that ended because their node address is gone.
    pub address_gone: usize,
    /// Mappings that ended because the policy would not make them any more.
    pub retired: usize,
    /// Mappings that ended to make room.
    pub made_room: usize,
    /// Whether the tables were nearly full.
    pub pressure: bool,
    /// Mappings of which one half was missing and was made again.
    pub repaired: usize,
    /// Tuples that are reserved for the node's own flows.
    pub host: usize,
    /// The epoch of the settings in which no mapping was found whose
    /// destination the policy bypasses, for [`super::Datapath::settle`].
    pub none_sticky: Option<u32>,
    /// It was told to stop and has not seen everything.
    pub stopped: bool,
}

/// What ends a mapping.
#[derive(Debug, Clone)]
pub struct SweepRules {
    /// Idle times.
    pub timeouts: Timeouts,
    /// The node's addresses: a mapping to another one is over.
    pub local: BTreeSet<IpAddr>,
    /// Idle time after which mappings that the policy in force would not make
    /// any more end; `None` lets them live.
    pub retire: Option<Duration>,
    /// Becomes true when these rules are out of date: then the sweep ends no
    /// more mappings.
    pub stop: Arc<AtomicBool>,
    /// Becomes true when the node has got addresses that are not in `local`: then
    /// the sweep ends none for its address.
    pub grown: Arc<AtomicBool>,
}

impl SweepRules {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// The datapath's clock now, in ticks.
pub(super) fn now(maps: &Maps) -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    let ticks = (nanos >> TICK_SHIFT) & i128::from(u32::MAX);
    Ok(u32::try_from(ticks)?.wrapping_add(maps.settings()?.clock_offset))
}

/// CPU time of this thread so far.
fn cpu_time() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("reading the thread's CPU time")?;
    Ok(Duration::from(time))
}

/// How full the tables may get, in percent, before mappings that can be spared
/// make room, all of them.
const PRESSURE_PERCENT: usize = 85;
/// How full those that have closed leave them then: where thousands of connections
/// end each second, room is not to be made all the time.
const CLOSED_PERCENT: usize = 50;
/// How full those leave them for which nothing came back.
const UNANSWERED_PERCENT: usize = 75;

/// How many mappings may be left when room is made.
pub struct Room {
    /// Closed ones end as long as there are more.
    closed: usize,
    /// So do unanswered ones.
    unanswered: usize,
    /// So do those that may still have a packet under way.
    others: usize,
}

impl Room {
    /// How many mappings that can be spared end of `live` ones, where the first
    /// `closed` of them have closed, and the first `unanswered` have or had no answer.
    fn ending(&self, live: usize, closed: usize, unanswered: usize) -> usize {
        let surplus = |limit| live.saturating_sub(limit);
        let closed = closed.min(surplus(self.closed));
        let unanswered = unanswered.min(surplus(self.unanswered));
        closed.max(unanswered).max(surplus(self.others))
    }
}

/// Seconds between looks at inbound flows.
const INBOUND_SECONDS: u64 = 30;

/// How many mappings are looked up before those among them that end are removed.
const LOOKED_UP_AT_ONCE: usize = 256;

/// A full sweep that is cheaper than this is done whenever one is asked for.
const CHEAP: Duration = Duration::from_millis(20);

/// Ends mappings and live inbound flows. It has the maps open by itself, so that it can
/// work on a thread of its own, and writes the mapping tables, the live inbound flows, what
/// has ended of each share, and the maps of used ports.
pub struct Sweeper {
    maps: Maps,
    /// How many mappings there is room for.
    capacity: usize,
    schedule: Schedule,
    rest: Rest,
    /// The node's, by which pods are counted.
    secret: siphash::Key,
    /// When inbound flows were looked at last, in ticks.
    inbound_at: Option<u32>,
}

impl Sweeper {
    /// Opens the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// A map is missing or not what it should be.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let maps = Maps::open(bpffs)?;
        Ok(Self {
            capacity: maps.capacity()?,
            secret: maps.limits()?.secret,
            maps,
            schedule: Schedule::default(),
            rest: Rest::new(Instant::now()),
            inbound_at: None,
        })
    }

    /// How many mappings may have been made, ever, until the tables may be nearly
    /// full and want another sweep. `None` where the last could not make room: then
    /// another would not either.
    pub fn full_at(&self) -> Option<u64> {
        self.schedule.full_at(self.limit())
    }

    /// How long until another full sweep may come to make room.
    pub fn rest(&self) -> Duration {
        self.rest.left(Instant::now())
    }

    /// How many mappings are nearly too many.
    fn limit(&self) -> usize {
        self.capacity * PRESSURE_PERCENT / 100
    }

    /// Mappings that lived at the last look at all of them.
    pub fn live(&self) -> usize {
        self.schedule.population().0
    }

    /// Seconds between full sweeps, after what the last one cost.
    pub fn interval(&self, rules: &SweepRules) -> u64 {
        self.schedule.interval(rules.timeouts.shortest_renewed())
    }

    /// What is due now, for use every few seconds: everything, or where there
    /// are many mappings mostly those that may have ended; then [`Swept`]
    /// counts only those.
    ///
    /// # Errors
    /// A map could not be read or changed.
    pub fn some(&mut self, rules: &SweepRules) -> Result<Swept> {
        let now = now(&self.maps)?;
        let next = self.schedule.next(now, rules.timeouts.shortest());
        if next.full || (self.rest().is_zero() && self.crowded()?) {
            let swept = self.all(rules);
            if !matches!(&swept, Ok(swept) if !swept.stopped) {
                self.schedule.again(now, at_once(&next.due));
            }
            return swept;
        }
        let mut swept = Swept::default();
        if next.recent {
            match self.recent(rules) {
                Ok(found) => swept = found,
                Err(err) => {
                    self.schedule.again(now, at_once(&next.due));
                    return Err(err);
                }
            }
        }
        let mut pass = Pass::new(now, self.secret, rules, u64::from(u32::MAX));
        let mut again = Vec::new();
        let mut unseen = &next.due[..];
        let mut result = Ok(());
        while !unseen.is_empty() && result.is_ok() {
            if rules.stopped() {
                pass.swept.stopped = true;
                break;
            }
            let (due, rest) = unseen.split_at(unseen.len().min(LOOKED_UP_AT_ONCE));
            result = self.look_at(&mut pass, due, &mut again);
            if result.is_ok() {
                unseen = rest;
            }
        }
        result = result.and(pass.settle(&mut self.maps, false));
        // What was not looked at is due again.
        again.extend(at_once(unseen));
        self.schedule.again(now, again);
        result?;
        let due = pass.swept;
        self.schedule
            .ended(due.expired + due.address_gone + due.retired);
        if next.recent {
            swept.expired += due.expired;
            swept.address_gone += due.address_gone;
            swept.retired += due.retired;
            swept.stopped |= due.stopped;
            return Ok(swept);
        }
        Ok(due)
    }

    /// Ends those of some mappings that are over; the others go to `again`, with
    /// the ticks that they have left.
    fn look_at(
        &self,
        pass: &mut Pass<'_>,
        due: &[Tuple],
        again: &mut Vec<(u32, Tuple)>,
    ) -> Result<()> {
        let mut ended = HashSet::new();
        for tuple in due {
            let Ok(half) = self.maps.snat.get(tuple, 0) else {
                continue;
            };
            let wire = tuple.reply_to(half.addr, half.id);
            let fate = pass.fate(&self.maps, tuple, &half, || {
                self.maps.rev_snat.get(&wire, 0).ok()
            })?;
            match fate {
                Fate::Lives(left) => {
                    again.push((u32::try_from(left).unwrap_or(u32::MAX), *tuple));
                }
                // Listed twice it ends once.
                _ if !ended.insert(*tuple) => continue,
                _ => {}
            }
            pass.note(&fate, tuple, &wire, &half);
        }
        pass.remove_ended(&self.maps)
    }

    /// Ends at once what a lost address or a changed policy ends; where that is
    /// cheap, everything that is over.
    ///
    /// # Errors
    /// A map could not be read or changed.
    pub fn changed(&mut self, rules: &SweepRules) -> Result<Swept> {
        if self.schedule.cost().is_none_or(|cost| cost < CHEAP) {
            return self.all(rules);
        }
        let swept = self.recent(rules)?;
        if self.schedule.next_is_full(now(&self.maps)?) {
            return self.all(rules);
        }
        Ok(swept)
    }

    /// Looks at every original half: ends what a lost address or the policy
    /// ends, and takes mappings into the schedule that were made since the last
    /// such look. Of older ones the schedule knows.
    ///
    /// # Errors
    /// A map could not be read or changed.
    pub fn recent(&mut self, rules: &SweepRules) -> Result<Swept> {
        self.resting(|sweeper, _| sweeper.look_for_recent(rules))
    }

    fn look_for_recent(&mut self, rules: &SweepRules) -> Result<Swept> {
        let created = self.maps.counters()?.mappings_created;
        let now = now(&self.maps)?;
        let mut pass = Pass::new(now, self.secret, rules, self.schedule.remaining(now));
        pass.looked = self.schedule.looked();
        let settings = self.maps.settings()?;
        pass.sticky = Sticky::look(settings.flags);
        pass.originals(&self.maps, &mut Replies::default())?;
        pass.settle(&mut self.maps, true)?;
        if pass.swept.stopped {
            return Ok(pass.swept);
        }
        self.schedule.looked_at(now);
        self.schedule.again(now, std::mem::take(&mut pass.due));
        self.schedule.populate(pass.swept.live, created);
        pass.tell(&self.maps, settings.epoch)
    }

    /// Goes once through all mappings.
    ///
    /// # Errors
    /// A map could not be read or changed.
    pub fn all(&mut self, rules: &SweepRules) -> Result<Swept> {
        self.resting(|sweeper, start| sweeper.go_through(rules, start))
    }

    /// Does what is told the thread's CPU time so far, and rests for it.
    fn resting(
        &mut self,
        work: impl FnOnce(&mut Self, Duration) -> Result<Swept>,
    ) -> Result<Swept> {
        let (begun, start) = (Instant::now(), cpu_time()?);
        let swept = work(self, start);
        self.rest.worked(begun, cpu_time()?.saturating_sub(start));
        swept
    }

    fn go_through(&mut self, rules: &SweepRules, start: Duration) -> Result<Swept> {
        let mut created = self.maps.counters()?.mappings_created;
        let limit = self.limit();
        let interval = self.interval(rules);
        let settings = self.maps.settings()?;
        let begun = now(&self.maps)?;
        let mut pass = Pass::new(begun, self.secret, rules, ticks(interval));
        pass.sticky = Sticky::look(settings.flags);
        let mut replies = pass.replies(&self.maps)?;
        pass.originals(&self.maps, &mut replies)?;
        let crowded = pass.swept.live + replies.host > self.schedule.limit(limit);
        if crowded && !pass.swept.stopped {
            created = self.maps.counters()?.mappings_created;
            pass = self.relieve(rules, pass, &mut replies)?;
        }
        if pass.swept.stopped {
            pass.settle(&mut self.maps, false)?;
            return Ok(pass.swept);
        }
        pass.finish(&mut self.maps, &mut replies)?;
        pass.settle(&mut self.maps, true)?;
        self.inbound(begun)?;
        let due = std::mem::take(&mut pass.due);
        let cost = cpu_time()?.saturating_sub(start);
        self.schedule.swept(begun, cost, interval, due);
        self.schedule.populate(pass.swept.live, created);
        self.schedule.reserve(pass.swept.host);
        self.schedule
            .relieved(crowded, self.schedule.taken(), limit, self.capacity);
        pass.tell(&self.maps, settings.epoch)
    }

    /// Ends live inbound flows, at times.
    fn inbound(&mut self, now: u32) -> Result<()> {
        let since = self.inbound_at.map(|at| u64::from(age(now, at)));
        if since.is_none_or(|since| since >= ticks(INBOUND_SECONDS)) {
            self.maps.sweep_inbound(now)?;
            self.inbound_at = Some(now);
        }
        Ok(())
    }

    /// Once more, looking at both halves of every mapping, to make room.
    fn relieve<'a>(
        &self,
        rules: &'a SweepRules,
        before: Pass<'a>,
        replies: &mut Replies,
    ) -> Result<Pass<'a>> {
        let mut pass = before.once_more(rules);
        pass.sticky = Sticky::look(self.maps.settings()?.flags);
        *replies = pass.replies(&self.maps)?;
        pass.originals(&self.maps, replies)?;
        if !pass.swept.stopped {
            let room =
                |percent: usize| (self.capacity * percent / 100).saturating_sub(replies.host);
            let room = Room {
                closed: room(CLOSED_PERCENT),
                unanswered: room(UNANSWERED_PERCENT),
                others: room(PRESSURE_PERCENT),
            };
            pass.relieve(&self.maps, &room)?;
        }
        Ok(pass)
    }

    /// Whether the tables may have become nearly full since the last look.
    fn crowded(&self) -> Result<bool> {
        let (_, created) = self.schedule.population();
        let more = self
            .maps
            .counters()?
            .mappings_created
            .saturating_sub(created);
        let taken = self.schedule.taken() + usize::try_from(more)?;
        Ok(taken > self.schedule.limit(self.limit()))
    }
}

/// Mappings to be looked at as soon as possible.
fn at_once(due: &[Tuple]) -> Vec<(u32, Tuple)> {
    due.iter().map(|tuple| (0, *tuple)).collect()
}

#[cfg(test)]
mod tests {
    use super::Room;

    #[test]
    fn room_is_made_of_what_nobody_misses_as_far_as_that_goes() {
        let room = Room {
            closed: 50,
            unanswered: 75,
            others: 85,
        };
        // All are old and have closed.
        assert_eq!(room.ending(90, 90, 90), 40);
        // Few have closed, few had no answer for long.
        assert_eq!(room.ending(90, 3, 10), 10);
        assert_eq!(room.ending(90, 3, 60), 15);
        // Most live, the others are young: no more than has to be.
        assert_eq!(room.ending(86, 0, 0), 1);
        assert_eq!(room.ending(85, 0, 0), 0);
    }
}
