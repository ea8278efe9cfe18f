//! Numbers of events and of lost events: for listeners and for the metrics.

use super::ring::Reported;
use super::{Kind, Lost, PerKind};
use crate::metrics::never_less;
use anyhow::Result;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of the events of a kind, as far as the agent counts them.
#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    /// What the programs reported of the self-check's packets.
    tests: AtomicU64,
    full: AtomicU64,
    reader: AtomicU64,
    /// What the metric had last.
    metric: AtomicU64,
}

impl Counts {
    /// Returns how many of the events that the programs have seen are not of the self-check's packets, with
    /// those that only the agent sees.
    fn seen(&self, reported: u64) -> u64 {
        let all = reported + self.seen.load(Ordering::Relaxed);
        all.saturating_sub(self.tests.load(Ordering::Relaxed))
    }

    /// Returns the same, but never less than before: the self-check's events are taken out only when they
    /// are read.
    fn seen_for_metric(&self, reported: u64) -> u64 {
        never_less(&self.metric, self.seen(reported))
    }
}

/// Events while somebody listened, and those that were lost. What the programs count is in a pinned
/// map, and goes on over restarts of the agent; the rest begins with it.
pub(crate) struct EventCounters {
    reported: Reported,
    own: PerKind<Counts>,
}

impl EventCounters {
    /// Opens what the programs count, below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if there is no such map.
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        Ok(Self {
            reported: Reported::open(bpffs)?,
            own: PerKind::default(),
        })
    }

    /// Returns the number of events of a kind that have happened while somebody listened to it, and how
    /// many of them were lost: before they came to the agent once, on the way to listeners for each
    /// of them.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn of(&self, kind: Kind) -> Result<(u64, Lost)> {
        let (reported, lost) = self.reported.of(kind)?.unwrap_or_default();
        Ok((self.own[kind].seen(reported), self.with_own(kind, lost)))
    }

    /// Returns the same for the metrics, whose counters never decrease.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn for_metrics(&self, kind: Kind) -> Result<(u64, Lost)> {
        let (reported, lost) = self.reported.of(kind)?.unwrap_or_default();
        let seen = self.own[kind].seen_for_metric(reported);
        Ok((seen, self.with_own(kind, lost)))
    }

    /// Adds what the agent lost.
    fn with_own(&self, kind: Kind, mut lost: Lost) -> Lost {
        let own = &self.own[kind];
        lost.full += own.full.load(Ordering::Relaxed);
        lost.reader += own.reader.load(Ordering::Relaxed);
        lost
    }

    /// Counts events that the programs have not counted as seen.
    pub(super) fn add_seen(&self, kind: Kind, n: u64) {
        self.own[kind].seen.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts events of the self-check's packets, which the programs have counted as seen.
    pub(super) fn add_tests(&self, kind: Kind, n: u64) {
        self.own[kind].tests.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts events for which a buffer or the agent's queue had no room.
    pub(super) fn add_full(&self, kind: Kind, n: u64) {
        self.own[kind].full.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts an event that a listener did not take.
    pub(super) fn add_reader(&self, kind: Kind) {
        self.own[kind].reader.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;
    use std::sync::atomic::Ordering;

    #[test]
    fn the_metric_does_not_decrease_when_the_self_checks_events_are_read() {
        let counts = Counts::default();
        assert_eq!(counts.seen_for_metric(10), 10);
        assert_eq!(counts.seen_for_metric(13), 13);
        counts.tests.fetch_add(3, Ordering::Relaxed);
        assert_eq!(counts.seen(13), 10);
        assert_eq!(counts.seen_for_metric(13), 13);
        assert_eq!(counts.seen_for_metric(20), 17);
    }
}
