//! Content of `netdp status`: the agent's report and the kernel's current state.

use super::Report;
use super::nat::{self, LiveRules};
use crate::datapath::{self, HookState, Maps};
use crate::state_dir::StateDir;
use anyhow::Result;
use netdp_common::layout::{Counters, DropReason};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Content of `netdp status -o json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Status {
    /// `running`, or `not running`.
    pub(super) agent: &'static str,
    pub(super) pid: Option<u32>,
    /// `in force`, `not in force` or `none`.
    pub(super) datapath: &'static str,
    /// Reasons why it is not in force.
    pub(super) off: Vec<String>,
    /// Third-party programs that run before ours on an uplink.
    pub(super) behind: Vec<String>,
    /// Reason why the maps could not be read, if so; there are no counts then.
    pub(super) unread: Option<String>,
    pub(crate) mappings: usize,
    /// Capacity of the mapping tables, in mappings.
    pub(crate) max_mappings: usize,
    pub(crate) report: Option<Report>,
    /// Current rules of the chains, in iptables mode.
    pub(super) rules: Vec<LiveRules>,
    pub(super) packets: BTreeMap<&'static str, u64>,
    pub(super) drops: BTreeMap<&'static str, u64>,
}

impl Status {
    /// Makes the status of a report, without anything from the kernel.
    #[cfg(test)]
    pub(crate) fn with(report: Report) -> Self {
        Self {
            report: Some(report),
            ..Self::default()
        }
    }

    /// Reads the report and the kernel's state.
    ///
    /// # Errors
    /// Returns an error if the state directory cannot be read.
    pub(crate) fn gather(bpffs: &Path, state_dir: &Path) -> Result<Self> {
        let dir = StateDir::at(state_dir);
        let pid = dir.lock_holder();
        let pinned = datapath::is_pinned(bpffs);
        let read = if pinned {
            read_maps(bpffs)
        } else {
            Ok((0, 0, Counters::default(), false))
        };
        let unread = read.as_ref().err().map(|err| format!("{err:#}"));
        let (mappings, max_mappings, counters, attached) = read.unwrap_or_default();
        let report = Report::read(&dir).ok();
        let HookSummary {
            off,
            any_attached,
            behind,
        } = check_hooks(report.as_ref(), pid.is_some());
        Ok(Self {
            rules: nat::live(report.as_ref()),
            agent: if pid.is_some() {
                "running"
            } else {
                "not running"
            },
            pid,
            datapath: match (off.is_empty(), attached || any_attached) {
                (false, _) => "not in force",
                (true, true) => "in force",
                (true, false) => "none",
            },
            off,
            behind,
            unread,
            mappings,
            max_mappings,
            report,
            packets: packets(&counters),
            drops: DropReason::ALL
                .iter()
                .map(|reason| (reason.name(), counters.drops.get(*reason)))
                .collect(),
        })
    }

    /// Returns the output of `netdp status -o json`.
    ///
    /// # Errors
    /// Returns an error if something cannot be represented in JSON.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// Returns the number of mappings, their capacity, the counters, and whether there are uplinks.
fn read_maps(bpffs: &Path) -> Result<(usize, usize, Counters, bool)> {
    let maps = Maps::open(bpffs)?;
    let attached = !maps.uplinks()?.is_empty();
    Ok((
        maps.flow_count()?,
        maps.capacity()?,
        maps.counters()?,
        attached,
    ))
}

/// State of the hooks in the kernel.
#[derive(Debug, Default)]
struct HookSummary {
    /// Programs that are detached.
    off: Vec<String>,
    /// Set if any program is attached.
    any_attached: bool,
    /// Third-party programs that run before ours.
    behind: Vec<String>,
}

/// Scans the hooks. Failed attempts to attach and the effect of third-party programs on packets are
/// known only from a running agent's report.
fn check_hooks(report: Option<&Report>, alive: bool) -> HookSummary {
    let mut summary = HookSummary::default();
    let Some(report) = report else {
        return summary;
    };
    for placed in &report.placed {
        match placed.check() {
            Ok(HookState::Attached) => summary.any_attached = true,
            Ok(HookState::Preceded(ahead)) => {
                summary.any_attached = true;
                summary.behind.push(placed.behind(&ahead));
            }
            Ok(HookState::Missing) => summary.off.push(placed.to_string()),
            Ok(HookState::NoInterface) => {}
            Err(err) => summary.off.push(format!("unknown: {err:#}")),
        }
    }
    let known: Vec<_> = report.placed.iter().map(ToString::to_string).collect();
    let refused = report.off.iter().filter(|why| !known.contains(why));
    summary.off.extend(refused.filter(|_| alive).cloned());
    summary
}

fn packets(counters: &Counters) -> BTreeMap<&'static str, u64> {
    counters.outcomes().into_iter().collect()
}
