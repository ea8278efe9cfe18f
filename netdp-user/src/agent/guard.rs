//! Guard of programs and pins: detects within half a second that programs were detached or pins
//! removed, logs it, and restores them.

use super::Agent;
use super::foreign::Foreign;
use super::programs_ahead::ProgramsAhead;
use crate::datapath::{Expected, HookCheck, HookState, Placed};
use crate::iptables::RuleMonitor;
use crate::reconcile::{Backend as _, Change};
use crate::uplinks::Uplink;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Interval between checks of hooks and pins.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Assumed duration of a check of the hooks: after a notification of a changed filter, the next one
/// is handled no sooner than twenty times this later.
const CHECK_DURATION: Duration = Duration::from_millis(5);

/// State of hooks and pins.
#[derive(Debug)]
pub(super) struct Guard {
    /// A check in the background: the kernel may let it wait for the RTNL lock.
    checking: Option<JoinHandle<HookCheck>>,
    /// Netlink notifications of changed filters and qdiscs; without them, [`CHECK_INTERVAL`]
    /// applies.
    filters: Option<RuleMonitor>,
    /// Programs that are detached now.
    detached: Vec<Placed>,
    /// Time at which all programs were last seen attached.
    complete_at: Instant,
    /// Third-party programs that run before ours.
    pub(super) ahead: ProgramsAhead,
    /// Reasons why attaching to interfaces failed, by index.
    refused: BTreeMap<u32, String>,
    /// Reasons why interfaces other than uplinks could not be observed, by index.
    unobserved: BTreeMap<u32, String>,
    /// Reasons why entries of interfaces could not be written, or programs not detached, by index.
    failed_changes: BTreeMap<u32, String>,
    /// Failed query, as logged.
    problem: Option<String>,
    /// Number of times that programs were found detached.
    pub(super) losses: u64,
    /// Result of the last such case.
    pub(super) last_loss: String,
    /// Number of times that programs or pins were restored.
    pub(super) repairs: u64,
    /// Reason why the datapath is not pinned, if so.
    pub(super) unpinned: Option<String>,
    /// Reason why the pins end with the agent's mount namespace, if they do.
    pub(super) ephemeral: Option<String>,
}

impl Guard {
    pub(super) fn new() -> Self {
        let filters = RuleMonitor::of_filters();
        if let Err(err) = &filters {
            log::debug!("{err:#}");
        }
        Self {
            checking: None,
            filters: filters.ok(),
            detached: Vec::new(),
            complete_at: Instant::now(),
            ahead: ProgramsAhead::new(),
            refused: BTreeMap::new(),
            unobserved: BTreeMap::new(),
            failed_changes: BTreeMap::new(),
            problem: None,
            losses: 0,
            last_loss: String::new(),
            repairs: 0,
            unpinned: None,
            ephemeral: None,
        }
    }

    /// Starts a check, unless one is under way.
    pub(super) fn start_check(&mut self, expected: Expected) {
        if self.checking.is_none() {
            self.checking = Some(tokio::task::spawn_blocking(move || expected.check()));
        }
    }

    /// Waits for the result of a check, a change of filters, or the time to inspect packets.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            found = found(&mut self.checking) => Event::Checked(found),
            () = self.ahead.due() => Event::Packets,
            () = Foreign::rules_changed(&mut self.filters) => Event::FiltersChanged,
        }
    }

    /// Returns all faults that keep packets from being translated, one line each.
    pub(super) fn faults(&self) -> Vec<String> {
        let off = self.detached.iter().map(ToString::to_string);
        off.chain(self.ahead.faults())
            .chain(self.refused.values().cloned())
            .collect()
    }

    /// Records that attaching to an interface failed. Returns whether that is new.
    pub(super) fn record_refusal(&mut self, ifindex: u32, why: String) -> bool {
        self.refused.insert(ifindex, why.clone()) != Some(why)
    }

    /// Records that attaching to an observed interface failed. Returns whether that is new.
    pub(super) fn record_unobserved(&mut self, ifindex: u32, why: &str) -> bool {
        self.unobserved.insert(ifindex, why.to_owned()).as_deref() != Some(why)
    }

    /// Records that an entry of an interface could not be written, or its programs not detached.
    /// Returns whether that is new.
    pub(super) fn record_failed_change(&mut self, ifindex: u32, why: &str) -> bool {
        self.failed_changes
            .insert(ifindex, why.to_owned())
            .as_deref()
            != Some(why)
    }

    /// Keeps the errors of interfaces on which a change has failed since.
    pub(super) fn retain_failures(&mut self, failed: impl Fn(u32) -> bool) {
        self.failed_changes.retain(|ifindex, _| failed(*ifindex));
        self.unobserved.retain(|ifindex, _| failed(*ifindex));
    }

    /// Reports whether a change was made before, and is repeated because another one of that
    /// interface, which is `unknown` since, failed.
    pub(super) fn is_repeated(&self, change: &Change, unknown: &BTreeMap<u32, String>) -> bool {
        match change {
            Change::SetUplink(link) => self.refused.contains_key(&link.ifindex),
            Change::Attach(Uplink { ifindex, .. }) | Change::Observe(Uplink { ifindex, .. }) => {
                self.failed_changes.contains_key(ifindex) && unknown.contains_key(ifindex)
            }
            _ => false,
        }
    }

    /// Keeps the errors of interfaces that are still to be attached to and are not.
    pub(super) fn retain_refusals(&mut self, refused: impl Fn(u32) -> bool) {
        let off = &self.detached;
        self.refused
            .retain(|ifindex, _| is_detached(off, *ifindex) || refused(*ifindex));
    }
}

/// Event for the agent's loop.
pub(super) enum Event {
    /// A check has finished.
    Checked(Option<HookCheck>),
    /// The time has come to inspect packets.
    Packets,
    /// A filter or a qdisc has changed.
    FiltersChanged,
}

/// Waits for the result of a check; forever if none is under way.
async fn found(checking: &mut Option<JoinHandle<HookCheck>>) -> Option<HookCheck> {
    let Some(running) = checking else {
        return std::future::pending().await;
    };
    let found = running.await;
    *checking = None;
    match found {
        Ok(found) => Some(found),
        Err(err) => {
            log::error!("scanning the hooks: {err}");
            None
        }
    }
}

fn is_detached(off: &[Placed], ifindex: u32) -> bool {
    off.iter().any(|placed| placed.ifindex == ifindex)
}

impl Agent {
    /// Checks the hooks, and retries attaching where it failed.
    pub(super) fn check_hooks(&mut self) {
        if let Some(datapath) = self.engine.as_datapath() {
            self.guard.start_check(datapath.expected());
        }
        let (off, mut refused) = (&self.guard.detached, self.guard.refused.keys());
        if refused.any(|ifindex| !is_detached(off, *ifindex)) {
            self.reconcile();
        }
    }

    /// Handles an event of [`Guard::next`].
    pub(super) fn on_guard(&mut self, event: Event) {
        match event {
            Event::Checked(found) => self.on_hook_check(found),
            Event::Packets => self.inspect_packets(),
            Event::FiltersChanged => {
                if let Some(filters) = &mut self.guard.filters {
                    filters.back_off(CHECK_DURATION);
                }
                self.check_hooks();
            }
        }
    }

    /// Handles the result of a check.
    fn on_hook_check(&mut self, found: Option<HookCheck>) {
        let Some(found) = found else {
            return;
        };
        if found.problem != self.guard.problem
            && let Some(problem) = &found.problem
        {
            log::error!("{problem}");
        }
        self.guard.problem = found.problem;
        if !found.missing.is_empty() || !self.guard.detached.is_empty() {
            self.reattach_missing();
        } else if self.guard.problem.is_none() {
            self.guard.complete_at = found.at;
        }
        self.on_programs_ahead(found.behind);
        self.restore_pins(found.unpinned);
    }

    /// Attaches detached programs again, and logs it.
    pub(super) fn reattach_missing(&mut self) {
        // Queried again: the result of the check may be out of date.
        let missing = self.missing();
        if missing.is_empty() && self.guard.detached.is_empty() {
            return;
        }
        for placed in missing
            .iter()
            .filter(|it| !self.guard.detached.contains(it))
        {
            log::error!(
                uplink = placed.interface;
                "{placed}: attaching it again; packets passed untranslated in the meantime"
            );
            self.guard.losses += 1;
            self.guard.last_loss = placed.to_string();
        }
        self.guard.detached = missing;
        self.publish_faults();
        let lost: BTreeSet<u32> = self.guard.detached.iter().map(|it| it.ifindex).collect();
        let uplinks = self.applied.uplinks.values();
        let uplinks = uplinks.filter(|uplink| lost.contains(&uplink.ifindex));
        let observed = self.applied.observed.values();
        let observed = observed.filter(|link| lost.contains(&link.ifindex));
        let observed = observed.cloned().map(Change::Observe);
        let pods = self.applied.pod_links.iter();
        let pods = pods.filter(|(ifindex, _)| lost.contains(ifindex));
        let pods = pods.map(|(&ifindex, name)| Change::AttachPods {
            ifindex,
            name: name.clone(),
        });
        let uplinks = uplinks.cloned().map(Change::Attach);
        let changes: Vec<_> = uplinks.chain(observed).chain(pods).collect();
        for change in changes {
            let ifindex = match &change {
                Change::Attach(link) | Change::Observe(link) => link.ifindex,
                Change::AttachPods { ifindex, .. } => *ifindex,
                _ => continue,
            };
            if let Err(err) = self.engine.apply(&change) {
                let why = format!("{err:#}");
                if self.guard.record_refusal(ifindex, why.clone()) {
                    log::error!("{why}");
                }
            }
        }
        let left = self.missing();
        for ifindex in lost {
            if !is_detached(&left, ifindex) {
                self.guard.refused.remove(&ifindex);
            }
        }
        let mended = self
            .guard
            .detached
            .iter()
            .filter(|it| !left.contains(it))
            .count();
        self.guard.repairs += u64::try_from(mended).unwrap_or(u64::MAX);
        if left.is_empty() {
            let off = self.guard.complete_at.elapsed().as_secs_f64();
            log::info!("all programs are attached again, after {off:.1} s at most");
            self.guard.last_loss += &format!("; attached again after {off:.1} s at most");
            self.guard.complete_at = Instant::now();
        }
        self.guard.detached = left;
        self.publish_faults();
    }

    /// Queries which programs are detached now.
    pub(super) fn missing(&mut self) -> Vec<Placed> {
        let placed = self.engine.as_datapath().map(|datapath| datapath.placed());
        let mut placed = placed.unwrap_or_default();
        placed.retain(|placed| matches!(placed.check(), Ok(HookState::Missing)));
        placed
    }

    /// Publishes the faults to the API, probes, the status report and the ready file.
    pub(super) fn publish_faults(&mut self) {
        // Probes first: a reader of the ready file who finds the node not ready gets the same from
        // the probes.
        self.publish_status();
        self.save_report();
        self.update_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Guard, Uplink};
    use crate::uplinks::LinkLayer;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn the_same_failure_of_an_interface_is_news_once() {
        let mut guard = Guard::new();
        assert!(guard.record_failed_change(2, "no memory"));
        assert!(!guard.record_failed_change(2, "no memory"));
        assert!(guard.record_failed_change(3, "no memory"));
        assert!(guard.record_failed_change(2, "no such device"));
        assert!(guard.record_unobserved(4, "no memory"));
        guard.retain_failures(|ifindex| ifindex == 2);
        assert!(!guard.record_failed_change(2, "no such device"));
        assert!(
            guard.record_failed_change(3, "no memory"),
            "it was well meanwhile"
        );
        assert!(
            guard.record_unobserved(4, "no memory"),
            "it was well meanwhile"
        );
    }

    #[tokio::test]
    async fn attaching_is_announced_once_though_the_entry_fails_again() {
        let attach = Change::Attach(Uplink {
            ifindex: 2,
            name: "eth0".into(),
            link_layer: LinkLayer::Ethernet,
            v4: None,
            v6: None,
            up: true,
            untagged: false,
            only_v4: false,
            only_v6: false,
        });
        let mut guard = Guard::new();
        let unknown = BTreeMap::from([(2, "eth0".into())]);
        assert!(!guard.is_repeated(&attach, &unknown));
        guard.record_failed_change(2, "no memory");
        assert!(!guard.is_repeated(&attach, &BTreeMap::new()));
        assert!(guard.is_repeated(&attach, &unknown));
    }
}
