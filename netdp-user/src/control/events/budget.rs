//! Rate limits of a node's Events: neither a configuration that changes all the time nor a cluster
//! of thousands of nodes may fill the API server's store.

use super::Involved;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Rate for all Events of a node: 16, then one every two minutes; at most 46 in the first hour, 30
/// in each further one.
const NODE: Rate = Rate {
    burst: 16,
    every: Duration::from_secs(120),
};

/// Rate for one reason about one ConfigMap: 4, then one every five minutes.
const MAP: Rate = Rate {
    burst: 4,
    every: Duration::from_secs(300),
};

/// Rate for one reason about the Node: 1, then one every five minutes.
const THE_NODE: Rate = Rate {
    burst: 1,
    every: Duration::from_secs(300),
};

/// Limit of separate buckets.
const KEPT: usize = 256;

/// A token-bucket rate: a burst, then one each interval.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    every: Duration,
}

/// State of a [`Rate`]'s token bucket.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: u32,
    /// Time up to which tokens have been refilled.
    since: Instant,
}

impl Bucket {
    const fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.burst,
            since: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        while self.left < self.rate.burst && now >= self.since + self.rate.every {
            self.left += 1;
            self.since += self.rate.every;
        }
        if self.left == self.rate.burst {
            self.since = now;
        }
    }

    const fn is_full(&self) -> bool {
        self.left == self.rate.burst
    }
}

/// Remaining budget of a node.
#[derive(Debug)]
pub(super) struct Budget {
    node: Bucket,
    each: HashMap<(String, &'static str), Bucket>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            node: Bucket::new(NODE, now),
            each: HashMap::new(),
        }
    }

    /// Takes a token for an Event. Returns false if there is none.
    pub(super) fn take(&mut self, involved: &Involved, reason: &'static str, now: Instant) -> bool {
        self.node.refill(now);
        for bucket in self.each.values_mut() {
            bucket.refill(now);
        }
        self.each.retain(|_, bucket| !bucket.is_full());
        let (name, rate) = match involved {
            Involved::Map(map) => (map.prefix(), MAP),
            Involved::Node => (String::new(), THE_NODE),
        };
        let key = (name, reason);
        if self.node.left == 0 || (self.each.len() >= KEPT && !self.each.contains_key(&key)) {
            return false;
        }
        let bucket = self.each.entry(key);
        let bucket = bucket.or_insert_with(|| Bucket::new(rate, now));
        if bucket.left == 0 {
            return false;
        }
        bucket.left -= 1;
        self.node.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::map;
    use super::*;

    #[test]
    fn a_configuration_that_changes_each_second_is_not_published_each_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let about = Involved::Map(map("a"));
        let published = |second| start + Duration::from_secs(second);
        let count =
            (0..3600).filter(|second| budget.take(&about, "ConfigApplied", published(*second)));
        assert_eq!(count.count(), 4 + 11);
        // Each reason has its own budget.
        assert!(budget.take(&about, "ConfigRejected", published(3600)));
    }

    #[test]
    fn many_config_maps_are_no_way_around_it() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut count = 0;
        for second in 0..7200 {
            for name in 0..500 {
                let about = Involved::Map(map(&format!("map{name}")));
                let at = start + Duration::from_secs(second);
                count += u32::from(budget.take(&about, "ConfigApplied", at));
            }
        }
        assert!(count <= 16 + 60, "{count} in two hours");
    }

    #[test]
    fn the_same_about_the_node_is_published_once_in_five_minutes() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut at = |second| {
            budget.take(
                &Involved::Node,
                "PortsExhausted",
                start + Duration::from_secs(second),
            )
        };
        assert!(at(0));
        assert!(!at(299));
        assert!(at(300));
    }
}
