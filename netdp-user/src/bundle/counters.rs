//! The datapath's counters, twice.

use crate::datapath::Maps;
use anyhow::{Context as _, Result};
use netdp_common::layout::{Counters, DropReason};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between the two readings.
const BETWEEN: Duration = Duration::from_secs(10);

/// The counters at one time, and the time.
#[derive(Debug)]
pub(super) struct Reading {
    at: Instant,
    counters: Counters,
}

/// Two readings.
#[derive(Debug, Serialize)]
struct Twice {
    seconds: f64,
    before: BTreeMap<&'static str, u64>,
    after: BTreeMap<&'static str, u64>,
}

impl Reading {
    /// Reads the counters.
    ///
    /// # Errors
    /// Returns an error if there is no datapath.
    pub(super) fn take(bpffs: &Path) -> Result<Self> {
        let counters = Maps::open(bpffs).and_then(|maps| maps.counters());
        Ok(Self {
            counters: counters.context("reading the counters")?,
            at: Instant::now(),
        })
    }

    /// Waits until it is ten seconds old, reads again, and returns both as JSON.
    ///
    /// # Errors
    /// Returns an error if the datapath is gone.
    pub(super) fn and_again(&self, bpffs: &Path) -> Result<String> {
        std::thread::sleep(BETWEEN.saturating_sub(self.at.elapsed()));
        let again = Self::take(bpffs)?;
        let twice = Twice {
            seconds: again.at.duration_since(self.at).as_secs_f64(),
            before: named(&self.counters),
            after: named(&again.counters),
        };
        Ok(serde_json::to_string_pretty(&twice)? + "\n")
    }
}

fn named(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let drops = DropReason::ALL.iter();
    let drops = drops.map(|reason| (reason.name(), counters.drops.get(*reason)));
    counters.outcomes().into_iter().chain(drops).collect()
}
