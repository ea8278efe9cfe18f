//! Counters of the log, for metrics.

use super::record::Kind;
use std::sync::atomic::{AtomicU64, Ordering};

/// The cause of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// More ended than can be written.
    Queue,
    /// The file can't be written.
    Disk,
    /// The collector does not take records.
    Collector,
    /// Programs had no room to report ends.
    Programs,
    /// The sweep failed while it removed mappings.
    Sweep,
}

impl Cause {
    /// All causes.
    pub(crate) const ALL: [Self; 5] = [
        Self::Queue,
        Self::Disk,
        Self::Collector,
        Self::Programs,
        Self::Sweep,
    ];

    /// Returns the name, as in records and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Disk => "disk",
            Self::Collector => "collector",
            Self::Programs => "programs",
            Self::Sweep => "sweep",
        }
    }
}

/// The counters since the agent's start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    records: [AtomicU64; Kind::ALL.len()],
    lost: [AtomicU64; Cause::ALL.len()],
    /// Age of the oldest event that is not written yet, in milliseconds.
    pub(crate) lag_ms: AtomicU64,
}

impl Counters {
    /// Returns the number of records written, by event.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |kind: Kind| self.records[kind as usize].load(Ordering::Relaxed);
        Kind::ALL.map(|kind| (kind.name(), count(kind))).into_iter()
    }

    /// Returns the number of records lost, by cause.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |cause: Cause| self.lost[cause as usize].load(Ordering::Relaxed);
        Cause::ALL
            .map(|cause| (cause.name(), count(cause)))
            .into_iter()
    }

    pub(super) fn add_record(&self, kind: Kind) {
        self.records[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lose(&self, cause: Cause, n: u64) {
        self.lost[cause as usize].fetch_add(n, Ordering::Relaxed);
    }
}
