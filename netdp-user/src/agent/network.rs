//! Reconciles the datapath with the configuration and the node's network.

use super::desired::links_to_pods;
use super::modes::EbpfEvent;
use super::{Agent, DRAIN_IDLE};
use crate::datapath::OnReload;
use crate::reconcile::{self, Backend as _, Change, Step};
use crate::uplinks::{Settled, Uplink, select};
use netdp_common::layout::Action;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Result of [`Agent::apply`].
pub(super) enum Applied {
    /// The chains are being written; [`Agent::on_iptables`] continues.
    Chains,
    Datapath {
        /// Set if another policy is in force.
        repolicied: bool,
    },
}

impl Agent {
    /// Detaches programs from interfaces that are no longer uplinks.
    pub(super) fn detach_strangers(&mut self) {
        let selected = select(&self.snapshot, &self.selection);
        let pods = links_to_pods(&self.snapshot, &self.options.hairpin, &selected.uplinks);
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

    /// Takes a new snapshot of the network and reconciles.
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

    /// Makes the datapath, or the chains, what they are to be. What fails is said and
    /// tried again at the next event, interfaces and chains every [`SWEEP_INTERVAL`](super::SWEEP_INTERVAL).
    pub(super) fn reconcile(&mut self) {
        let applied = self.apply();
        self.applied(applied);
    }

    /// Enables the check of source addresses against the ingress interface, unless there is a VRF:
    /// packets received on its interfaces appear as received by the VRF (`vrf_ip_rcv`,
    /// drivers/net/vrf.c, Linux 6.12).
    fn judge_sources(&mut self) {
        let vrf = (self.snapshot.links.iter()).any(|link| link.kind.as_deref() == Some("vrf"));
        if let Some(datapath) = self.engine.as_datapath()
            && let Err(err) = datapath.maps_mut().set_any_source(vrf)
        {
            log::warn!("{err:#}");
        }
    }

    /// Does the part of [`reconcile`](Self::reconcile) that affects packets.
    pub(super) fn apply(&mut self) -> Applied {
        if let Some(iptables) = self.engine.as_iptables_mut() {
            iptables.write(&self.config);
            return Applied::Chains;
        }
        self.judge_sources();
        let wanted = self.desired();
        let uplinks = wanted.uplinks.keys().copied();
        (self.monitor).settle(Settled::after(&self.snapshot, uplinks));
        self.selection.keep = wanted.uplinks.keys().copied().collect();
        let names = wanted.uplinks.values().map(|uplink| uplink.name.clone());
        self.selection.names.extend(names);
        self.monitor.expect(&self.selection);
        // The rules of the current sweep are about to change.
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
        self.guard
            .retain_failures(|ifindex| reached.unknown.contains_key(&ifindex));
        self.applied = reached;
        applied
    }

    /// Makes again what has failed on an interface: what was in the way may be gone without any event.
    pub(super) fn retry_unknown(&mut self) {
        if !self.applied.unknown.is_empty() {
            self.reconcile();
        }
    }

    /// Logs the result of a change.
    fn note(&mut self, step: Step) {
        let Step { change, error } = step;
        let Some(err) = error else {
            if !self.engine.is_shadow() && !self.guard.is_again(&change, &self.applied.unknown) {
                announce(&change);
            }
            return;
        };
        let why = format!("{err:#}");
        let is_news = match &change {
            // Nothing leaks; replies to flows that began outside may be lost there.
            Change::Observe(Uplink { ifindex, .. }) => self.guard.unobserved(*ifindex, &why),
            Change::Attach(Uplink { ifindex, .. }) | Change::AttachPods { ifindex, .. } => {
                self.guard.refused(*ifindex, why.clone())
            }
            Change::SetUplink(Uplink { ifindex, .. })
            | Change::SetObserved(Uplink { ifindex, .. })
            | Change::Detach { ifindex, .. } => self.guard.unmade(*ifindex, &why),
            _ => true,
        };
        if is_news {
            log::error!("{why}");
        }
    }

    /// Does the rest of the reconciliation: follow-up work and reporting.
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

    /// Ends mappings whose packets an IPsec policy covers.
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

    /// Expires the record of flows that earlier policies bypassed, once no connection of that time
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

    /// Prepares the standby trie for the next policy change while the agent is idle.
    fn prepare_policy(&mut self) {
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return;
        };
        ebpf.unprepared = false;
        if let Err(err) = ebpf.datapath.prepare_policy() {
            // The next policy change writes it anyway.
            log::debug!("preparing for the next policy: {err:#}");
        }
    }

    /// Handles an event of eBPF mode.
    pub(super) fn on_ebpf(&mut self, event: EbpfEvent) {
        match event {
            EbpfEvent::SweepEnded => self.sweep_ended(),
            EbpfEvent::RoomDue => self.look_for_room(),
            EbpfEvent::Unprepared => self.prepare_policy(),
            EbpfEvent::TookOver(done) => self.took_over(done),
        }
    }

    /// Attaches the programs again where they were detached.
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
