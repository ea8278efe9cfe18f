//! The counts of the last minutes, which survive a restart of the agent.

use super::counts::{Counts, Observed};
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Length of the window, in seconds.
pub(crate) const WINDOW_SECONDS: u64 = 600;

/// Length of a part of it, in seconds: the window forgets part by part.
const PART_SECONDS: u64 = 60;

/// Limit of networks in a part, those with the most attempts: a scan of all addresses must not make
/// the file large.
const NETWORKS: usize = 1024;

/// File in the state directory.
pub(crate) const FILE: &str = "reach.json";

/// Counts of one part of the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    /// Its begin, in seconds since 1970, a multiple of [`PART_SECONDS`].
    begin: u64,
    counts: Observed,
}

/// Counts of the last ten minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Time at which counts were last added, in seconds since 1970; 0 for never.
    pub at: u64,
    /// The parts, the oldest first.
    parts: VecDeque<Part>,
    /// Counts of the kernel's map at that time.
    seen: Observed,
    /// Networks whose packets were behind their attempts then.
    #[serde(default)]
    behind: BTreeSet<IpNet>,
}

impl Window {
    /// Reads the window that an agent last wrote; an empty one if there is none.
    ///
    /// # Errors
    /// Returns an error if the file exists and cannot be read or parsed.
    pub(crate) fn read(dir: &StateDir) -> Result<Self> {
        match dir.read_optional(FILE)? {
            None => Ok(Self::default()),
            Some(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("reading {}", dir.file(FILE).display())),
        }
    }

    /// Returns the window of an earlier agent; a new one, and a warning in the log, if it cannot be read.
    pub(crate) fn after(dir: &StateDir) -> Self {
        Self::read(dir).unwrap_or_else(|err| {
            log::warn!("{err:#}; counting anew");
            Self::default()
        })
    }

    /// Writes the window for the next agent and for `netdp suggest`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn save(&self, dir: &StateDir) -> Result<()> {
        dir.write_json(FILE, self)
    }

    /// Adds what was counted since the last time. `now`: seconds since 1970. Returns whether there
    /// was anything, or something left the window.
    pub(crate) fn observe(&mut self, now: u64, mut observed: Observed) -> bool {
        // What was counted while nobody looked for longer than the window may be long ago.
        if self.at != 0 && now.saturating_sub(self.at) > WINDOW_SECONDS {
            self.seen = observed;
            self.behind.clear();
            return self.add(now, &Observed::new());
        }
        let none = Counts::default();
        let was_behind = std::mem::take(&mut self.behind);
        let mut new = Observed::new();
        for (network, counts) in &mut observed {
            let before = *self.seen.get(network).unwrap_or(&none);
            let mut since = counts.since(&before);
            // Each attempt is a packet too. Those that left between the two readings are counted by
            // the next. Otherwise another pair has taken the slot, and nobody knows how many packets
            // followed the attempts: they are no evidence.
            if since.pod_packets < since.pod_new {
                if was_behind.contains(network) {
                    since.forget_pods();
                } else {
                    self.behind.insert(*network);
                    *counts = before;
                    continue;
                }
            }
            if since != none {
                new.insert(*network, since);
            }
        }
        let added = self.add(now, &new) || self.behind != was_behind;
        self.seen = observed;
        added
    }

    /// Adds new counts. Returns whether there were any, or something left the window.
    pub(crate) fn add(&mut self, now: u64, new: &Observed) -> bool {
        self.at = now;
        let before = self.parts.len();
        self.parts
            .retain(|part| part.begin + WINDOW_SECONDS > now && part.begin <= now);
        let mut changed = self.parts.len() != before;
        if new.is_empty() {
            return changed;
        }
        let begin = now - now % PART_SECONDS;
        if self.parts.back().is_none_or(|part| part.begin != begin) {
            self.parts.push_back(Part {
                begin,
                counts: Observed::new(),
            });
        }
        if let Some(part) = self.parts.back_mut() {
            for (network, counts) in new {
                part.counts.entry(*network).or_default().add(counts);
            }
            keep_busiest(&mut part.counts);
            changed = true;
        }
        changed
    }

    /// Returns the sums over the window at a time, in seconds since 1970.
    pub(crate) fn sums(&self, now: u64) -> BTreeMap<IpNet, Counts> {
        let mut sums = BTreeMap::<IpNet, Counts>::new();
        let young = |part: &&Part| part.begin + WINDOW_SECONDS > now;
        for part in self.parts.iter().filter(young) {
            for (network, counts) in &part.counts {
                sums.entry(*network).or_default().add(counts);
            }
        }
        sums
    }
}

/// Removes the networks with the fewest attempts beyond [`NETWORKS`].
fn keep_busiest(counts: &mut Observed) {
    if counts.len() <= NETWORKS {
        return;
    }
    let attempts = |counts: &Counts| counts.pod_new + counts.node_new;
    let mut all: Vec<_> = std::mem::take(counts).into_iter().collect();
    all.sort_by_key(|(_, counts)| std::cmp::Reverse(attempts(counts)));
    all.truncate(NETWORKS);
    counts.extend(all);
}
