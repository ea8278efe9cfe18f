//! Status that the agent publishes to the API and to probes.

use super::Agent;
use super::modes::Ebpf;
use super::readiness::LINES;
use crate::codes::Code;
use crate::control::{AgentStatus, REFUSALS};
use crate::report::UplinkReport;
use crate::time::now;
use netdp_common::layout::Family;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Interval between counts of the mappings: counting a million of them is too slow for each sweep.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// State of the publishing of the agent's status.
#[derive(Debug)]
pub(super) struct StatusPublisher {
    /// Set if there is a control-plane thread.
    on: bool,
    serial: u64,
    /// Documents of the previous configuration that no longer exist.
    gone: Vec<String>,
    /// Uplinks of the last self-check, with their addresses.
    checked: Vec<UplinkReport>,
    /// Fault found by the last self-check.
    pub(super) fault: Option<String>,
    /// Uplinks, true if they have passed it, and its time in seconds since 1970, if there was one.
    pub(super) passed: BTreeMap<String, bool>,
    pub(super) checked_at: Option<u64>,
    /// Time at which a configuration was last accepted or rejected, in seconds since 1970.
    pub(super) reloaded_at: u64,
    /// Reasons why the node was not ready, as last published.
    pub(super) unready: Vec<String>,
    mappings: usize,
    counted: Option<Instant>,
}

impl StatusPublisher {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on,
            serial: 0,
            gone: Vec::new(),
            checked: Vec::new(),
            fault: None,
            passed: BTreeMap::new(),
            checked_at: None,
            reloaded_at: 0,
            unready: Vec::new(),
            mappings: 0,
            counted: None,
        }
    }

    /// Records that a configuration was accepted or rejected.
    pub(super) fn record_config(&mut self, gone: Vec<String>) {
        self.serial += 1;
        self.reloaded_at = now();
        self.gone = gone;
    }

    /// Reports whether the uplinks differ from those of the last self-check.
    pub(super) fn differs_from_checked(&self, uplinks: &[UplinkReport]) -> bool {
        self.checked != uplinks
    }
}

impl Agent {
    /// Records a heartbeat of the loop.
    pub(super) fn record_heartbeat(&self) {
        if let Some(control) = &self.control {
            control.record_heartbeat();
        }
    }

    /// Runs the self-check: test packets go through the programs, which have to treat them as
    /// configured, or the node is not ready.
    pub(super) fn run_self_check(&mut self) {
        if !self.publisher.on || self.applied.policy.is_none() {
            return;
        }
        self.publisher.checked.clone_from(&self.attached);
        let families: &[Family] = if self.options.config_options.enable_ipv6 {
            &[Family::V4, Family::V6]
        } else {
            &[Family::V4]
        };
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        // The first fault is reported.
        let mut fault = datapath.check_hooks().err();
        let mut passed = BTreeMap::new();
        for uplink in self.applied.uplinks.values() {
            let checked = datapath.self_check(&self.config, uplink, &self.applied.local, families);
            passed.insert(uplink.name.clone(), checked.is_ok());
            fault = fault.or(checked.err());
        }
        self.publisher.passed = passed;
        self.publisher.checked_at = Some(now());
        let fault = fault.map(|err| format!("{err:#} {}", Code::SelfCheck));
        if fault != self.publisher.fault {
            match &fault {
                Some(fault) => {
                    log::error!("{fault}");
                    self.events.finding(fault, true);
                }
                None => {
                    log::info!("the self-check passes again");
                    self.events.finding("the self-check passes again", false);
                }
            }
        }
        self.publisher.fault = fault;
    }

    /// Publishes the agent's status.
    pub(super) fn publish_status(&mut self) {
        if !self.publisher.on {
            return;
        }
        let facts = self.facts();
        let (unready, notes) = (facts.reasons(), facts.notes());
        let no_way_back = facts.no_way_back();
        self.publish_metrics(unready.is_empty());
        let changed = unready != self.publisher.unready;
        self.publisher.unready.clone_from(&unready);
        if self
            .publisher
            .counted
            .is_none_or(|at| at.elapsed() >= COUNT_EVERY)
        {
            self.publisher.counted = Some(Instant::now());
            self.publisher.mappings = self.mappings();
        }
        let counters = self.engine.as_ebpf().map(Ebpf::counters);
        let counters = counters.unwrap_or_default();
        let config = &self.in_force;
        let some = |lines: &[String]| lines.iter().take(LINES).cloned().collect::<Vec<_>>();
        let status = AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: self.identity.mode.into(),
            no_ebpf: self.identity.no_ebpf.clone(),
            serial: self.publisher.serial,
            hash: config.policy.hash.clone(),
            generation: config.policy.generation,
            applied_at: config.policy.applied_at,
            source: config.source_name.clone(),
            rules: self.config.rules.len(),
            warnings: some(&config.warnings),
            rejected: some(&config.rejected),
            maps: self.api.maps(),
            uplinks: self.attached.iter().map(|u| u.name.clone()).collect(),
            mappings: self.publisher.mappings,
            refused: REFUSALS
                .map(|(drop, reason, _)| (reason, counters.drops.get(drop)))
                .into(),
            notes,
            no_way_back,
            gone: some(&self.publisher.gone),
            unready,
            losses: self.guard.losses,
            last_loss: self.guard.last_loss.clone(),
        };
        if let Some(control) = &self.control {
            control.publish(status);
        }
        if changed {
            self.save_report();
        }
    }
}
