//! Numbers of events and of lost events: for listeners and for the metrics.

use super::ring::Reported;
use super::{Kind, Lost, PerKind};
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
        let own = &self.own[kind];
        let (mut seen, mut lost) = self.reported.of(kind)?.unwrap_or_default();
        seen += own.seen.load(Ordering::Relaxed);
        seen = seen.saturating_sub(own.tests.load(Ordering::Relaxed));
        lost.full += own.full.load(Ordering::Relaxed);
        lost.reader += own.reader.load(Ordering::Relaxed);
        Ok((seen, lost))
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
