//! The sweep: ends mappings that have timed out.
//!
//! A mapping's last packet is the later of the ones recorded in its two halves. Every swept mapping
//! has been silent for its whole timeout: no live flow is ever collected.

mod accounts;
mod fate;
mod pass;
mod replies;
mod schedule;
mod sticky;

use super::maps::Maps;
use anyhow::{Context as _, Result};
use fate::Fate;
use netdp_common::flow::{TICK_SHIFT, Timeouts, age, ticks};
use netdp_common::layout::{Secret, Tuple};
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

/// Result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Mappings that are kept.
    pub live: usize,
    /// Mappings that have timed out.
    pub expired: usize,
    /// Mappings that ended because their node address is gone.
    pub address_gone: usize,
    /// Mappings that ended because the policy would not create them any more.
    pub retired: usize,
    /// Mappings that were evicted.
    pub made_room: usize,
    /// True if the tables were nearly full.
    pub pressure: bool,
    /// Mappings with a missing half, which was restored.
    pub repaired: usize,
    /// Reservations for the node's own flows.
    pub host: usize,
    /// The epoch of the settings in which no mapping was found whose destination the policy
    /// bypasses, for [`super::Datapath::settle`].
    pub none_sticky: Option<u32>,
    /// True if it was stopped before it had seen everything.
    pub stopped: bool,
}

/// Rules by which mappings end.
#[derive(Debug, Clone)]
pub struct SweepRules {
    /// Timeouts of idle mappings.
    pub timeouts: Timeouts,
    /// Addresses of the node: a mapping with another one ends.
    pub local: BTreeSet<IpAddr>,
    /// Idle time after which mappings end that the policy in force would not create any more;
    /// `None`: never.
    pub retire: Option<Duration>,
    /// Becomes true when these rules are out of date: from then on the sweep ends no more mappings.
    pub stop: Arc<AtomicBool>,
    /// Becomes true when the node has addresses that are not in `local`: from then on the sweep
    /// ends no mapping for its address.
    pub grown: Arc<AtomicBool>,
}

impl SweepRules {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Returns the datapath's clock, in ticks.
pub(super) fn now(maps: &Maps) -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    let ticks = (nanos >> TICK_SHIFT) & i128::from(u32::MAX);
    Ok(u32::try_from(ticks)?.wrapping_add(maps.settings()?.clock_offset))
}

/// Returns the CPU time of this thread so far.
fn cpu_time() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("reading the thread's CPU time")?;
    Ok(Duration::from(time))
}

/// Usage of the tables, in percent, above which evictable mappings of all kinds are evicted.
const PRESSURE_PERCENT: usize = 85;
/// Usage of the tables, in percent, down to which closed mappings are evicted then: where thousands
/// of connections end each second, evictions must not be needed all the time.
const CLOSED_PERCENT: usize = 50;
/// Usage of the tables, in percent, down to which unanswered mappings are evicted.
const UNANSWERED_PERCENT: usize = 75;

/// Targets of an eviction, as numbers of mappings left.
pub struct Room {
    /// Closed mappings are evicted while more are left than this.
    closed: usize,
    /// Unanswered mappings are evicted while more are left than this.
    unanswered: usize,
    /// Evictable mappings that may still have a packet in flight are evicted while more are left
    /// than this.
    others: usize,
}

impl Room {
    /// Returns how many of `live` mappings to evict, where the first `closed` of the evictable ones
    /// are closed, and the first `unanswered` are closed or unanswered.
    fn ending(&self, live: usize, closed: usize, unanswered: usize) -> usize {
        let surplus = |limit| live.saturating_sub(limit);
        let closed = closed.min(surplus(self.closed));
        let unanswered = unanswered.min(surplus(self.unanswered));
        closed.max(unanswered).max(surplus(self.others))
    }
}

/// Seconds between two sweeps of the inbound flows.
const INBOUND_SECONDS: u64 = 30;

/// Mappings that are looked up before those among them that end are removed.
const LOOKED_UP_AT_ONCE: usize = 256;

/// CPU time below which a full sweep is run whenever one is requested.
const CHEAP: Duration = Duration::from_millis(20);

/// Ends mappings and live inbound flows. It opens the maps itself, so that it can run on a thread
/// of its own, and writes the mapping tables, the live inbound flows, the ended mappings of each
/// share, and the maps of used ports.
pub struct Sweeper {
    maps: Maps,
    /// Capacity of the mapping tables, in mappings.
    capacity: usize,
    schedule: Schedule,
    rest: Rest,
    /// Secret key of the node, by which buckets are chosen.
    secret: Secret,
    /// Time of the last sweep of inbound flows, in ticks.
    inbound_at: Option<u32>,
}

impl Sweeper {
    /// Opens the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if a map is missing or has another type or size.
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

    /// Returns the total number of created mappings at which the tables may be nearly full and need
    /// another sweep. `None` if the last one could not evict enough: then another would not either.
    pub fn full_at(&self) -> Option<u64> {
        self.schedule.full_at(self.limit())
    }

    /// Returns the time until another full sweep may run to evict mappings.
    pub fn rest(&self) -> Duration {
        self.rest.left(Instant::now())
    }

    /// Returns the number of mappings above which the tables are nearly full.
    fn limit(&self) -> usize {
        self.capacity * PRESSURE_PERCENT / 100
    }

    /// Returns the number of mappings that lived at the last full sweep.
    pub fn live(&self) -> usize {
        self.schedule.population().0
    }

    /// Returns the seconds between full sweeps, according to the cost of the last one.
    pub fn interval(&self, rules: &SweepRules) -> u64 {
        self.schedule.interval(rules.timeouts.shortest_renewed())
    }

    /// Runs the part of the sweep that is due, to be called every few seconds: a full sweep or,
    /// with many mappings, mostly those that may have timed out; then [`Swept`] counts only those.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
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
        // Mappings that were not reached are due again.
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

    /// Ends those of some mappings that have timed out; the others are appended to `again`, with
    /// their remaining ticks.
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
                // A mapping that is listed twice ends once.
                _ if !ended.insert(*tuple) => continue,
                _ => {}
            }
            pass.note(&fate, tuple, &wire, &half);
        }
        pass.remove_ended(&self.maps)
    }

    /// Ends at once the mappings of lost addresses or of a changed policy; if that is cheap, all
    /// that have timed out.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
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

    /// Scans every original half: ends the mappings of lost addresses or of a changed policy, and
    /// adds mappings to the schedule that were created since the last such scan. Older ones are in
    /// the schedule already.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
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

    /// Scans all mappings once.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn all(&mut self, rules: &SweepRules) -> Result<Swept> {
        self.resting(|sweeper, start| sweeper.go_through(rules, start))
    }

    /// Runs work that is passed the thread's CPU time so far, and accounts for the pause after it.
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

    /// Ends live inbound flows, every [`INBOUND_SECONDS`].
    fn inbound(&mut self, now: u32) -> Result<()> {
        let since = self.inbound_at.map(|at| u64::from(age(now, at)));
        if since.is_none_or(|since| since >= ticks(INBOUND_SECONDS)) {
            self.maps.sweep_inbound(now)?;
            self.inbound_at = Some(now);
        }
        Ok(())
    }

    /// Scans both halves of every mapping once more, to evict.
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

    /// Reports whether the tables may have become nearly full since the last scan.
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

/// Returns mappings as due as soon as possible.
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
        // All are old and closed.
        assert_eq!(room.ending(90, 90, 90), 40);
        // Few are closed, few have been unanswered for long.
        assert_eq!(room.ending(90, 3, 10), 10);
        assert_eq!(room.ending(90, 3, 60), 15);
        // Most live, the others are young: no more than necessary.
        assert_eq!(room.ending(86, 0, 0), 1);
        assert_eq!(room.ending(85, 0, 0), 0);
    }
}
