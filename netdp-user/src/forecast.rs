//! Ports towards destinations over time, and when they will be used up.

use crate::datapath::{Destination, Usage};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Readings of a destination that are kept.
const PAST: usize = 60;

/// Least time that the readings have to span for a forecast.
const FORECAST_FROM: Duration = Duration::from_secs(20);

/// Returns the destinations towards which most ports are used, at most `count`, with more than `least`
/// mappings; the first has most.
pub(crate) fn most_used(usage: &Usage, least: u64, count: usize) -> Vec<Destination> {
    let mut used: Vec<_> = usage.destinations.iter().collect();
    used.retain(|(_, used)| used.mappings > least);
    used.sort_by_key(|(key, used)| (Reverse(used.mappings), **key));
    used.truncate(count);
    used.into_iter().map(|(key, _)| *key).collect()
}

/// The past of some destinations.
#[derive(Debug, Default)]
pub(crate) struct PortsPast(HashMap<Destination, VecDeque<(Instant, u64)>>);

impl PortsPast {
    /// Adds a reading of these destinations, and forgets all others.
    pub(crate) fn add(&mut self, at: Instant, watched: &HashSet<Destination>, usage: &Usage) {
        let used = |key| usage.destinations.get(key).map_or(0, |used| used.mappings);
        self.add_used(at, watched.iter().map(|key| (*key, used(key))));
    }

    /// Adds how many ports towards destinations are used, and forgets all others.
    pub(crate) fn add_used(
        &mut self,
        at: Instant,
        used: impl IntoIterator<Item = (Destination, u64)>,
    ) {
        let used: HashMap<_, _> = used.into_iter().collect();
        self.0.retain(|key, _| used.contains_key(key));
        for (key, used) in used {
            let past = self.0.entry(key).or_default();
            past.push_back((at, used));
            if past.len() > PAST {
                past.pop_front();
            }
        }
    }

    /// Returns in how many seconds the `ports` towards a destination will be used up, if they go on as
    /// in the past; `None` if they won't within a day, or if that can't be told yet.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positive, and below a day"
    )]
    pub(crate) fn full_in(&self, key: &Destination, ports: u64) -> Option<u64> {
        const DAY: f64 = 86_400.0;
        let past = self.0.get(key)?;
        let (&(begin, first), &(end, used)) = (past.front()?, past.back()?);
        let span = end.duration_since(begin);
        if span < FORECAST_FROM || used <= first {
            return None;
        }
        let free = ports.checked_sub(used)?;
        let seconds = free as f64 * span.as_secs_f64() / (used - first) as f64;
        (seconds < DAY).then_some(seconds as u64)
    }
}
