//! When to go through all mappings, and which to look at in between.
//!
//! Going through a million mappings takes about a second of CPU, so that it
//! can't be done every few seconds. A full sweep leaves a list of the mappings
//! that may end before the next one, with the moment; in between only those are
//! looked at when their moment has come. Other mappings that it saw outlive the
//! next full sweep, whatever packets come: it comes before the shortest timeout
//! that a packet can give a mapping. (A RST gives no time; a mapping that it ends
//! after long silence may stay until the next full sweep.) Those made since are found by a pass
//! through the original halves alone, once in the shortest of all timeouts:
//! none can have ended sooner.

use netdp_common::conntrack::{age, ticks};
use netdp_common::tuple::Tuple;
use std::time::{Duration, Instant};

/// Seconds between full sweeps of small tables.
const SHORTEST: u64 = 5;

/// Tables with less than one part in this many left count as full.
const FULL: usize = 64;

/// Full sweeps may use one part in this many of a core.
const SHARE: u32 = 100;

/// And where room is short, one in this many, however full the tables are.
const SHARE_FOR_ROOM: u32 = 4;

/// The pause before a sweep that is to make room, by what was swept before, to the
/// end or not.
#[derive(Debug)]
pub struct Rest {
    until: Instant,
}

impl Rest {
    /// None so far.
    pub fn new(now: Instant) -> Self {
        Self { until: now }
    }

    /// Takes note of what began at `begun` and took `cost` of CPU time.
    pub fn worked(&mut self, begun: Instant, cost: Duration) {
        self.until = self.until.max(begun + cost * SHARE_FOR_ROOM);
    }

    /// How long it still lasts.
    pub fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

/// What is to be done at a moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Next {
    /// Go through everything; the rest does not count then.
    pub full: bool,
    /// Look for mappings that were made since the last look.
    pub recent: bool,
    /// Look at these.
    pub due: Vec<Tuple>,
}

/// The plan until the next full sweep.
#[derive(Debug, Default)]
pub struct Schedule {
    /// When the last full sweep was, and after how many ticks the next is.
    last: Option<(u32, u32)>,
    /// When all original halves were looked at last.
    looked: u32,
    /// Ticks after `last` at which mappings may end; the latest first.
    due: Vec<(u32, Tuple)>,
    /// What the last full sweep cost.
    cost: Duration,
    /// How many mappings the last look left, and how many had ever been made.
    population: (usize, u64),
    /// How many mappings are too many, where making room was in vain.
    crowd: Option<usize>,
    /// How many of the node's own tuples the last full sweep left.
    host: usize,
}

impl Schedule {
    /// Seconds until the full sweep after one that begins now: long enough to
    /// be affordable, never longer than the shortest timeout that a packet can
    /// give a mapping.
    pub fn interval(&self, shortest_renewed: u64) -> u64 {
        let affordable = (self.cost * SHARE).as_secs();
        affordable.min(shortest_renewed).max(SHORTEST)
    }

    /// What the last full sweep cost, if there was one.
    pub fn cost(&self) -> Option<Duration> {
        self.last.map(|_| self.cost)
    }

    /// Takes note of a full sweep at `now` that cost `cost`: the next is after
    /// `interval` seconds, and the mappings in `due` may end that many ticks
    /// after `now`.
    pub fn swept(&mut self, now: u32, cost: Duration, interval: u64, due: Vec<(u32, Tuple)>) {
        self.last = Some((now, u32::try_from(ticks(interval)).unwrap_or(u32::MAX)));
        self.looked = now;
        self.cost = cost;
        self.due = due;
        self.sort();
    }

    /// Takes note of a look at all original halves at `now`.
    pub fn looked_at(&mut self, now: u32) {
        self.looked = now;
    }

    /// When all original halves were looked at last, if ever.
    pub fn looked(&self) -> Option<u32> {
        self.last.map(|_| self.looked)
    }

    /// Whether a full sweep is due.
    pub fn next_is_full(&self, now: u32) -> bool {
        // A timer that is a little early is on time.
        self.last
            .is_none_or(|(last, interval)| age(now, last) + 1 >= interval)
    }

    /// Ticks until the next full sweep.
    pub fn remaining(&self, now: u32) -> u64 {
        self.last.map_or(0, |(last, interval)| {
            interval.saturating_sub(age(now, last)).into()
        })
    }

    /// What is to be done at `now`. `shortest` is the shortest timeout, in
    /// seconds.
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

    /// How many mappings are too many, if not `limit`.
    pub fn limit(&self, limit: usize) -> usize {
        self.crowd.map_or(limit, |crowd| crowd.max(limit))
    }

    /// Takes note that `taken` places are left taken, where there should be `limit`
    /// at most; `crowded`: that is after making room. Where that was in vain, it is
    /// tried again when half of what is left is taken, not every few seconds; but
    /// always where hardly any is left.
    pub fn relieved(&mut self, crowded: bool, taken: usize, limit: usize, capacity: usize) {
        if taken <= limit {
            self.crowd = None;
        } else if crowded {
            let half = taken + capacity.saturating_sub(taken) / 2;
            self.crowd = Some(half.min(capacity - capacity / FULL - 1));
        }
    }

    /// Mappings that were due and live on, with the ticks after `now` at which
    /// they may end.
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

    /// Takes note of how many of the node's own tuples a full sweep left.
    pub fn reserve(&mut self, host: usize) {
        self.host = host;
    }

    /// How many places are taken, as of the last looks.
    pub fn taken(&self) -> usize {
        self.population.0 + self.host
    }

    /// Takes note of how many mappings a full sweep left, and how many had ever
    /// been made when it began.
    pub fn populate(&mut self, live: usize, created: u64) {
        self.population = (live, created);
    }

    /// Takes note of mappings that have ended since.
    pub fn ended(&mut self, count: usize) {
        self.population.0 = self.population.0.saturating_sub(count);
    }

    /// What [`populate`](Self::populate) was told, less what has ended since.
    pub fn population(&self) -> (usize, u64) {
        self.population
    }

    /// How many mappings may have been made, ever, until more places may be taken
    /// than `limit`, or where making room was in vain the limit that holds then.
    /// `None` where hardly any is left: room is sought every few seconds.
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
    use netdp_common::addr::Addr;
    use netdp_common::conntrack::ticks;
    use netdp_common::tuple::Tuple;
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
