//! When to go through all mappings, and which to look at in between.
//!
//! Going through a million mappings takes about a second of CPU, so that it
//! can't be done every few seconds. A mapping can only end as long after its
//! last packet as the shortest timeout is. So each full sweep leaves a list of
//! the mappings that may end before the next one, with the moment; in between
//! only those are looked at when their moment has come.

use netdp_common::conntrack::{age, ticks};
use netdp_common::tuple::Tuple;
use std::time::Duration;

/// Seconds between full sweeps of small tables.
const SHORTEST: u64 = 5;

/// Full sweeps may use one part in this many of a core.
const SHARE: u32 = 50;

/// What is to be done at a moment.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Go through everything.
    Full,
    /// Look at these.
    Due(Vec<Tuple>),
}

/// The plan until the next full sweep.
#[derive(Debug, Default)]
pub struct Schedule {
    /// When the last full sweep was, and after how many ticks the next is.
    last: Option<(u32, u32)>,
    /// Ticks after `last` at which mappings may end; the latest first.
    due: Vec<(u32, Tuple)>,
    /// What the last full sweep cost.
    cost: Duration,
    /// How many mappings it left, and how many had ever been made.
    population: (usize, u64),
}

impl Schedule {
    /// Seconds until the full sweep after one that begins now: long enough to
    /// be affordable, never longer than the shortest timeout allows.
    pub fn interval(&self, shortest_timeout: u64) -> u64 {
        let affordable = (self.cost * SHARE).as_secs();
        affordable.min(shortest_timeout).max(SHORTEST)
    }

    /// Takes note of a full sweep at `now` that cost `cost`: the next is after
    /// `interval` seconds, and the mappings in `due` may end that many ticks
    /// after `now`.
    pub fn swept(&mut self, now: u32, cost: Duration, interval: u64, due: Vec<(u32, Tuple)>) {
        self.last = Some((now, u32::try_from(ticks(interval)).unwrap_or(u32::MAX)));
        self.cost = cost;
        self.due = due;
        self.sort();
    }

    /// What is to be done at `now`.
    pub fn next(&mut self, now: u32) -> Next {
        let Some((last, interval)) = self.last else {
            return Next::Full;
        };
        let elapsed = age(now, last);
        // A timer that is a little early is on time.
        if elapsed + 1 >= interval {
            return Next::Full;
        }
        let later = self.due.partition_point(|(at, _)| *at > elapsed);
        let due = self.due.split_off(later);
        Next::Due(due.into_iter().map(|(_, tuple)| tuple).collect())
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

    /// Takes note of how many mappings a full sweep left, and how many had ever
    /// been made when it began.
    pub fn populate(&mut self, live: usize, created: u64) {
        self.population = (live, created);
    }

    /// What [`populate`](Self::populate) was told.
    pub fn population(&self) -> (usize, u64) {
        self.population
    }

    fn sort(&mut self) {
        self.due
            .sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
    }
}

#[cfg(test)]
mod tests {
    use super::{Next, Schedule};
    use netdp_common::addr::Addr;
    use netdp_common::conntrack::ticks;
    use netdp_common::tuple::Tuple;
    use std::time::Duration;

    fn tuple(id: u16) -> Tuple {
        let addr = Addr::from_v4([10, 0, 0, 1]);
        Tuple::new(addr, addr, id, 1, 6)
    }

    #[test]
    fn a_cheap_sweep_comes_again_soon_and_a_dear_one_later() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.interval(60), 5);
        schedule.swept(0, Duration::from_millis(800), 5, Vec::new());
        assert_eq!(schedule.interval(60), 40);
        assert_eq!(schedule.interval(30), 30, "timeouts stay exact");
        assert_eq!(schedule.interval(1), 5);
    }

    #[test]
    fn what_is_due_is_looked_at_once_between_full_sweeps() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(7), Next::Full);
        let start = u32::MAX - 20;
        let due = vec![(100, tuple(1)), (50, tuple(2)), (60, tuple(3))];
        schedule.swept(start, Duration::ZERO, 60, due);
        assert_eq!(schedule.next(start.wrapping_add(49)), Next::Due(vec![]));
        let now = start.wrapping_add(70);
        assert_eq!(schedule.next(now), Next::Due(vec![tuple(3), tuple(2)]));
        schedule.again(now, vec![(10, tuple(2)), (100_000, tuple(3))]);
        let now = start.wrapping_add(80);
        assert_eq!(schedule.next(now), Next::Due(vec![tuple(2)]));
        let end = start.wrapping_add(u32::try_from(ticks(60)).unwrap());
        assert_eq!(schedule.next(end), Next::Full);
    }
}
