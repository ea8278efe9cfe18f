//! Other people's NAT rules: noticed, judged, said.

use super::Agent;
use super::modes::{Ebpf, Engine};
use crate::foreign::{Around, Finding, Look, Seen, Translator, Watch};
use crate::iptables::RuleMonitor;
use log::Level;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How many rules are logged at once that have changed in the same way.
const MAX_LOGGED: usize = 50;

/// Looks, and what calls for them.
#[derive(Debug)]
pub(super) struct Foreign {
    watch: Watch,
    /// Whether a look is over.
    looked: bool,
    /// What the last look has shown, as it was reported.
    pub(super) found: Seen,
    /// A rule that drops answers to pods, in words.
    in_the_way: Option<String>,
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
            found: Seen::default(),
            in_the_way: None,
            monitor: monitor.ok(),
        }
    }

    /// Whether it is known what rules there are.
    pub(super) const fn has_looked(&self) -> bool {
        self.looked
    }

    /// What keeps a takeover from ending what netfilter serves: somebody's rule drops answers that
    /// netdp gives pods' addresses.
    pub(super) const fn in_the_way(&self) -> Option<&String> {
        self.in_the_way.as_ref()
    }

    /// Takes note of what a look shows to be in the way of a takeover. Whether that is news.
    pub(super) fn note(&mut self, seen: &Seen) -> bool {
        let mut drops = seen.rules.iter().filter(|it| it.drops && it.conflict);
        let in_the_way = drops.next().map(ToString::to_string);
        let is_news = !self.looked || in_the_way != self.in_the_way;
        self.looked = true;
        self.in_the_way = in_the_way;
        is_news
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

    /// Reading or writing rules took so long: leaves the node in peace for a while.
    pub(super) fn rules_took(&mut self, time: Duration) {
        if let Some(monitor) = &mut self.monitor {
            monitor.took(time);
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

/// Says what is the matter with these rules; of very many only with the first.
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
    /// Somebody changed rules, or they were looked at.
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
                // After a takeover rules are looked at anew.
                let trying = |it: &Ebpf| it.takeover.is_trying();
                if !self.engine.as_ebpf().is_some_and(trying) {
                    self.accept_foreign(look.seen);
                }
            }
        }
    }

    /// Looks at them soon.
    pub(super) fn ask_foreign(&mut self) {
        let translator = match &self.engine {
            // What shadow mode looks at is what the datapath would find.
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
        say(Level::Warn, "in conflict", conflicts.filter(is_new));
        let harmless = now.rules.iter().filter(|found| !found.conflict);
        say(Level::Info, "harmless", harmless.filter(is_new));
        let gone = before.rules.iter().filter(|found| !new.contains(found));
        say(Level::Info, "no longer so", gone);
        // What is meant so was told with what it means for ports.
        let unread = now.unread.iter().filter(|_| !now.no_programs);
        for problem in unread.filter(|problem| !before.unread.contains(problem)) {
            log::info!("looking for other NAT rules: {problem}");
        }
        self.save_report();
    }
}
