//! The schedule of full sweeps, and of single mappings in between.
//!
//! A full sweep of a million mappings takes about a second of CPU, so it can't run every few
//! seconds. It leaves a list of the mappings that may end before the next one, with the time; in
//! between only those are looked up when their time has come. Other mappings that it saw outlive
//! the next full sweep, whatever packets arrive: it comes before the shortest timeout that a packet
//! can give a mapping. (A RST gives no time; a mapping that it ends after long silence may stay
//! until the next full sweep.) Newer ones are found by a pass through the original halves alone,
//! once in the shortest of all timeouts: none can have ended sooner.

use netdp_common::flow::{age, ticks};
use netdp_common::layout::Tuple;
use std::time::{Duration, Instant};

/// Seconds between full sweeps of small tables.
const SHORTEST: u64 = 5;

/// Tables with less than one part in this many free count as full.
const FULL: usize = 64;

/// Maximum share of a core for full sweeps: one part in this many.
const SHARE: u32 = 100;

/// Maximum share of a core for evictions, if places are short, however full the tables are: one
/// part in this many.
const SHARE_FOR_ROOM: u32 = 4;

/// The pause before a sweep that evicts, determined by earlier sweeps, complete or not.
#[derive(Debug)]
pub struct Rest {
    until: Instant,
}

impl Rest {
    /// Returns no pause, before the first sweep.
    pub fn new(now: Instant) -> Self {
        Self { until: now }
    }

    /// Records work that began at `begun` and took `cost` of CPU time.
    pub fn worked(&mut self, begun: Instant, cost: Duration) {
        self.until = self.until.max(begun + cost * SHARE_FOR_ROOM);
    }

    /// Returns the remaining pause.
    pub fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

/// Work that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Next {
    /// Run a full sweep; the other fields do not matter then.
    pub full: bool,
    /// Scan for mappings that were created since the last scan.
    pub recent: bool,
    /// Mappings to look up.
    pub due: Vec<Tuple>,
}

/// The schedule until the next full sweep.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Time of the last full sweep, and ticks from it to the next.
    last: Option<(u32, u32)>,
    /// Time of the last scan of all original halves, in ticks.
    looked: u32,
    /// Ticks after `last` at which mappings may end; the latest first.
    due: Vec<(u32, Tuple)>,
    /// CPU time of the last full sweep.
    cost: Duration,
    /// Number of mappings left by the last scan, and the total number of mappings created by then.
    population: (usize, u64),
    /// Number of mappings at which eviction is retried, if it could not free enough.
    crowd: Option<usize>,
    /// Number of the node's own tuples that the last full sweep left.
    host: usize,
}

impl Schedule {
    /// Returns the seconds from a full sweep that begins now to the next: long enough to be
    /// affordable, never longer than the shortest timeout that a packet can give a mapping.
    pub fn interval(&self, shortest_renewed: u64) -> u64 {
        let affordable = (self.cost * SHARE).as_secs();
        affordable.min(shortest_renewed).max(SHORTEST)
    }

    /// Returns the CPU time of the last full sweep, if there was one.
    pub fn cost(&self) -> Option<Duration> {
        self.last.map(|_| self.cost)
    }

    /// Records a full sweep at `now` with the CPU time `cost`: the next one is after `interval`
    /// seconds, and the mappings in `due` may end that many ticks after `now`.
    pub fn swept(&mut self, now: u32, cost: Duration, interval: u64, due: Vec<(u32, Tuple)>) {
        self.last = Some((now, u32::try_from(ticks(interval)).unwrap_or(u32::MAX)));
        self.looked = now;
        self.cost = cost;
        self.due = due;
        self.sort();
    }

    /// Records a scan of all original halves at `now`.
    pub fn looked_at(&mut self, now: u32) {
        self.looked = now;
    }

    /// Returns the time of the last scan of all original halves, if any.
    pub fn looked(&self) -> Option<u32> {
        self.last.map(|_| self.looked)
    }

    /// Reports whether a full sweep is due.
    pub fn next_is_full(&self, now: u32) -> bool {
        // A timer that is a little early counts as on time.
        self.last
            .is_none_or(|(last, interval)| age(now, last) + 1 >= interval)
    }

    /// Returns the ticks until the next full sweep.
    pub fn remaining(&self, now: u32) -> u64 {
        self.last.map_or(0, |(last, interval)| {
            interval.saturating_sub(age(now, last)).into()
        })
    }

    /// Returns the work that is due at `now`. `shortest` is the shortest timeout, in seconds.
    pub fn next(&mut self, now: u32, shortest: u64) -> Next {
        let full = self.next_is_full(now);
        let recent = u64::from(age(now, self.looked)) + 1 >= ticks(shortest);
        let mut due = Vec::new();
        if let Some((last, _)) = self.last
            && !full
        {
            let elapsed = age(now, last);
            let later = self.due.partition_point(|(at, _)| *at > elapsed);
            due = self.due.drain(later..).map(|(_, tuple)| tuple).collect();
        }
        Next { full, recent, due }
    }

    /// Returns the number of mappings that triggers eviction: `limit`, or the retry threshold.
    pub fn limit(&self, limit: usize) -> usize {
        self.crowd.map_or(limit, |crowd| crowd.max(limit))
    }

    /// Records that `taken` places are in use, where `limit` is the target; `crowded`: that is
    /// after an eviction. If that could not free enough, it is retried when half of the free places
    /// are in use, not every few seconds; but always if hardly any place is free.
    pub fn relieved(&mut self, crowded: bool, taken: usize, limit: usize, capacity: usize) {
        if taken <= limit {
            self.crowd = None;
        } else if crowded {
            let half = taken + capacity.saturating_sub(taken) / 2;
            self.crowd = Some(half.min(capacity - capacity / FULL - 1));
        }
    }

    /// Adds mappings that were due and are kept, with the ticks after `now` at which they may end.
    pub fn again(&mut self, now: u32, more: Vec<(u32, Tuple)>) {
        let Some((last, interval)) = self.last else {
            return;
        };
        let elapsed = age(now, last);
        let more = more
            .into_iter()
            .map(|(left, tuple)| (left.saturating_add(elapsed), tuple))
            .filter(|(at, _)| *at < interval);
        self.due.extend(more);
        self.sort();
    }

    /// Records the number of the node's own tuples that a full sweep left.
    pub fn reserve(&mut self, host: usize) {
        self.host = host;
    }

    /// Returns the number of places in use, as of the last scans.
    pub fn taken(&self) -> usize {
        self.population.0 + self.host
    }

    /// Records the number of mappings that a full sweep left, and the total number created when it
    /// began.
    pub fn populate(&mut self, live: usize, created: u64) {
        self.population = (live, created);
    }

    /// Records mappings that have ended since.
    pub fn ended(&mut self, count: usize) {
        self.population.0 = self.population.0.saturating_sub(count);
    }

    /// Returns the values of [`populate`](Self::populate), less the mappings that have ended since.
    pub fn population(&self) -> (usize, u64) {
        self.population
    }

    /// Returns the total number of created mappings at which more places may be in use than
    /// `limit`, or than the retry threshold if eviction could not free enough. `None` if hardly any
    /// place is free: eviction is tried every few seconds.
    pub fn full_at(&self, limit: usize) -> Option<u64> {
        let room = match self.crowd {
            None => limit.saturating_sub(self.taken()),
            Some(_) => self.limit(limit).checked_sub(self.taken())?,
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
    use super::{Next, Rest, Schedule};
    use netdp_common::flow::ticks;
    use netdp_common::layout::{Addr, Tuple};
    use std::time::{Duration, Instant};

    fn tuple(id: u16) -> Tuple {
        let addr = Addr::from_v4([10, 0, 0, 1]);
        Tuple::new(addr, addr, id, 1, 6)
    }

    #[test]
    fn a_cheap_sweep_comes_again_soon_and_a_dear_one_later() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.interval(240), 5);
        schedule.swept(0, Duration::from_millis(800), 5, Vec::new());
        assert_eq!(schedule.interval(240), 80);
        assert_eq!(schedule.interval(30), 30, "timeouts stay exact");
        assert_eq!(schedule.interval(1), 5);
    }

    #[test]
    fn a_sweep_rests_as_it_has_cost() {
        let ms = Duration::from_millis;
        let begun = Instant::now();
        let mut rest = Rest::new(begun);
        assert_eq!(rest.left(begun), ms(0), "nothing was before");
        rest.worked(begun, ms(10));
        assert_eq!(rest.left(begun + ms(10)), ms(30), "as it ends");
        rest.worked(begun + ms(10), ms(1));
        assert_eq!(rest.left(begun + ms(39)), ms(1), "the longer one counts");
        assert_eq!(rest.left(begun + ms(50)), ms(0));
    }

    fn due(tuples: &[Tuple]) -> Next {
        Next {
            full: false,
            recent: false,
            due: tuples.to_vec(),
        }
    }

    #[test]
    fn what_is_due_is_looked_at_once_between_full_sweeps() {
        let mut schedule = Schedule::default();
        assert!(schedule.next(7, 60).full);
        let start = u32::MAX - 20;
        let list = vec![(100, tuple(1)), (50, tuple(2)), (60, tuple(3))];
        schedule.swept(start, Duration::ZERO, 60, list);
        assert_eq!(schedule.next(start.wrapping_add(49), 60), due(&[]));
        let now = start.wrapping_add(70);
        assert_eq!(schedule.next(now, 60), due(&[tuple(3), tuple(2)]));
        schedule.again(now, vec![(10, tuple(2)), (100_000, tuple(3))]);
        let now = start.wrapping_add(80);
        assert_eq!(schedule.next(now, 60), due(&[tuple(2)]));
        let end = start.wrapping_add(u32::try_from(ticks(60)).unwrap());
        assert!(schedule.next(end, 60).full);
    }

    #[test]
    fn new_mappings_are_looked_for_once_in_the_shortest_timeout() {
        let at = |seconds| u32::try_from(ticks(seconds)).unwrap();
        let mut schedule = Schedule::default();
        schedule.swept(0, Duration::from_secs(2), 200, Vec::new());
        assert!(!schedule.next(at(55), 60).recent);
        assert!(schedule.next(at(60), 60).recent);
        schedule.looked_at(at(60));
        assert!(!schedule.next(at(115), 60).recent);
        assert!(schedule.next(at(120), 60).recent);
        assert_eq!(schedule.remaining(at(120)), ticks(200) - ticks(120));
        assert!(schedule.next(at(200), 60).full);
    }

    #[test]
    fn room_is_not_sought_in_vain_all_the_time() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.limit(850), 850);
        schedule.relieved(true, 900, 850, 1000);
        assert_eq!(schedule.limit(850), 950, "half of what is left");
        schedule.relieved(false, 940, 850, 1000);
        assert_eq!(schedule.limit(850), 950);
        schedule.relieved(true, 960, 850, 1000);
        assert_eq!(schedule.limit(850), 980);
        schedule.relieved(true, 1000, 850, 1000);
        assert!(schedule.limit(850) < 1000, "room is sought in full tables");
        schedule.populate(1000, 5000);
        assert_eq!(schedule.full_at(850), None, "but not all the time");
        schedule.populate(900, 5000);
        assert_eq!(schedule.full_at(850), Some(5084), "before all is taken");
        schedule.relieved(true, 850, 850, 1000);
        assert_eq!(schedule.limit(850), 850);
    }

    #[test]
    fn room_is_measured_from_what_was_made_by_the_last_look() {
        let mut schedule = Schedule::default();
        schedule.populate(500, 7000);
        schedule.reserve(50);
        assert_eq!(schedule.full_at(850), Some(7300));
        schedule.populate(840, 7400);
        assert_eq!(
            schedule.full_at(850),
            Some(7400),
            "what is too much is no room"
        );
        schedule.ended(100);
        assert_eq!(schedule.full_at(850), Some(7460));
    }
}
