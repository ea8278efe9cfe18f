//! Third-party NAT rules: detection, assessment and reporting.

use super::Agent;
use super::modes::{Ebpf, Engine};
use crate::codes::Code;
use crate::foreign::{Finding, NatContext, NatFindings, ScanQueue, ScanResult, Translator};
use crate::iptables::RuleMonitor;
use log::Level;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Limit of rules logged at once for the same kind of change.
const MAX_LOGGED: usize = 50;

/// Scans for third-party NAT rules, and their triggers.
#[derive(Debug)]
pub(super) struct Foreign {
    queue: ScanQueue,
    /// Set once a scan has finished.
    scanned: bool,
    /// Findings of the last scan, as reported.
    pub(super) found: NatFindings,
    /// A rule that drops replies to pods, in words.
    obstacle: Option<String>,
    /// Netlink notifications of rule changes; without them, scans follow the resync interval.
    monitor: Option<RuleMonitor>,
}

impl Foreign {
    pub(super) fn new() -> Self {
        let monitor = RuleMonitor::new();
        if let Err(err) = &monitor {
            log::debug!("{err:#}");
        }
        Self {
            queue: ScanQueue::default(),
            scanned: false,
            found: NatFindings::default(),
            obstacle: None,
            monitor: monitor.ok(),
        }
    }

    /// Reports whether a scan has finished.
    pub(super) const fn has_scanned(&self) -> bool {
        self.scanned
    }

    /// Returns the rule that blocks a takeover, if any: a third-party rule that drops replies which
    /// netdp has rewritten to pods' addresses.
    pub(super) const fn obstacle(&self) -> Option<&String> {
        self.obstacle.as_ref()
    }

    /// Records whether the findings of a scan block a takeover. Returns whether that has changed.
    pub(super) fn record_scan(&mut self, seen: &NatFindings) -> bool {
        let mut drops = seen.rules.iter().filter(|it| it.drops && it.conflict);
        let obstacle = drops.next().map(ToString::to_string);
        let is_news = !self.scanned || obstacle != self.obstacle;
        self.scanned = true;
        self.obstacle = obstacle;
        is_news
    }

    /// Waits for a change of rules; forever without notifications.
    pub(super) async fn rules_changed(monitor: &mut Option<RuleMonitor>) {
        let Some(following) = monitor else {
            return std::future::pending().await;
        };
        if let Err(err) = following.changed().await {
            log::warn!("{err:#}");
            *monitor = None;
        }
    }

    /// Reports how long reading or writing the rules took, so that the monitor backs off
    /// accordingly.
    pub(super) fn record_duration(&mut self, time: Duration) {
        if let Some(monitor) = &mut self.monitor {
            monitor.back_off(time);
        }
    }

    /// Waits for a change of rules or the result of a scan.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            () = Self::rules_changed(&mut self.monitor) => Event::RulesChanged,
            scan = self.queue.result() => Event::Scanned(scan),
        }
    }

    /// Waits for the result of a scan; forever if none was requested.
    pub(super) async fn scanned(&mut self) -> ScanResult {
        self.queue.result().await
    }
}

/// Event for the agent's loop.
pub(super) enum Event {
    RulesChanged,
    Scanned(ScanResult),
}

/// Logs these rules; if there are very many, only the first.
fn log_rules<'a>(level: Level, what: &str, mut rules: impl Iterator<Item = &'a Finding>) {
    for found in rules.by_ref().take(MAX_LOGGED) {
        match level == Level::Warn && !found.drops {
            true => log::log!(level, "{what}: {found} {}", Code::OtherNat),
            false => log::log!(level, "{what}: {found}"),
        }
    }
    if let more @ 1.. = rules.count() {
        log::log!(
            level,
            "{what}: {more} more; netdp status -o json shows them"
        );
    }
}

impl Agent {
    /// Handles a change of rules or the result of a scan.
    pub(super) fn on_rules(&mut self, event: Event) {
        match event {
            Event::RulesChanged => {
                let start = Instant::now();
                if self.engine.as_iptables().is_some() {
                    self.reconcile();
                }
                self.scan_foreign();
                self.foreign.record_duration(start.elapsed());
            }
            Event::Scanned(scan) => {
                self.set_inward_rules(scan.redirects);
                if self.foreign.record_scan(&scan.findings) {
                    self.retry_takeover_soon();
                    self.take_over();
                }
                // A takeover is followed by a new scan.
                let trying = |it: &Ebpf| it.takeover.is_trying();
                if !self.engine.as_ebpf().is_some_and(trying) {
                    self.report_foreign(scan.findings);
                }
            }
        }
    }

    /// Requests a scan of the rules.
    pub(super) fn scan_foreign(&mut self) {
        let translator = match &self.engine {
            // Shadow mode assesses the rules as the datapath would.
            Engine::Ebpf(_) | Engine::Shadow(_) => Translator::Ebpf,
            Engine::Iptables(_) => Translator::Chain(self.options.chains.name.clone()),
        };
        let by = self.assessment_context();
        self.foreign.queue.request(NatContext {
            translator,
            rules: self.config.rules.clone(),
            wire: by.wire.clone(),
            uplinks: by.uplinks.clone(),
            pods: self.options.cluster_cidrs.pod_cidrs.clone(),
            local: by.local.clone(),
            enable_ipv6: self.options.config_options.enable_ipv6,
        });
        self.set_assessment_context(by);
    }

    fn report_foreign(&mut self, seen: NatFindings) {
        if seen == self.foreign.found {
            return;
        }
        let before = std::mem::replace(&mut self.foreign.found, seen);
        let now = &self.foreign.found;
        let (old, new): (HashSet<_>, HashSet<_>) =
            (before.rules.iter().collect(), now.rules.iter().collect());
        let is_new = |found: &&Finding| !old.contains(found);
        let conflicts = now.rules.iter().filter(|found| found.conflict);
        log_rules(Level::Warn, "conflict", conflicts.filter(is_new));
        let harmless = now.rules.iter().filter(|found| !found.conflict);
        log_rules(Level::Info, "harmless", harmless.filter(is_new));
        let gone = before.rules.iter().filter(|found| !new.contains(found));
        log_rules(Level::Info, "gone or changed", gone);
        // An image without nft and iptables is intended: its consequence for ports was logged.
        let unread = now.unread.iter().filter(|_| !now.no_programs);
        for problem in unread.filter(|problem| !before.unread.contains(problem)) {
            log::info!("reading third-party NAT rules: {problem}");
        }
        self.save_report();
    }
}
