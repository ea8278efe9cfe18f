//! The datapath follows the configuration and the node's network.

use super::modes::EbpfEvent;
use super::{Agent, DRAIN_IDLE};
use crate::config;
use crate::datapath::OnReload;
use crate::reconcile::{self, Backend as _, Change, PolicyRule, State, Step};
use crate::uplinks::{Settled, Uplink, detours, hint, local_addresses, pod_links, select};
use log::Level;
use netdp_common::abi::Action;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How many addresses a new map has room for (`LOCAL_ADDRS` of netdp-ebpf).
const ADDRESSES: usize = 131_072;

/// What the selection of uplinks has shown, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// `--uplink` patterns that match no interface yet.
    pub waiting_for: Vec<String>,
    /// `--hairpin` patterns that match no interface yet.
    pub waiting_for_pods: Vec<String>,
    /// What may have been meant by some of those.
    pub hints: Vec<String>,
    /// Why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Why not all addresses of the node count, if so.
    pub no_room: Option<String>,
    /// What `--uplink` names and can't be an uplink.
    pub left_out: Vec<String>,
    /// What was decided about uplinks that stand on each other.
    pub stacked: Vec<String>,
    /// Interfaces that masqueraded destinations leave by untranslated.
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node.
    pub guests: Vec<String>,
    /// Ways for packets past the uplinks' hooks.
    pub detours: Vec<String>,
    /// IPsec policies that cover what pods send once it has the node's address.
    pub ipsec: Vec<String>,
}

/// What came of [`Agent::apply`].
pub(super) enum Applied {
    /// The chains are being written: [`Agent::on_iptables`] goes on.
    Chains,
    Datapath {
        /// Another policy is in force.
        repolicied: bool,
    },
}

impl Agent {
    /// Takes programs off interfaces that are no uplinks any more.
    pub(super) fn detach_strangers(&mut self) {
        let selected = select(&self.snapshot, &self.selection);
        let pods = self.pod_links(&selected.uplinks);
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        if let Err(err) = datapath.detach_pods_except(&pods) {
            log::error!("{err:#}");
        }
        let uplinks = datapath.known_uplinks().unwrap_or_default();
        let known = datapath.known_interfaces().unwrap_or_default();
        for ifindex in known {
            let is_it = |uplink: &Uplink| uplink.ifindex == ifindex;
            let remains = selected.uplinks.iter().any(is_it);
            let link = self.snapshot.link(ifindex);
            let name = link.map_or_else(|| format!("index {ifindex}"), |l| l.name.clone());
            if !remains && uplinks.contains(&ifindex) {
                log::info!("{name} is no uplink any more: detaching");
            }
            if remains || selected.observed.iter().any(is_it) {
                continue;
            }
            if let Err(err) = datapath.apply(&Change::Detach { ifindex, name }) {
                log::error!("{err:#}");
            }
        }
    }

    /// Looks at the network anew.
    pub(super) async fn look(&mut self) {
        match self.monitor.snapshot().await {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.reconcile();
                self.network_changed();
            }
            Err(err) => log::warn!("looking at the network: {err:#}"),
        }
    }

    fn pod_links(&self, uplinks: &[Uplink]) -> BTreeMap<u32, String> {
        pod_links(&self.snapshot, &self.options.hairpin, |ifindex| {
            uplinks.iter().any(|uplink| uplink.ifindex == ifindex)
        })
    }

    fn wanted(&mut self) -> State {
        let mut selected = select(&self.snapshot, &self.selection);
        self.wait_for(std::mem::take(&mut selected.unmatched));
        if selected.reason != self.found.no_uplink
            && let Some(reason) = &selected.reason
            && self.found.waiting_for.is_empty()
        {
            log::warn!("no uplink: {reason}");
        }
        self.found.no_uplink = selected.reason;
        if selected.stacked != self.found.stacked {
            for what in &selected.stacked {
                log::info!("{what}");
            }
        }
        self.found.stacked = selected.stacked;
        for what in &selected.left_out {
            if !self.found.left_out.contains(what) {
                log::warn!("{what}");
            }
        }
        self.found.left_out = selected.left_out;
        self.selection.with_guests = selected.with_guests;
        for what in &selected.leaks {
            if !self.found.leaks.contains(what) {
                log::error!("{what}");
            }
        }
        if self
            .found
            .leaks
            .iter()
            .any(|what| !selected.leaks.contains(what))
        {
            let left = selected.leaks.len();
            log::info!("interfaces that masqueraded destinations leave by untranslated: {left}");
        }
        if selected.leaks != self.found.leaks {
            self.takeover.try_soon();
        }
        self.found.leaks = selected.leaks;
        let guests = selected.guests.iter();
        let new: Vec<_> = guests
            .filter(|name| !self.found.guests.contains(name))
            .collect();
        if !new.is_empty() {
            log::info!("{new:?} lead to guests of this node: what goes there is not masqueraded");
        }
        self.found.guests = selected.guests;
        let uplinks = selected.uplinks.iter().map(|uplink| uplink.ifindex);
        (self.monitor).settle(Settled::after(&self.snapshot, uplinks));
        let detours = detours(&self.snapshot, &selected.uplinks);
        for what in &detours {
            if !self.found.detours.contains(what) {
                log::warn!("{what}");
            }
        }
        self.found.detours = detours;
        let pod_links = self.pod_links(&selected.uplinks);
        (selected.observed).retain(|link| !pod_links.contains_key(&link.ifindex));
        let withheld = self.withheld(&selected.uplinks, &selected.sources);
        let policy = self.config.rules.iter().map(policy_rule).collect();
        State {
            pod_links,
            policy: Some(withheld.apply(policy)),
            local: local_addresses(&self.snapshot),
            observed: selected
                .observed
                .into_iter()
                .map(|link| (link.ifindex, link))
                .collect(),
            macs: selected.macs,
            sources: selected.sources,
            unknown: BTreeMap::new(),
            uplinks: selected
                .uplinks
                .into_iter()
                .map(|uplink| (uplink.ifindex, uplink))
                .collect(),
        }
    }

    /// Says which interfaces are waited for, and what may have been meant instead.
    fn wait_for(&mut self, uplinks: Vec<String>) {
        let pods = self.options.hairpin.unmatched(&self.snapshot);
        let mut hints = Vec::new();
        for (flag, patterns, before) in [
            ("--uplink", &uplinks, &self.found.waiting_for),
            ("--hairpin", &pods, &self.found.waiting_for_pods),
        ] {
            for pattern in patterns {
                let hint = hint(flag, pattern, &self.snapshot);
                let and = hint
                    .as_ref()
                    .map_or_else(String::new, |hint| format!("; {hint}"));
                // Pods come when they come.
                let level = match (flag, &hint) {
                    ("--hairpin", None) => Level::Info,
                    _ => Level::Warn,
                };
                if patterns != before {
                    log::log!(
                        level,
                        "no interface matches {flag} {pattern} yet: waiting for it{and}"
                    );
                }
                hints.extend(hint.map(|hint| format!("{flag} {pattern}: {hint}")));
            }
        }
        self.found.waiting_for = uplinks;
        self.found.waiting_for_pods = pods;
        self.found.hints = hints;
    }

    /// Makes do with the room that there is for the node's addresses.
    fn fit(&mut self, wanted: &mut State) {
        let count = wanted.local.len();
        let room = self.engine.address_room();
        let fits = wanted.fit(room, &self.applied);
        let no_room = (!fits).then(|| {
            format!(
                "the node has {count} addresses, and the datapath's map has room for {room}: what \
                 was attached stays, nothing else is attached. Take addresses away{}",
                if room < ADDRESSES {
                    format!("; after `netdp detach` a new map has room for {ADDRESSES}")
                } else {
                    String::new()
                }
            )
        });
        if no_room != self.found.no_room {
            match &no_room {
                Some(problem) => log::error!("{problem}"),
                None => log::info!("all addresses of the node have room again"),
            }
        }
        self.found.no_room = no_room;
    }

    /// Makes the datapath, or the chains, what they are to be. What fails is said and
    /// tried again at the next event, chains every [`SWEEP_INTERVAL`](super::SWEEP_INTERVAL).
    pub(super) fn reconcile(&mut self) {
        let applied = self.apply();
        self.applied(applied);
    }

    /// Has sources compared with where packets came from, unless there is a VRF: what comes by
    /// its interfaces shows up as come by the VRF (`vrf_ip_rcv`, drivers/net/vrf.c, Linux 6.12).
    fn judge_sources(&mut self) {
        let vrf = (self.snapshot.links.iter()).any(|link| link.kind.as_deref() == Some("vrf"));
        if let Some(datapath) = self.engine.as_datapath()
            && let Err(err) = datapath.maps_mut().set_any_source(vrf)
        {
            log::warn!("{err:#}");
        }
    }

    /// The part of [`reconcile`](Self::reconcile) that packets see.
    pub(super) fn apply(&mut self) -> Applied {
        if let Some(iptables) = self.engine.as_iptables_mut() {
            iptables.write(&self.config);
            return Applied::Chains;
        }
        self.judge_sources();
        let mut wanted = self.wanted();
        self.selection.keep = wanted.uplinks.keys().copied().collect();
        let names = wanted.uplinks.values().map(|uplink| uplink.name.clone());
        self.selection.names.extend(names);
        self.monitor.expect(&self.selection);
        self.fit(&mut wanted);
        // What a sweep at work goes by is about to change.
        if wanted.policy != self.applied.policy {
            self.interrupt_sweep();
        }
        if !wanted.local.is_subset(&self.applied.local) {
            self.spare_addresses();
        }
        let execution = reconcile::execute(&self.applied, &wanted, &mut self.engine);
        for step in execution.steps {
            self.note(step);
        }
        let reached = execution.reached;
        let (before, after) = (&self.applied.local, &reached.local);
        self.resting.changed(before, after, Instant::now());
        for address in before.difference(after) {
            log::info!("{address} is gone: mappings with it rest until it is back, for 15 s");
        }
        let applied = Applied::Datapath {
            repolicied: self.applied.policy != reached.policy,
        };
        self.guard.retain_refusals(|ifindex| {
            let is_missing = |wanted: bool, reached: bool| wanted && !reached;
            is_missing(
                wanted.uplinks.contains_key(&ifindex),
                reached.uplinks.contains_key(&ifindex),
            ) || is_missing(
                wanted.pod_links.contains_key(&ifindex),
                reached.pod_links.contains_key(&ifindex),
            )
        });
        self.applied = reached;
        applied
    }

    /// Logs what came of a change.
    fn note(&mut self, step: Step) {
        let Step { change, error } = step;
        let Some(err) = error else {
            if !self.engine.is_shadow() && !self.guard.is_again(&change) {
                announce(&change);
            }
            return;
        };
        let why = format!("{err:#}");
        let is_news = match &change {
            // Nothing leaks; answers to what comes in there may be lost.
            Change::Observe(Uplink { ifindex, .. }) => self.guard.unobserved(*ifindex, &why),
            Change::Attach(Uplink { ifindex, .. }) | Change::AttachPods { ifindex, .. } => {
                self.guard.refused(*ifindex, why.clone())
            }
            _ => true,
        };
        if is_news {
            log::error!("{why}");
        }
    }

    /// The rest: what follows from it, and telling.
    pub(super) fn applied(&mut self, applied: Applied) {
        let repolicied = match applied {
            Applied::Chains => return self.look_for_addresses(),
            Applied::Datapath { repolicied } => repolicied,
        };
        if repolicied {
            self.end_withheld();
        }
        let on_reload = self.options.setup.on_reload;
        if repolicied && on_reload != OnReload::Sticky {
            self.sweep(true);
        }
        if repolicied {
            let silence = match on_reload {
                OnReload::Sticky => Duration::from_secs(self.options.timeouts.tcp_established),
                OnReload::Drain => DRAIN_IDLE,
                OnReload::Cutover => Duration::ZERO,
            };
            if let Some(ebpf) = self.engine.as_ebpf_mut() {
                ebpf.unprepared = true;
                ebpf.forget_policies = Some(Instant::now() + silence);
            }
        }
        let ipv6 = self.options.config_options.enable_ipv6;
        self.engine.compare(&self.config, &self.applied, ipv6);
        self.attached = self.engine.uplink_reports(&self.applied);
        if repolicied || self.told.uplinks_changed(&self.attached) {
            self.check_datapath();
        }
        self.look_for_addresses();
        self.tell_faults();
    }

    /// Ends mappings by which packets would leave that fall under an IPsec policy.
    fn end_withheld(&mut self) {
        let policy = self.applied.policy.iter().flatten();
        let mut withheld = policy.filter(|rule| rule.action == Action::Withhold);
        let Some(datapath) = self
            .engine
            .as_datapath()
            .filter(|_| withheld.next().is_some())
        else {
            return;
        };
        match datapath.maps_mut().end_withheld() {
            Ok(0) => {}
            Ok(ended) => log::warn!("{ended} mappings have ended: an IPsec policy covers them"),
            Err(err) => log::error!("{err:#}"),
        }
    }

    /// Forgets what earlier policies bypassed, once no connection of that time
    /// can be alive.
    pub(super) fn forget_policies(&mut self) {
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return;
        };
        if ebpf.forget_policies.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match ebpf.datapath.forget_earlier_policies() {
            Ok(()) => {
                ebpf.forget_policies = None;
                ebpf.unprepared = true;
            }
            Err(err) => log::warn!("forgetting earlier policies: {err:#}"),
        }
    }

    /// With time on its hands: makes ready for the next change of the policy.
    fn prepare_policy(&mut self) {
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return;
        };
        ebpf.unprepared = false;
        if let Err(err) = ebpf.datapath.prepare_policy() {
            // The next change writes it anyway.
            log::debug!("preparing for the next policy: {err:#}");
        }
    }

    /// Does what concerns the programs alone.
    pub(super) fn on_ebpf(&mut self, event: EbpfEvent) {
        match event {
            EbpfEvent::SweepEnded => self.sweep_ended(),
            EbpfEvent::RoomDue => self.look_for_room(),
            EbpfEvent::Unprepared => self.prepare_policy(),
        }
    }

    /// Brings back the programs that somebody took off an uplink.
    pub(super) fn reattach(&mut self) {
        let uplinks = self.applied.uplinks.values().cloned();
        let uplinks = uplinks.flat_map(|u| [Change::SetUplink(u.clone()), Change::Attach(u)]);
        let observed = self.applied.observed.values().cloned();
        let observed = observed.flat_map(|o| [Change::SetObserved(o.clone()), Change::Observe(o)]);
        let uplinks: Vec<_> = uplinks.chain(observed).collect();
        let pods = self.applied.pod_links.clone().into_iter();
        let pods = pods.map(|(ifindex, name)| Change::AttachPods { ifindex, name });
        for change in uplinks.into_iter().chain(pods) {
            log::debug!("again: {change:?}");
            if let Err(err) = self.engine.apply(&change) {
                log::error!("{err:#}");
            }
        }
    }
}

fn announce(change: &Change) {
    match change {
        Change::SetPolicy(rules) => log::info!("policy in force: {} rules", rules.len()),
        Change::Observe(link) => {
            log::info!(
                "looking at what comes in by {}, which is no uplink",
                link.name
            );
        }
        Change::Attach(uplink) => log::info!("attached to {}", uplink.name),
        Change::Detach { name, .. } => log::info!("detached from {name}"),
        Change::SetUplink(uplink) => {
            let show = |ip: Option<IpAddr>| ip.map_or_else(|| "none".into(), |ip| ip.to_string());
            log::info!(
                "{} masquerades with {} and {}",
                uplink.name,
                show(uplink.v4.map(IpAddr::from)),
                show(uplink.v6.map(IpAddr::from))
            );
        }
        Change::AttachPods { name, .. } => log::info!("hairpin on {name}"),
        Change::DetachPods { name, .. } => log::info!("no hairpin on {name} any more"),
        Change::AddLocal(_)
        | Change::AddMac(_)
        | Change::RemoveMac(_)
        | Change::SetObserved(_)
        | Change::RemoveLocal(_)
        | Change::SetSource(..)
        | Change::RemoveSource(_) => {}
    }
}

fn policy_rule(rule: &config::Rule) -> PolicyRule {
    PolicyRule {
        prefix: rule.prefix,
        action: match rule.action {
            config::Action::Bypass => Action::Bypass,
            config::Action::Masquerade => Action::Masquerade,
        },
    }
}
