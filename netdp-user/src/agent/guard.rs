//! Programs that somebody takes off, and pins that somebody removes: noticed within a second, said,
//! and put right.

use super::Agent;
use super::foreign::Foreign;
use super::outrun::Outrun;
use crate::datapath::{Findings, Found, Placed, Watched};
use crate::iptables::RuleMonitor;
use crate::reconcile::{Backend as _, Change};
use crate::uplinks::Uplink;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often hooks and pins are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// As long as this a look at the hooks is taken to last: the node is left in peace for twenty times
/// that before somebody's next change of a filter calls for another.
const LASTS: Duration = Duration::from_millis(5);

/// What is known of hooks and pins.
#[derive(Debug)]
pub(super) struct Guard {
    /// A look beside the loop: the kernel may make one wait for its networking lock.
    looking: Option<JoinHandle<Findings>>,
    /// Tells when somebody has changed a filter or a qdisc; else there is [`LOOK_INTERVAL`].
    filters: Option<RuleMonitor>,
    /// What is not attached now.
    off: Vec<Placed>,
    /// When everything was seen attached last.
    seen: Instant,
    /// Others' programs that come before ours.
    pub(super) outrun: Outrun,
    /// Why interfaces could not be attached to, by index.
    refused: BTreeMap<u32, String>,
    /// Why interfaces that are no uplinks could not be observed, by index.
    unobserved: BTreeMap<u32, String>,
    /// Why entries of interfaces could not be written, or programs not taken off, by index.
    unmade: BTreeMap<u32, String>,
    /// What could not be asked, as said in the log.
    problem: Option<String>,
    /// How often programs were found missing.
    pub(super) losses: u64,
    /// What became of it last.
    pub(super) last_loss: String,
    /// How often programs or pins were put back.
    pub(super) repairs: u64,
    /// Why the datapath is not pinned, if so.
    pub(super) unpinned: Option<String>,
    /// Why the pins end with the agent's mount namespace, if they do.
    pub(super) fleeting: Option<String>,
}

impl Guard {
    pub(super) fn new() -> Self {
        let filters = RuleMonitor::of_filters();
        if let Err(err) = &filters {
            log::debug!("{err:#}");
        }
        Self {
            looking: None,
            filters: filters.ok(),
            off: Vec::new(),
            seen: Instant::now(),
            outrun: Outrun::new(),
            refused: BTreeMap::new(),
            unobserved: BTreeMap::new(),
            unmade: BTreeMap::new(),
            problem: None,
            losses: 0,
            last_loss: String::new(),
            repairs: 0,
            unpinned: None,
            fleeting: None,
        }
    }

    /// Looks soon, unless a look is under way.
    pub(super) fn look(&mut self, watched: Watched) {
        if self.looking.is_none() {
            self.looking = Some(tokio::task::spawn_blocking(move || watched.look()));
        }
    }

    /// Waits for what a look shows, or for the time to look at packets. Dropping the future loses
    /// nothing.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            found = found(&mut self.looking) => Event::Looked(found),
            () = self.outrun.due() => Event::Packets,
            () = Foreign::rules_changed(&mut self.filters) => Event::FiltersChanged,
        }
    }

    /// Everything that is in the way of translating, a line each.
    pub(super) fn faults(&self) -> Vec<String> {
        let off = self.off.iter().map(ToString::to_string);
        off.chain(self.outrun.faults())
            .chain(self.refused.values().cloned())
            .collect()
    }

    /// An interface could not be attached to; whether that is news.
    pub(super) fn refused(&mut self, ifindex: u32, why: String) -> bool {
        self.refused.insert(ifindex, why.clone()) != Some(why)
    }

    /// An interface that is no uplink could not be attached to; whether that is news.
    pub(super) fn unobserved(&mut self, ifindex: u32, why: &str) -> bool {
        self.unobserved.insert(ifindex, why.to_owned()).as_deref() != Some(why)
    }

    /// An entry of an interface could not be written, or programs not taken off; whether that is news.
    pub(super) fn unmade(&mut self, ifindex: u32, why: &str) -> bool {
        self.unmade.insert(ifindex, why.to_owned()).as_deref() != Some(why)
    }

    /// Keeps what is known of interfaces on which a change has failed since.
    pub(super) fn retain_failures(&mut self, failed: impl Fn(u32) -> bool) {
        self.unmade.retain(|ifindex, _| failed(*ifindex));
        self.unobserved.retain(|ifindex, _| failed(*ifindex));
    }

    /// Whether a change was made before, and is made again because another one of that interface failed,
    /// which is `unknown` since.
    pub(super) fn is_again(&self, change: &Change, unknown: &BTreeMap<u32, String>) -> bool {
        match change {
            Change::SetUplink(link) => self.refused.contains_key(&link.ifindex),
            Change::Attach(Uplink { ifindex, .. }) | Change::Observe(Uplink { ifindex, .. }) => {
                self.unmade.contains_key(ifindex) && unknown.contains_key(ifindex)
            }
            _ => false,
        }
    }

    /// Keeps the refusals of interfaces that still are to be attached to and are not.
    pub(super) fn retain_refusals(&mut self, refused: impl Fn(u32) -> bool) {
        let off = &self.off;
        self.refused
            .retain(|ifindex, _| is_off(off, *ifindex) || refused(*ifindex));
    }
}

/// What may happen.
pub(super) enum Event {
    /// A look is over.
    Looked(Option<Findings>),
    /// It is time to look at packets.
    Packets,
    /// Somebody has changed a filter or a qdisc.
    FiltersChanged,
}

/// What a look shows; for ever where there is none.
async fn found(looking: &mut Option<JoinHandle<Findings>>) -> Option<Findings> {
    let Some(running) = looking else {
        return std::future::pending().await;
    };
    let found = running.await;
    *looking = None;
    match found {
        Ok(found) => Some(found),
        Err(err) => {
            log::error!("looking at the hooks: {err}");
            None
        }
    }
}

fn is_off(off: &[Placed], ifindex: u32) -> bool {
    off.iter().any(|placed| placed.ifindex == ifindex)
}

impl Agent {
    /// It is time to look.
    pub(super) fn look_at_hooks(&mut self) {
        if let Some(datapath) = self.engine.as_datapath() {
            self.guard.look(datapath.watched());
        }
        let (off, mut refused) = (&self.guard.off, self.guard.refused.keys());
        if refused.any(|ifindex| !is_off(off, *ifindex)) {
            self.reconcile();
        }
    }

    /// What [`Guard::next`] has waited for.
    pub(super) fn on_guard(&mut self, event: Event) {
        match event {
            Event::Looked(found) => self.looked_at_hooks(found),
            Event::Packets => self.look_at_packets(),
            Event::FiltersChanged => {
                if let Some(filters) = &mut self.guard.filters {
                    filters.took(LASTS);
                }
                self.look_at_hooks();
            }
        }
    }

    /// A look is over.
    fn looked_at_hooks(&mut self, found: Option<Findings>) {
        let Some(found) = found else {
            return;
        };
        if found.problem != self.guard.problem
            && let Some(problem) = &found.problem
        {
            log::error!("{problem}");
        }
        self.guard.problem = found.problem;
        if !found.missing.is_empty() || !self.guard.off.is_empty() {
            self.mend_hooks();
        } else if self.guard.problem.is_none() {
            self.guard.seen = found.at;
        }
        self.look_ahead(found.behind);
        self.mend_pins(found.unpinned);
    }

    /// Attaches again what is not attached, and says so.
    pub(super) fn mend_hooks(&mut self) {
        // Once more: what a look has shown may be over.
        let missing = self.missing();
        if missing.is_empty() && self.guard.off.is_empty() {
            return;
        }
        for placed in missing.iter().filter(|it| !self.guard.off.contains(it)) {
            log::error!("{placed}: attaching it again; packets have passed untranslated meanwhile");
            self.guard.losses += 1;
            self.guard.last_loss = placed.to_string();
        }
        self.guard.off = missing;
        self.tell_faults();
        let lost: BTreeSet<u32> = self.guard.off.iter().map(|it| it.ifindex).collect();
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
                if self.guard.refused(ifindex, why.clone()) {
                    log::error!("{why}");
                }
            }
        }
        let left = self.missing();
        for ifindex in lost {
            if !is_off(&left, ifindex) {
                self.guard.refused.remove(&ifindex);
            }
        }
        let mended = self
            .guard
            .off
            .iter()
            .filter(|it| !left.contains(it))
            .count();
        self.guard.repairs += u64::try_from(mended).unwrap_or(u64::MAX);
        if left.is_empty() {
            let off = self.guard.seen.elapsed().as_secs_f64();
            log::info!("all programs are attached again, after {off:.1} s at most");
            self.guard.last_loss += &format!("; attached again after {off:.1} s at most");
            self.guard.seen = Instant::now();
        }
        self.guard.off = left;
        self.tell_faults();
    }

    /// What is not attached, asked now.
    pub(super) fn missing(&mut self) -> Vec<Placed> {
        let placed = self.engine.as_datapath().map(|datapath| datapath.placed());
        let mut placed = placed.unwrap_or_default();
        placed.retain(|placed| matches!(placed.look(), Ok(Found::Missing)));
        placed
    }

    /// Says what is in the way, to whoever asks.
    pub(super) fn tell_faults(&mut self) {
        // Probes first: who reads in a file that the node is not ready finds that they say so too.
        self.tell();
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
        assert!(guard.unmade(2, "no memory"));
        assert!(!guard.unmade(2, "no memory"));
        assert!(guard.unmade(3, "no memory"));
        assert!(guard.unmade(2, "no such device"));
        assert!(guard.unobserved(4, "no memory"));
        guard.retain_failures(|ifindex| ifindex == 2);
        assert!(!guard.unmade(2, "no such device"));
        assert!(guard.unmade(3, "no memory"), "it was well meanwhile");
        assert!(guard.unobserved(4, "no memory"), "it was well meanwhile");
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
        });
        let mut guard = Guard::new();
        let unknown = BTreeMap::from([(2, "eth0".into())]);
        assert!(!guard.is_again(&attach, &unknown));
        guard.unmade(2, "no memory");
        assert!(!guard.is_again(&attach, &BTreeMap::new()));
        assert!(guard.is_again(&attach, &unknown));
    }
}
