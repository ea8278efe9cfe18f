//! Other people's NAT rules: noticed, judged, said.

use super::Agent;
use super::engine::Engine;
use crate::foreign::{Around, Look, Seen, Translator, Watch};
use crate::iptables::RuleMonitor;
use crate::uplinks::{Uplink, local_addresses, select};
use std::time::Instant;

/// Looks, and what calls for them.
#[derive(Debug)]
pub(super) struct Foreign {
    watch: Watch,
    /// Whether a look is over.
    looked: bool,
    /// Where changes are told at all; else there is the resync interval.
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
            monitor: monitor.ok(),
        }
    }

    /// Whether it is known what rules there are.
    pub(super) const fn has_looked(&self) -> bool {
        self.looked
    }

    /// Waits until somebody has changed rules; for ever where nobody tells.
    pub(super) async fn rules_changed(monitor: &mut Option<RuleMonitor>) {
        let Some(following) = monitor else {
            return std::future::pending().await;
        };
        if let Err(err) = following.changed().await {
            log::warn!("{err:#}");
            *monitor = None;
        }
    }

    /// Waits for what a look shows.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            () = Self::rules_changed(&mut self.monitor) => Event::RulesChanged,
            look = self.watch.seen() => Event::Seen(look),
        }
    }

    /// Waits for what a look shows; for ever where nobody asked for one.
    pub(super) async fn seen(&mut self) -> Look {
        self.watch.seen().await
    }
}

/// What may happen.
pub(super) enum Event {
    RulesChanged,
    Seen(Look),
}

impl Agent {
    /// Somebody changed rules, or they were looked at.
    pub(super) fn on_rules(&mut self, event: Event) {
        match event {
            Event::RulesChanged => {
                let start = Instant::now();
                if self.engine.as_chains().is_some() {
                    self.reconcile();
                }
                self.ask_foreign();
                if let Some(monitor) = &mut self.foreign.monitor {
                    monitor.took(start.elapsed());
                }
            }
            Event::Seen(look) => {
                self.accept_inward(look.nat);
                self.accept_foreign(look.seen);
            }
        }
    }

    /// Looks at them soon.
    pub(super) fn ask_foreign(&mut self) {
        let selected = select(&self.snapshot, &self.selection);
        let translator = match &self.engine {
            // What shadow mode looks at is what the datapath would find.
            Engine::Ebpf(_) | Engine::Shadow(_) => Translator::Ebpf,
            Engine::Iptables(_) => Translator::Chain(self.options.chains.name.clone()),
        };
        let local = local_addresses(&self.snapshot);
        self.judge_by(&local);
        self.foreign.watch.ask(Around {
            translator,
            rules: self.config.rules.clone(),
            wire: selected
                .uplinks
                .iter()
                .flat_map(Uplink::addresses)
                .collect(),
            uplinks: selected.uplinks.into_iter().map(|u| u.name).collect(),
            pods: self.options.surroundings.pod_cidrs.clone(),
            local,
            enable_ipv6: self.options.config_options.enable_ipv6,
        });
    }

    pub(super) fn accept_foreign(&mut self, seen: Seen) {
        self.foreign.looked = true;
        if seen == self.report.foreign {
            return;
        }
        let before = std::mem::replace(&mut self.report.foreign, seen);
        let now = &self.report.foreign;
        for found in now.rules.iter().filter(|f| !before.rules.contains(f)) {
            if found.conflict {
                log::warn!("in conflict: {found}");
            } else {
                log::info!("harmless: {found}");
            }
        }
        for gone in before.rules.iter().filter(|f| !now.rules.contains(f)) {
            log::info!("no longer so: {gone}");
        }
        for problem in now.unread.iter().filter(|p| !before.unread.contains(p)) {
            log::info!("looking for other NAT rules: {problem}");
        }
        self.save_report();
    }
}
