//! The sweeper: runs the passes that are due.

use super::clock::{cpu_time, now};
use super::pass::Pass;
use super::replies::Replies;
use super::schedule::{Cooldown, Schedule, Usage};
use super::stale::StaleMappings;
use super::tally::{Census, Meter, Peaks, PodChange, Scope};
use super::{SweepRules, SweepStats};
use crate::datapath::mapping_log::{SharedLog, lock};
use crate::datapath::maps::Maps;
use anyhow::Result;
use netdp_common::flow::age;
use netdp_common::flow::ticks;
use netdp_common::layout::Secret;
use netdp_common::layout::Tuple;
use netdp_common::sweep::{EvictionTargets, pressure_limit};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds between two sweeps of the inbound flows.
const INBOUND_SECONDS: u64 = 30;

/// Mappings that are looked up before those among them that end are removed.
const LOOKED_UP_AT_ONCE: usize = 256;

/// CPU time below which a full pass is run whenever one is requested.
const CHEAP: Duration = Duration::from_millis(20);

/// Ends mappings and live inbound flows. It opens the maps itself, so that it can run on a thread
/// of its own, and writes the mapping tables, the live inbound flows, the ended mappings of each
/// share, and the maps of used ports.
pub struct Sweeper {
    maps: Maps,
    /// Capacity of the mapping tables, in mappings.
    capacity: usize,
    schedule: Schedule,
    cooldown: Cooldown,
    /// Secret key of the node, by which buckets are chosen.
    secret: Secret,
    /// Time of the last sweep of inbound flows, in ticks.
    inbound_at: Option<u32>,
    /// Live inbound flows that it left.
    inbound: usize,
    /// Counts for metrics, if they are wanted.
    meter: Option<Meter>,
    /// Whoever is told of mappings.
    log: Option<SharedLog>,
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
            cooldown: Cooldown::new(Instant::now()),
            inbound_at: None,
            inbound: 0,
            meter: None,
            log: None,
        })
    }

    /// Counts for metrics from now on.
    ///
    /// # Errors
    /// Returns an error if the clock can't be read.
    pub(crate) fn count(&mut self) -> Result<()> {
        self.meter = Some(Meter::new(now(&self.maps)?));
        Ok(())
    }

    /// Takes what was counted, if a full pass has ended since the last time.
    pub(crate) fn take_counts(&mut self) -> Option<(Census, HashMap<IpAddr, PodChange>)> {
        self.meter.as_mut()?.take()
    }

    /// Takes the most mappings of each destination that passes have seen, if a full pass or a scan has
    /// ended since the last time.
    pub(crate) fn take_peaks(&mut self) -> Option<Peaks> {
        self.meter.as_mut()?.take_peaks()
    }

    /// Tells `log`, from now on, which mappings live and which end.
    pub(crate) fn tell(&mut self, log: SharedLog) {
        self.log = Some(log);
    }

    /// Returns the maps, for reading.
    pub(crate) const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Returns the total number of created mappings at which the tables may be nearly full and need
    /// another sweep; `None` if hardly any place is free.
    pub fn pressure_at(&self) -> Option<u64> {
        self.schedule.pressure_at(self.limit())
    }

    /// Returns the time until another full pass may run to evict mappings.
    pub fn cooldown(&self) -> Duration {
        self.cooldown.remaining(Instant::now())
    }

    /// Returns the number of live inbound flows, as of their last sweep.
    pub(crate) const fn inbound(&self) -> usize {
        self.inbound
    }

    /// Returns the number of mappings above which the tables are nearly full.
    const fn limit(&self) -> usize {
        pressure_limit(self.capacity)
    }

    /// Returns the number of mappings that lived at the last full pass.
    pub fn live(&self) -> usize {
        self.schedule.population().0
    }

    /// Returns the seconds between full passes, according to the cost of the last one.
    pub fn interval(&self, rules: &SweepRules) -> u64 {
        self.schedule.interval(rules.timeouts.shortest_renewed())
    }

    /// Runs what is due, to be called every few seconds: a full pass or, with many mappings, mostly
    /// the check of those that may have timed out; then [`SweepStats`] counts only those.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn run_due(&mut self, rules: &SweepRules) -> Result<SweepStats> {
        let now = now(&self.maps)?;
        let due = self.schedule.take_due(now, rules.timeouts.shortest());
        if due.full || (self.cooldown().is_zero() && self.is_nearly_full()?) {
            let stats = self.run_full(rules);
            if !matches!(&stats, Ok(stats) if !stats.stopped) {
                self.schedule.add(now, at_once(&due.mappings));
            }
            return stats;
        }
        if !due.scan {
            return self.end_due(rules, now, &due.mappings);
        }
        match self.scan_new(rules) {
            Ok(mut stats) => {
                stats.add_ended(&self.end_due(rules, now, &due.mappings)?);
                Ok(stats)
            }
            Err(err) => {
                self.schedule.add(now, at_once(&due.mappings));
                Err(err)
            }
        }
    }

    /// Ends at once the mappings of lost addresses or of a changed policy; if that is cheap, all
    /// that have timed out.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn run_after_change(&mut self, rules: &SweepRules) -> Result<SweepStats> {
        if self.schedule.cost().is_none_or(|cost| cost < CHEAP) {
            return self.run_full(rules);
        }
        let stats = self.scan_new(rules)?;
        if self.schedule.is_full_due(now(&self.maps)?) {
            return self.run_full(rules);
        }
        Ok(stats)
    }

    /// Scans all mappings once.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn run_full(&mut self, rules: &SweepRules) -> Result<SweepStats> {
        self.with_cooldown(|sweeper, start| sweeper.full_pass(rules, start))
    }

    /// Scans every original half: ends the mappings of lost addresses or of a changed policy, and
    /// adds mappings to the schedule that were created since the last such scan. Older ones are in
    /// the schedule already.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn scan_new(&mut self, rules: &SweepRules) -> Result<SweepStats> {
        self.with_cooldown(|sweeper, _| sweeper.scan_pass(rules))
    }

    /// Runs a pass, which is given the thread's CPU time so far, and sets the cooldown after it.
    fn with_cooldown(
        &mut self,
        pass: impl FnOnce(&mut Self, Duration) -> Result<SweepStats>,
    ) -> Result<SweepStats> {
        let (begun, start) = (Instant::now(), cpu_time()?);
        let stats = pass(self, start);
        let cost = cpu_time()?.saturating_sub(start);
        self.cooldown.extend(begun, cost);
        stats
    }

    fn full_pass(&mut self, rules: &SweepRules, start: Duration) -> Result<SweepStats> {
        let mut created = self.maps.counters()?.mappings_created;
        let limit = self.limit();
        let interval = self.interval(rules);
        let settings = self.maps.settings()?;
        let begun = now(&self.maps)?;
        let mut pass =
            Pass::new(begun, self.secret, rules, ticks(interval)).telling(self.log.as_ref());
        pass.stale = StaleMappings::collect(settings.flags);
        pass.tally = self.meter.as_ref().map(|it| it.tally(Scope::Full, begun));
        let mut replies = pass.read_replies(&self.maps)?;
        pass.scan_originals(&self.maps, &mut replies)?;
        let evicts = pass.stats.live + replies.reservations > self.schedule.threshold(limit);
        if evicts && !pass.stats.stopped {
            created = self.maps.counters()?.mappings_created;
            pass = self.eviction_pass(pass, &mut replies)?;
        }
        if pass.stats.stopped {
            pass.correct_counts(&mut self.maps)?;
            self.take_in(&mut pass);
            return Ok(pass.stats);
        }
        if let Some(tally) = &mut pass.tally {
            tally.census.reservations = replies.reservations;
            tally.census.carried = replies.carried.count();
        }
        pass.finish(&mut self.maps, &mut replies)?;
        self.passed(begun);
        pass.correct_all_counts(&mut self.maps)?;
        self.take_in(&mut pass);
        self.sweep_inbound(begun)?;
        let due = std::mem::take(&mut pass.due);
        let cost = cpu_time()?.saturating_sub(start);
        self.schedule.record_full(begun, cost, interval, due);
        self.schedule.set_population(pass.stats.live, created);
        self.schedule.set_reservations(pass.stats.reservations);
        let usage = Usage {
            used: self.schedule.used(),
            limit,
            capacity: self.capacity,
        };
        if evicts {
            self.schedule.record_eviction(&usage);
        } else {
            self.schedule.record_usage(&usage);
        }
        pass.into_stats(&self.maps, settings.epoch)
    }

    /// Tells the log that a pass that began at a time has seen every mapping.
    fn passed(&self, begun: u32) {
        if let Some(log) = &self.log {
            lock(log).passed(begun);
        }
    }

    /// Scans both halves of every mapping once more, and evicts.
    fn eviction_pass<'a>(&self, before: Pass<'a>, replies: &mut Replies) -> Result<Pass<'a>> {
        let mut pass = before.restart_to_evict();
        pass.stale = StaleMappings::collect(self.maps.settings()?.flags);
        *replies = pass.read_replies(&self.maps)?;
        pass.scan_originals(&self.maps, replies)?;
        if !pass.stats.stopped {
            let targets = EvictionTargets::new(self.capacity, replies.reservations);
            pass.evict(&self.maps, &targets)?;
        }
        Ok(pass)
    }

    fn scan_pass(&mut self, rules: &SweepRules) -> Result<SweepStats> {
        let created = self.maps.counters()?.mappings_created;
        let now = now(&self.maps)?;
        let mut pass = Pass::new(now, self.secret, rules, self.schedule.remaining(now))
            .telling(self.log.as_ref());
        pass.conditions.scheduled_before = self.schedule.last_scan();
        let settings = self.maps.settings()?;
        pass.stale = StaleMappings::collect(settings.flags);
        pass.tally = (self.meter.as_ref()).map(|it| it.tally(Scope::Originals, now));
        pass.scan_originals(&self.maps, &mut Replies::default())?;
        pass.correct_all_counts(&mut self.maps)?;
        self.take_in(&mut pass);
        if pass.stats.stopped {
            return Ok(pass.stats);
        }
        self.passed(now);
        self.schedule.record_scan(now);
        self.schedule.add(now, std::mem::take(&mut pass.due));
        self.schedule.set_population(pass.stats.live, created);
        pass.into_stats(&self.maps, settings.epoch)
    }

    /// Ends those of the due mappings that have timed out; the others, and those that are not
    /// reached, are added to the schedule again.
    fn end_due(&mut self, rules: &SweepRules, now: u32, due: &[Tuple]) -> Result<SweepStats> {
        let mut pass =
            Pass::new(now, self.secret, rules, u64::from(u32::MAX)).telling(self.log.as_ref());
        pass.tally = self.meter.as_ref().map(|it| it.tally(Scope::Due, now));
        let mut unseen = due;
        let mut result = Ok(());
        while !unseen.is_empty() && result.is_ok() {
            if rules.stopped() {
                pass.stats.stopped = true;
                break;
            }
            let (some, rest) = unseen.split_at(unseen.len().min(LOOKED_UP_AT_ONCE));
            result = pass.check(&self.maps, some);
            if result.is_ok() {
                unseen = rest;
            }
        }
        result = result.and(pass.correct_counts(&mut self.maps));
        let mut again = std::mem::take(&mut pass.due);
        again.extend(at_once(unseen));
        self.schedule.add(now, again);
        self.take_in(&mut pass);
        result?;
        let stats = pass.stats;
        self.schedule
            .subtract(stats.expired + stats.address_gone + stats.retired);
        Ok(stats)
    }

    /// Takes in what a pass has counted for metrics.
    fn take_in(&mut self, pass: &mut Pass<'_>) {
        if let (Some(meter), Some(tally)) = (&mut self.meter, pass.tally.take()) {
            meter.take_in(tally, !pass.stats.stopped);
        }
    }

    /// Ends live inbound flows, every [`INBOUND_SECONDS`].
    fn sweep_inbound(&mut self, now: u32) -> Result<()> {
        let since = self.inbound_at.map(|at| u64::from(age(now, at)));
        if since.is_none_or(|since| since >= ticks(INBOUND_SECONDS)) {
            self.inbound = self.maps.sweep_inbound(now)?;
            self.inbound_at = Some(now);
        }
        Ok(())
    }

    /// Reports whether the tables may have become nearly full since the last scan.
    fn is_nearly_full(&self) -> Result<bool> {
        let (_, created) = self.schedule.population();
        let more = self
            .maps
            .counters()?
            .mappings_created
            .saturating_sub(created);
        let used = self.schedule.used() + usize::try_from(more)?;
        Ok(used > self.schedule.threshold(self.limit()))
    }
}

/// Returns mappings as due as soon as possible.
fn at_once(due: &[Tuple]) -> Vec<(u32, Tuple)> {
    due.iter().map(|tuple| (0, *tuple)).collect()
}
