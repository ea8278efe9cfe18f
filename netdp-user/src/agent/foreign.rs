//! Third-party NAT rules: detection, assessment and reporting.

use super::Agent;
use super::modes::{Ebpf, Engine};
use crate::foreign::{Around, Finding, Look, Seen, Translator, Watch};
use crate::iptables::RuleMonitor;
use log::Level;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Limit of rules logged at once for the same kind of change.
const MAX_LOGGED: usize = 50;

/// Scans for third-party NAT rules, and their triggers.
#[derive(Debug)]
pub(super) struct Foreign {
    watch: Watch,
    /// Set once a scan has finished.
    looked: bool,
    /// Findings of the last scan, as reported.
    pub(super) found: Seen,
    /// A rule that drops replies to pods, in words.
    in_the_way: Option<String>,
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
            watch: Watch::default(),
            looked: false,
            found: Seen::default(),
            in_the_way: None,
            monitor: monitor.ok(),
        }
    }

    /// Reports whether a scan has finished.
    pub(super) const fn has_looked(&self) -> bool {
        self.looked
    }

    /// Returns the rule that blocks a takeover, if any: a third-party rule that drops replies which
    /// netdp has rewritten to pods' addresses.
    pub(super) const fn in_the_way(&self) -> Option<&String> {
        self.in_the_way.as_ref()
    }

    /// Records whether the findings of a scan block a takeover. Returns whether that has changed.
    pub(super) fn note(&mut self, seen: &Seen) -> bool {
        let mut drops = seen.rules.iter().filter(|it| it.drops && it.conflict);
        let in_the_way = drops.next().map(ToString::to_string);
        let is_news = !self.looked || in_the_way != self.in_the_way;
        self.looked = true;
        self.in_the_way = in_the_way;
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
    pub(super) fn rules_took(&mut self, time: Duration) {
        if let Some(monitor) = &mut self.monitor {
            monitor.took(time);
        }
    }

    /// Waits for a change of rules or the result of a scan.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            () = Self::rules_changed(&mut self.monitor) => Event::RulesChanged,
            look = self.watch.seen() => Event::Seen(look),
        }
    }

    /// Waits for the result of a scan; forever if none was requested.
    pub(super) async fn seen(&mut self) -> Look {
        self.watch.seen().await
    }
}

/// Event for the agent's loop.
pub(super) enum Event {
    RulesChanged,
    Seen(Look),
}

/// Logs these rules; if there are very many, only the first.
fn say<'a>(level: Level, what: &str, mut rules: impl Iterator<Item = &'a Finding>) {
    for found in rules.by_ref().take(MAX_LOGGED) {
        log::log!(level, "{what}: {found}");
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
                self.ask_foreign();
                self.foreign.rules_took(start.elapsed());
            }
            Event::Seen(look) => {
                self.accept_inward(look.nat);
                if self.foreign.note(&look.seen) {
                    self.try_takeover_soon();
                    self.take_over();
                }
                // A takeover is followed by a new scan.
                let trying = |it: &Ebpf| it.takeover.is_trying();
                if !self.engine.as_ebpf().is_some_and(trying) {
                    self.accept_foreign(look.seen);
                }
            }
        }
    }

    /// Requests a scan of the rules.
    pub(super) fn ask_foreign(&mut self) {
        let translator = match &self.engine {
            // Shadow mode assesses the rules as the datapath would.
            Engine::Ebpf(_) | Engine::Shadow(_) => Translator::Ebpf,
            Engine::Iptables(_) => Translator::Chain(self.options.chains.name.clone()),
        };
        let by = self.to_judge_by();
        self.foreign.watch.ask(Around {
            translator,
            rules: self.config.rules.clone(),
            wire: by.wire.clone(),
            uplinks: by.uplinks.clone(),
            pods: self.options.surroundings.pod_cidrs.clone(),
            local: by.local.clone(),
            enable_ipv6: self.options.config_options.enable_ipv6,
        });
        self.judge_by(by);
    }

    fn accept_foreign(&mut self, seen: Seen) {
        if seen == self.foreign.found {
            return;
        }
        let before = std::mem::replace(&mut self.foreign.found, seen);
        let now = &self.foreign.found;
        let (old, new): (HashSet<_>, HashSet<_>) =
            (before.rules.iter().collect(), now.rules.iter().collect());
        let is_new = |found: &&Finding| !old.contains(found);
        let conflicts = now.rules.iter().filter(|found| found.conflict);
        say(Level::Warn, "conflict", conflicts.filter(is_new));
        let harmless = now.rules.iter().filter(|found| !found.conflict);
        say(Level::Info, "harmless", harmless.filter(is_new));
        let gone = before.rules.iter().filter(|found| !new.contains(found));
        say(Level::Info, "gone or changed", gone);
        // An image without nft and iptables is intended: its consequence for ports was logged.
        let unread = now.unread.iter().filter(|_| !now.no_programs);
        for problem in unread.filter(|problem| !before.unread.contains(problem)) {
            log::info!("reading third-party NAT rules: {problem}");
        }
        self.save_report();
    }
}
