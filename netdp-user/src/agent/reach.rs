//! The counts of bypassed networks' answers: read every ten seconds and judged.

use super::Agent;
use super::modes::Engine;
use crate::config::Rules;
use crate::reach::{self, Finding, Window};
use crate::state_dir::StateDir;
use crate::time::now;
use anyhow::Result;
use std::path::Path;

/// Interval between readings, in seconds.
const EVERY_SECONDS: u64 = 10;

/// The window of counts, and what follows from it.
pub(super) struct Reach {
    window: Window,
    /// Time at which counts were last read, in seconds since 1970; 0 for never.
    read_at: u64,
    /// Findings for the operator, as last reported.
    pub findings: Vec<Finding>,
    /// The last fault, which has been logged.
    fault: Option<String>,
}

impl Reach {
    /// Goes on with the window of an earlier agent.
    pub(super) fn after(dir: &StateDir) -> Self {
        Self {
            window: Window::after(dir),
            read_at: 0,
            findings: Vec::new(),
            fault: None,
        }
    }

    /// Reports whether it is time to read the counts. A clock that was set back makes no gap.
    const fn is_due(&self, now: u64) -> bool {
        now < self.read_at || now - self.read_at >= EVERY_SECONDS
    }

    /// Adds what the programs have counted, and saves the window.
    fn observe(&mut self, bpffs: &Path, dir: &StateDir, now: u64) -> Result<()> {
        let observed = reach::read(bpffs)?.unwrap_or_default();
        if self.window.observe(now, observed) {
            self.window.save(dir)?;
        }
        Ok(())
    }

    /// Judges the networks. Returns whether networks or verdicts differ from before.
    fn judge(&mut self, rules: &Rules, now: u64) -> bool {
        let findings = reach::reported(&reach::findings(&self.window.sums(now), rules));
        let is = |finding: &Finding| (finding.network, finding.verdict);
        for finding in &findings {
            if !self.findings.iter().any(|it| is(it) == is(finding)) {
                match finding.verdict.code() {
                    Some(code) => log::warn!("{code}: {}", finding.describe()),
                    None => log::warn!("{}", finding.describe()),
                }
            }
        }
        let changed = !self.findings.iter().map(is).eq(findings.iter().map(is));
        self.findings = findings;
        changed
    }

    fn record_fault(&mut self, fault: Option<String>) {
        if let Some(fault) = &fault
            && self.fault.as_ref() != Some(fault)
        {
            log::warn!("counts of bypassed networks: {fault}");
        }
        self.fault = fault;
    }
}

impl Agent {
    /// Judges which bypassed networks answer, if it is time. In shadow mode its thread counts.
    pub(super) fn judge_networks(&mut self) {
        let (now, dir) = (now(), &self.state_dir);
        let reach = &mut self.reach;
        if !reach.is_due(now) {
            return;
        }
        reach.read_at = now;
        let read = match &self.engine {
            Engine::Ebpf(_) => reach.observe(&self.options.bpffs, dir, now),
            Engine::Shadow(_) => Window::read(dir).map(|window| reach.window = window),
            Engine::Iptables(_) => return,
        };
        reach.record_fault(read.err().map(|err| format!("{err:#}")));
        if reach.judge(&self.config.rules, now) {
            self.save_report();
        }
    }
}
