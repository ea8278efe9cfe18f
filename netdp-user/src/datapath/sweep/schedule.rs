//! The schedule of full passes, and of single mappings in between.
//!
//! A full pass over a million mappings takes about a second of CPU, so it can't run every few
//! seconds. It leaves a list of the mappings that may end before the next one, with the time; in
//! between only those are looked up when their time has come. Other mappings that it saw outlive
//! the next full pass, whatever packets arrive: it comes before the shortest timeout that a packet
//! can give a mapping. (A RST gives no time; a mapping that it ends after long silence may stay
//! until the next full pass.) Newer ones are found by a scan of the original halves alone, once in
//! the shortest of all timeouts: none can have ended sooner.

use netdp_common::flow::age;
use netdp_common::flow::ticks;
use netdp_common::layout::Tuple;
use netdp_common::sweep::retry_threshold;
use std::time::{Duration, Instant};

/// Seconds between full passes over small tables.
const SHORTEST: u64 = 5;

/// Maximum share of a core for full passes: one part in this many.
const SHARE: u32 = 100;

/// Maximum share of a core for evictions, if places are short, however full the tables are: one
/// part in this many.
const EVICTION_SHARE: u32 = 4;

/// The pause before a pass that evicts, determined by earlier passes, complete or not.
#[derive(Debug)]
pub struct Cooldown {
    until: Instant,
}

impl Cooldown {
    /// Returns no pause, before the first pass.
    pub fn new(now: Instant) -> Self {
        Self { until: now }
    }

    /// Extends the pause for a pass that began at `begun` and took `cost` of CPU time.
    pub fn extend(&mut self, begun: Instant, cost: Duration) {
        self.until = self.until.max(begun + cost * EVICTION_SHARE);
    }

    /// Returns the remaining pause.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

/// Work that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Run a full pass; the other fields do not matter then.
    pub full: bool,
    /// Scan for mappings that were created since the last scan.
    pub scan: bool,
    /// Mappings to look up.
    pub mappings: Vec<Tuple>,
}

/// Usage of the mapping tables after a full pass, in places.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Places in use.
    pub used: usize,
    /// Places in use above which the tables are nearly full.
    pub limit: usize,
    /// All places.
    pub capacity: usize,
}

/// The schedule until the next full pass.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Time of the last full pass, and ticks from it to the next.
    last_full: Option<(u32, u32)>,
    /// Time of the last scan of all original halves, in ticks.
    last_scan: u32,
    /// Ticks after `last_full` at which mappings may end; the latest first.
    due: Vec<(u32, Tuple)>,
    /// CPU time of the last full pass.
    cost: Duration,
    /// Number of mappings left by the last scan, and the total number of mappings created by then.
    population: (usize, u64),
    /// Number of places in use at which eviction is retried, if it could not free enough.
    retry_threshold: Option<usize>,
    /// Number of reservations for the node's own flows that the last full pass left.
    reservations: usize,
}

impl Schedule {
    /// Returns the seconds from a full pass that begins now to the next: long enough to be
    /// affordable, never longer than the shortest timeout that a packet can give a mapping.
    pub fn interval(&self, shortest_renewed: u64) -> u64 {
        let affordable = (self.cost * SHARE).as_secs();
        affordable.min(shortest_renewed).max(SHORTEST)
    }

    /// Returns the CPU time of the last full pass, if there was one.
    pub fn cost(&self) -> Option<Duration> {
        self.last_full.map(|_| self.cost)
    }

    /// Records a full pass at `now` with the CPU time `cost`: the next one is after `interval`
    /// seconds, and the mappings in `due` may end that many ticks after `now`.
    pub fn record_full(&mut self, now: u32, cost: Duration, interval: u64, due: Vec<(u32, Tuple)>) {
        self.last_full = Some((now, u32::try_from(ticks(interval)).unwrap_or(u32::MAX)));
        self.last_scan = now;
        self.cost = cost;
        self.due = due;
        self.sort();
    }

    /// Records a scan of all original halves at `now`.
    pub fn record_scan(&mut self, now: u32) {
        self.last_scan = now;
    }

    /// Returns the time of the last scan of all original halves, if any.
    pub fn last_scan(&self) -> Option<u32> {
        self.last_full.map(|_| self.last_scan)
    }

    /// Reports whether a full pass is due.
    pub fn is_full_due(&self, now: u32) -> bool {
        // A timer that is a little early counts as on time.
        self.last_full
            .is_none_or(|(last, interval)| age(now, last) + 1 >= interval)
    }

    /// Returns the ticks until the next full pass.
    pub fn remaining(&self, now: u32) -> u64 {
        self.last_full.map_or(0, |(last, interval)| {
            interval.saturating_sub(age(now, last)).into()
        })
    }

    /// Takes the work that is due at `now`. `shortest` is the shortest timeout, in seconds.
    pub fn take_due(&mut self, now: u32, shortest: u64) -> Due {
        let full = self.is_full_due(now);
        let scan = u64::from(age(now, self.last_scan)) + 1 >= ticks(shortest);
        let mut mappings = Vec::new();
        if let Some((last, _)) = self.last_full
            && !full
        {
            let elapsed = age(now, last);
            let later = self.due.partition_point(|(at, _)| *at > elapsed);
            mappings = self.due.drain(later..).map(|(_, tuple)| tuple).collect();
        }
        Due {
            full,
            scan,
            mappings,
        }
    }

    /// Adds mappings, with the ticks after `now` at which they may end.
    pub fn add(&mut self, now: u32, more: Vec<(u32, Tuple)>) {
        let Some((last, interval)) = self.last_full else {
            return;
        };
        let elapsed = age(now, last);
        let more = more
            .into_iter()
            .map(|(remaining, tuple)| (remaining.saturating_add(elapsed), tuple))
            .filter(|(at, _)| *at < interval);
        self.due.extend(more);
        self.sort();
    }

    /// Returns the number of places in use that triggers eviction: `limit`, or the retry threshold.
    pub fn threshold(&self, limit: usize) -> usize {
        self.retry_threshold
            .map_or(limit, |threshold| threshold.max(limit))
    }

    /// Records the usage after a full pass that did not evict.
    pub fn record_usage(&mut self, usage: &Usage) {
        if usage.used <= usage.limit {
            self.retry_threshold = None;
        }
    }

    /// Records the usage after an eviction. If that could not free enough, it is retried at the
    /// [`retry_threshold`], not every few seconds.
    pub fn record_eviction(&mut self, usage: &Usage) {
        self.retry_threshold =
            (usage.used > usage.limit).then(|| retry_threshold(usage.used, usage.capacity));
    }

    /// Sets the number of reservations for the node's own flows that a full pass left.
    pub fn set_reservations(&mut self, reservations: usize) {
        self.reservations = reservations;
    }

    /// Returns the number of places in use, as of the last passes.
    pub fn used(&self) -> usize {
        self.population.0 + self.reservations
    }

    /// Sets the number of mappings that a pass left, and the total number created when it began.
    pub fn set_population(&mut self, live: usize, created: u64) {
        self.population = (live, created);
    }

    /// Subtracts mappings that have ended since.
    pub fn subtract(&mut self, ended: usize) {
        self.population.0 = self.population.0.saturating_sub(ended);
    }

    /// Returns the values of [`set_population`](Self::set_population), less the mappings that have
    /// ended since.
    pub fn population(&self) -> (usize, u64) {
        self.population
    }

    /// Returns the total number of created mappings at which more places may be in use than
    /// `limit`, or than the retry threshold if eviction could not free enough. `None` if hardly any
    /// place is free: eviction is tried every few seconds.
    pub fn pressure_at(&self, limit: usize) -> Option<u64> {
        let room = match self.retry_threshold {
            None => limit.saturating_sub(self.used()),
            Some(_) => self.threshold(limit).checked_sub(self.used())?,
        };
        Some(self.population.1 + u64::try_from(room).ok()?)
    }

    fn sort(&mut self) {
        self.due
            .sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
    }
}

#[cfg(test)]
mod tests {
    use super::{Cooldown, Due, Schedule, Usage};
    use netdp_common::flow::ticks;
    use netdp_common::layout::Addr;
    use netdp_common::layout::Tuple;
    use std::time::{Duration, Instant};

    fn tuple(id: u16) -> Tuple {
        let addr = Addr::from_v4([10, 0, 0, 1]);
        Tuple::new(addr, addr, id, 1, 6)
    }

    #[test]
    fn a_cheap_pass_comes_again_soon_and_an_expensive_one_later() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.interval(240), 5);
        schedule.record_full(0, Duration::from_millis(800), 5, Vec::new());
        assert_eq!(schedule.interval(240), 80);
        assert_eq!(schedule.interval(30), 30, "timeouts stay exact");
        assert_eq!(schedule.interval(1), 5);
    }

    #[test]
    fn a_pass_has_a_cooldown_according_to_its_cost() {
        let ms = Duration::from_millis;
        let begun = Instant::now();
        let mut cooldown = Cooldown::new(begun);
        assert_eq!(cooldown.remaining(begun), ms(0), "nothing was before");
        cooldown.extend(begun, ms(10));
        assert_eq!(cooldown.remaining(begun + ms(10)), ms(30), "as it ends");
        cooldown.extend(begun + ms(10), ms(1));
        assert_eq!(
            cooldown.remaining(begun + ms(39)),
            ms(1),
            "the longer one counts"
        );
        assert_eq!(cooldown.remaining(begun + ms(50)), ms(0));
    }

    fn due(tuples: &[Tuple]) -> Due {
        Due {
            full: false,
            scan: false,
            mappings: tuples.to_vec(),
        }
    }

    #[test]
    fn due_mappings_are_taken_once_between_full_passes() {
        let mut schedule = Schedule::default();
        assert!(schedule.take_due(7, 60).full);
        let start = u32::MAX - 20;
        let list = vec![(100, tuple(1)), (50, tuple(2)), (60, tuple(3))];
        schedule.record_full(start, Duration::ZERO, 60, list);
        assert_eq!(schedule.take_due(start.wrapping_add(49), 60), due(&[]));
        let now = start.wrapping_add(70);
        assert_eq!(schedule.take_due(now, 60), due(&[tuple(3), tuple(2)]));
        schedule.add(now, vec![(10, tuple(2)), (100_000, tuple(3))]);
        let now = start.wrapping_add(80);
        assert_eq!(schedule.take_due(now, 60), due(&[tuple(2)]));
        let end = start.wrapping_add(u32::try_from(ticks(60)).unwrap());
        assert!(schedule.take_due(end, 60).full);
    }

    #[test]
    fn a_scan_is_due_once_in_the_shortest_timeout() {
        let at = |seconds| u32::try_from(ticks(seconds)).unwrap();
        let mut schedule = Schedule::default();
        schedule.record_full(0, Duration::from_secs(2), 200, Vec::new());
        assert!(!schedule.take_due(at(55), 60).scan);
        assert!(schedule.take_due(at(60), 60).scan);
        schedule.record_scan(at(60));
        assert!(!schedule.take_due(at(115), 60).scan);
        assert!(schedule.take_due(at(120), 60).scan);
        assert_eq!(schedule.remaining(at(120)), ticks(200) - ticks(120));
        assert!(schedule.take_due(at(200), 60).full);
    }

    const fn usage(used: usize) -> Usage {
        Usage {
            used,
            limit: 850,
            capacity: 1000,
        }
    }

    #[test]
    fn an_insufficient_eviction_is_not_retried_all_the_time() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.threshold(850), 850);
        schedule.record_eviction(&usage(900));
        assert_eq!(schedule.threshold(850), 950, "half of what is left");
        schedule.record_usage(&usage(940));
        assert_eq!(schedule.threshold(850), 950);
        schedule.record_eviction(&usage(960));
        assert_eq!(schedule.threshold(850), 980);
        schedule.record_eviction(&usage(1000));
        assert!(
            schedule.threshold(850) < 1000,
            "eviction is retried in full tables"
        );
        schedule.set_population(1000, 5000);
        assert_eq!(schedule.pressure_at(850), None, "but not all the time");
        schedule.set_population(900, 5000);
        assert_eq!(
            schedule.pressure_at(850),
            Some(5084),
            "before all places are in use"
        );
        schedule.record_eviction(&usage(850));
        assert_eq!(schedule.threshold(850), 850);
    }

    #[test]
    fn pressure_is_computed_from_the_mappings_created_by_the_last_scan() {
        let mut schedule = Schedule::default();
        schedule.set_population(500, 7000);
        schedule.set_reservations(50);
        assert_eq!(schedule.pressure_at(850), Some(7300));
        schedule.set_population(840, 7400);
        assert_eq!(
            schedule.pressure_at(850),
            Some(7400),
            "there are more mappings than that already"
        );
        schedule.subtract(100);
        assert_eq!(schedule.pressure_at(850), Some(7460));
    }
}
