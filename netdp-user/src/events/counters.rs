//! How many events there were, and how many were lost: for the metrics.

use super::{Kind, Lost, PerKind};
use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of the events of a kind.
#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    limited: AtomicU64,
    full: AtomicU64,
    reader: AtomicU64,
}

/// Events while somebody listened, and those that were lost. What the programs count is in a pinned
/// map, and goes on over restarts of the agent; the rest begins with it.
#[derive(Debug, Default)]
pub(crate) struct EventCounters(PerKind<Counts>);

impl EventCounters {
    /// Returns the number of events of a kind that have happened while somebody listened to it.
    pub(crate) fn seen(&self, kind: Kind) -> u64 {
        self.0[kind].seen.load(Ordering::Relaxed)
    }

    /// Returns how many of them were lost: before they came to the agent once, on the way to
    /// listeners for each of them.
    pub(crate) fn lost(&self, kind: Kind) -> Lost {
        let counts = &self.0[kind];
        Lost {
            limited: counts.limited.load(Ordering::Relaxed),
            full: counts.full.load(Ordering::Relaxed),
            reader: counts.reader.load(Ordering::Relaxed),
        }
    }

    /// Counts an event of the agent's.
    pub(super) fn add_seen(&self, kind: Kind) {
        self.0[kind].seen.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event of the agent's for which its queue had no room.
    pub(super) fn add_full(&self, kind: Kind) {
        self.0[kind].full.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event that a listener did not take.
    pub(super) fn add_reader(&self, kind: Kind) {
        self.0[kind].reader.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets what the programs have counted.
    pub(super) fn set(&self, kind: Kind, seen: u64, lost: &Lost) {
        let counts = &self.0[kind];
        counts.seen.store(seen, Ordering::Relaxed);
        counts.limited.store(lost.limited, Ordering::Relaxed);
        counts.full.store(lost.full, Ordering::Relaxed);
    }
}
