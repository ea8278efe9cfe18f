//! Values that the loop publishes for metrics.

use super::facts::Facts;
use super::modes::Ebpf;
use super::network::ApplyOutcome;
use super::{Agent, RunOptions};
use crate::codes::Code;
use crate::config::{Rule, RuleAction};
use crate::metrics::{ConfigState, Metrics, PinnedCounters, Published, SweepRecorder, Sweeps};
use crate::pods::Recorder;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Adds the metrics of the datapath, and has the sweep count for them.
///
/// # Errors
/// Returns an error if the maps can't be opened.
pub(super) fn measure(
    metrics: &Metrics,
    ebpf: &mut Ebpf,
    options: &RunOptions,
    pods: Option<&Recorder>,
) -> Result<()> {
    metrics.add(PinnedCounters::open(&options.bpffs)?);
    let capacities = ebpf.datapath.maps().capacities()?;
    let sweeps = Arc::new(Sweeps::new(capacities, &options.metrics));
    metrics.add(Arc::clone(&sweeps));
    let names = pods.map(Recorder::index);
    let recorder = SweepRecorder::new(sweeps, &options.metrics, names);
    ebpf.sweeper.record_for(recorder);
    if let Some(log) = &ebpf.nat_log {
        metrics.add(log.counters());
    }
    Ok(())
}

impl Facts<'_> {
    /// Returns the number of findings by code.
    fn findings(&self) -> BTreeMap<Code, usize> {
        let network = self.network;
        let conflicts = self.foreign.rules.iter().filter(|found| found.conflict);
        let mut findings = BTreeMap::from([
            (
                Code::Rejected,
                usize::from(!self.config.rejected.is_empty()),
            ),
            (
                Code::Defaults,
                usize::from(self.rules.iter().any(Rule::is_default)),
            ),
            (Code::NoUplink, network.leaks.len()),
            (Code::NoAddress, self.no_address.len()),
            (Code::Detour, network.detours.len()),
            (Code::OtherNat, conflicts.count() + self.behind.len()),
            (Code::ChainBack, self.recreated_chains.len()),
            (Code::SelfCheck, usize::from(self.fault.is_some())),
        ]);
        for code in self.reach.iter().filter_map(|found| found.verdict.code()) {
            *findings.entry(code).or_default() += 1;
        }
        findings
    }
}

impl Agent {
    /// Publishes the agent's state for metrics. `is_ready`: the node is ready.
    pub(super) fn publish_metrics(&self, is_ready: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.agent().publish(self.published(is_ready));
        }
    }

    fn published(&self, is_ready: bool) -> Published {
        let facts = self.facts();
        let config = &self.in_force;
        let rules = &self.config.rules;
        let bypass = rules.iter().filter(|it| it.action == RuleAction::Bypass);
        let bypass = bypass.count();
        let conflicts = (self.foreign.found.rules.iter())
            .filter(|it| it.conflict)
            .count();
        Published {
            mode: self.identity.mode,
            config: ConfigState {
                hash: config.policy.hash.clone(),
                source: config.source_name.clone(),
                generation: config.policy.generation,
                applied_at: config.policy.applied_at,
                bypass,
                masquerade: rules.len() - bypass,
                warnings: config.warnings.len(),
                is_rejected: !config.rejected.is_empty(),
                reloaded_at: self.publisher.reloaded_at,
            },
            uplinks: self.attached.clone(),
            passed: self.publisher.passed.clone(),
            checked_at: self.publisher.checked_at,
            is_ready,
            findings: facts.findings(),
            conflicts,
            harmless: self.foreign.found.rules.len() - conflicts,
            follows_api: self.options.kube.is_some(),
            local_addrs: (self.engine.as_ebpf()).map(|_| self.applied.local.len()),
        }
    }

    /// Puts the configuration in force, and measures how long that takes.
    pub(super) fn apply_config(&mut self) -> ApplyOutcome {
        let begun = Instant::now();
        let outcome = self.apply();
        if let Some(metrics) = &self.metrics {
            metrics.agent().record_apply(begun.elapsed());
        }
        outcome
    }
}
