//! Events about networks without a way back to pods: at most one an hour for each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Interval between Events about one network.
const EVERY: Duration = Duration::from_secs(3600);

/// Time at which an Event about each network was last published.
#[derive(Debug, Default)]
pub(super) struct Hourly(BTreeMap<String, Instant>);

impl Hourly {
    /// Returns those of these networks for which an Event is due.
    pub(super) fn due<'a>(&mut self, networks: &'a [String], now: Instant) -> Vec<&'a String> {
        self.0.retain(|_, at| now.duration_since(*at) < EVERY);
        let is_due = |network: &&String| !self.0.contains_key(*network);
        networks.iter().filter(is_due).collect()
    }

    /// Records that an Event about a network was published.
    pub(super) fn record(&mut self, network: &str, now: Instant) {
        self.0.insert(network.to_owned(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_told_once_an_hour() {
        let networks = ["10.2.0.0/24".to_owned(), "10.3.0.0/24".to_owned()];
        let (mut hourly, start) = (Hourly::default(), Instant::now());
        assert_eq!(hourly.due(&networks, start).len(), 2);
        hourly.record(&networks[0], start);
        let soon = start + EVERY - Duration::from_secs(1);
        assert_eq!(hourly.due(&networks, soon), [&networks[1]]);
        assert_eq!(hourly.due(&networks, start + EVERY).len(), 2);
    }
}
