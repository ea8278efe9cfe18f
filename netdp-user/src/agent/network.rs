//! Reconciles the datapath with the configuration and the node's network.

use super::desired::links_to_pods;
use super::modes::{EbpfEvent, SweepCause};
use super::{Agent, DRAIN_IDLE};
use crate::datapath::{OnReload, SourceCheck};
use crate::reconcile::{self, Backend as _, Change, Step};
use crate::uplinks::{RouteFilter, Uplink, select};
use netdp_common::layout::Action;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Result of [`Agent::apply`].
pub(super) enum ApplyOutcome {
    /// The chains are being written; [`Agent::on_iptables`] continues.
    Chains,
    Datapath {
        /// Set if another policy is in force.
        repolicied: bool,
    },
}

impl Agent {
    /// Detaches programs from interfaces that are no longer uplinks.
    pub(super) fn detach_stale_uplinks(&mut self) {
        let selected = select(&self.snapshot, &self.selection);
        let pods = links_to_pods(&self.snapshot, &self.options.hairpin, &selected.uplinks);
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        if let Err(err) = datapath.detach_pods_except(&pods) {
            log::error!("{err:#}");
        }
        let uplinks = datapath.earlier_uplinks().unwrap_or_default();
        let known = datapath.earlier_interfaces().unwrap_or_default();
        for ifindex in known {
            let is_it = |uplink: &Uplink| uplink.ifindex == ifindex;
            let remains = selected.uplinks.iter().any(is_it);
            let link = self.snapshot.link(ifindex);
            let name = link.map_or_else(|| format!("index {ifindex}"), |l| l.name.clone());
            if !remains && uplinks.contains(&ifindex) {
                log::info!("{name} is no longer an uplink: detaching");
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
    pub(super) async fn refresh_network(&mut self) {
        match self.monitor.snapshot().await {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.reconcile();
                self.on_network_change();
            }
            Err(err) => log::warn!("reading the network state: {err:#}"),
        }
    }

    /// Brings the datapath, or the chains, into the desired state. Failures are logged and retried at
    /// the next event, those of interfaces and chains every [`SWEEP_INTERVAL`](super::SWEEP_INTERVAL).
    pub(super) fn reconcile(&mut self) {
        let applied = self.apply();
        self.after_apply(applied);
    }

    /// Enables the check of source addresses against the ingress interface, unless there is a VRF:
    /// packets received on its interfaces appear as received by the VRF (`vrf_ip_rcv`,
    /// drivers/net/vrf.c, Linux 6.12).
    fn set_source_check(&mut self) {
        let mut links = self.snapshot.links.iter();
        let check = if links.any(|link| link.kind.as_deref() == Some("vrf")) {
            SourceCheck::Disabled
        } else {
            SourceCheck::Enabled
        };
        if let Some(datapath) = self.engine.as_datapath()
            && let Err(err) = datapath.maps_mut().set_source_check(check)
        {
            log::warn!("{err:#}");
        }
    }

    /// Does the part of [`reconcile`](Self::reconcile) that affects packets.
    pub(super) fn apply(&mut self) -> ApplyOutcome {
        if let Some(iptables) = self.engine.as_iptables_mut() {
            iptables.write(&self.config);
            return ApplyOutcome::Chains;
        }
        self.set_source_check();
        let desired = self.compute_desired();
        let uplinks = desired.uplinks.keys().copied();
        (self.monitor).set_route_filter(RouteFilter::after(&self.snapshot, uplinks));
        self.selection.keep = desired.uplinks.keys().copied().collect();
        let names = desired.uplinks.values().map(|uplink| uplink.name.clone());
        self.selection.names.extend(names);
        self.monitor.set_expected(&self.selection);
        // The rules of the current sweep are about to change.
        if desired.policy != self.applied.policy {
            self.interrupt_sweep();
        }
        if !desired.local.is_subset(&self.applied.local) {
            self.suspend_address_expiry();
        }
        let execution = reconcile::execute(&self.applied, &desired, &mut self.engine);
        for step in execution.steps {
            self.log_step(step);
        }
        let reached = execution.reached;
        let (before, after) = (&self.applied.local, &reached.local);
        self.lost_addresses.update(before, after, Instant::now());
        for address in before.difference(after) {
            let gone =
                format!("{address} is gone: its mappings are kept for 15 s in case it comes back");
            log::info!("{gone}");
            self.events.agent(&gone, false);
        }
        let applied = ApplyOutcome::Datapath {
            repolicied: self.applied.policy != reached.policy,
        };
        self.guard.retain_refusals(|ifindex| {
            let is_missing = |desired: bool, reached: bool| desired && !reached;
            is_missing(
                desired.uplinks.contains_key(&ifindex),
                reached.uplinks.contains_key(&ifindex),
            ) || is_missing(
                desired.pod_links.contains_key(&ifindex),
                reached.pod_links.contains_key(&ifindex),
            )
        });
        self.guard
            .retain_failures(|ifindex| reached.unknown.contains_key(&ifindex));
        self.applied = reached;
        applied
    }

    /// Repeats changes that have failed on an interface: the cause may be gone without any event.
    pub(super) fn retry_unknown(&mut self) {
        if !self.applied.unknown.is_empty() {
            self.reconcile();
        }
    }

    /// Logs the result of a change.
    fn log_step(&mut self, step: Step) {
        let Step { change, error } = step;
        let Some(err) = error else {
            if !self.engine.is_shadow() && !self.guard.is_repeated(&change, &self.applied.unknown) {
                log_change(&change);
                if let Some(told) = told(&change) {
                    self.events.agent(&told, false);
                }
            }
            return;
        };
        let why = format!("{err:#}");
        let is_news = match &change {
            // Nothing leaks; replies to flows that began outside may be lost there.
            Change::Observe(Uplink { ifindex, .. }) => self.guard.record_unobserved(*ifindex, &why),
            Change::Attach(Uplink { ifindex, .. }) | Change::AttachPods { ifindex, .. } => {
                self.guard.record_refusal(*ifindex, why.clone())
            }
            Change::SetUplink(Uplink { ifindex, .. })
            | Change::SetObserved(Uplink { ifindex, .. })
            | Change::Detach { ifindex, .. } => self.guard.record_failed_change(*ifindex, &why),
            _ => true,
        };
        if is_news {
            log::error!("{why}");
            self.events.agent(&why, true);
        }
    }

    /// Does the rest of the reconciliation: follow-up work and reporting.
    pub(super) fn after_apply(&mut self, applied: ApplyOutcome) {
        let repolicied = match applied {
            ApplyOutcome::Chains => return self.check_addresses(),
            ApplyOutcome::Datapath { repolicied } => repolicied,
        };
        if repolicied {
            self.end_withheld();
        }
        let on_reload = self.options.setup.on_reload;
        if repolicied {
            // Also where no mapping ends: counts of prefixes follow the policy.
            self.sweep(match on_reload {
                OnReload::Sticky => SweepCause::Due,
                OnReload::Cutover | OnReload::Drain => SweepCause::Change,
            });
        }
        if repolicied {
            let silence = match on_reload {
                OnReload::Sticky => Duration::from_secs(self.options.timeouts.tcp_established),
                OnReload::Drain => DRAIN_IDLE,
                OnReload::Cutover => Duration::ZERO,
            };
            if let Some(ebpf) = self.engine.as_ebpf_mut() {
                ebpf.standby_stale = true;
                ebpf.policy_history_expires = Some(Instant::now() + silence);
            }
        }
        let ipv6 = self.options.config_options.enable_ipv6;
        self.engine.compare(&self.config, &self.applied, ipv6);
        self.attached = self.engine.uplink_reports(&self.applied);
        if repolicied || self.publisher.differs_from_checked(&self.attached) {
            self.run_self_check();
        }
        self.check_addresses();
        self.publish_faults();
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
            Ok(ended) => log::warn!("{ended} mappings ended: an IPsec policy covers them"),
            Err(err) => log::error!("{err:#}"),
        }
    }

    /// Expires the record of flows that earlier policies bypassed, once no connection of that time
    /// can be alive.
    pub(super) fn expire_policy_history(&mut self) {
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return;
        };
        if ebpf
            .policy_history_expires
            .is_none_or(|at| Instant::now() < at)
        {
            return;
        }
        match ebpf.datapath.expire_history() {
            Ok(()) => {
                ebpf.policy_history_expires = None;
                ebpf.standby_stale = true;
            }
            Err(err) => log::warn!("discarding earlier policies: {err:#}"),
        }
    }

    /// Prepares the standby trie for the next policy change while the agent is idle.
    fn prepare_policy(&mut self) {
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return;
        };
        ebpf.standby_stale = false;
        if let Err(err) = ebpf.datapath.prepare_policy() {
            // The next policy change writes it anyway.
            log::debug!("preparing for the next policy: {err:#}");
        }
    }

    /// Handles an event of eBPF mode.
    pub(super) fn on_ebpf(&mut self, event: EbpfEvent) {
        match event {
            EbpfEvent::SweepEnded => self.sweep_ended(),
            EbpfEvent::TableCheckDue => self.check_tables(),
            EbpfEvent::StandbyStale => self.prepare_policy(),
            EbpfEvent::Takeover(done) => self.on_takeover(done),
        }
    }

    /// Attaches the programs again where they were detached.
    pub(super) fn reattach_all(&mut self) {
        let uplinks = self.applied.uplinks.values().cloned();
        let uplinks = uplinks.flat_map(|u| [Change::SetUplink(u.clone()), Change::Attach(u)]);
        let observed = self.applied.observed.values().cloned();
        let observed = observed.flat_map(|o| [Change::SetObserved(o.clone()), Change::Observe(o)]);
        let uplinks: Vec<_> = uplinks.chain(observed).collect();
        let pods = self.applied.pod_links.clone().into_iter();
        let pods = pods.map(|(ifindex, name)| Change::AttachPods { ifindex, name });
        for change in uplinks.into_iter().chain(pods) {
            log::debug!("reattaching: {change:?}");
            if let Err(err) = self.engine.apply(&change) {
                log::error!("{err:#}");
            }
        }
    }
}

fn log_change(change: &Change) {
    match change {
        Change::SetPolicy(rules) => log::info!("policy in force: {} rules", rules.len()),
        Change::Observe(link) => {
            log::info!(
                uplink = link.name;
                "observing {}: ingress program only, because it is not an uplink",
                link.name
            );
        }
        Change::Attach(uplink) => log::info!(uplink = uplink.name; "attached to {}", uplink.name),
        Change::Detach { name, .. } => log::info!(uplink = name; "detached from {name}"),
        Change::SetUplink(uplink) => {
            log::info!(uplink = uplink.name; "{}", masquerading(uplink));
        }
        Change::AttachPods { name, .. } => log::info!("hairpin attached to {name}"),
        Change::DetachPods { name, .. } => log::info!("hairpin detached from {name}"),
        Change::AddLocal(_)
        | Change::AddMac(_)
        | Change::RemoveMac(_)
        | Change::SetObserved(_)
        | Change::RemoveLocal(_)
        | Change::SetSource(..)
        | Change::RemoveSource(_) => {}
    }
}

/// Returns what an event says of a change; `None` of one that is no event.
fn told(change: &Change) -> Option<String> {
    match change {
        Change::Attach(uplink) => Some(format!("attached to {}", uplink.name)),
        Change::Detach { name, .. } => Some(format!("detached from {name}")),
        Change::SetUplink(uplink) => Some(masquerading(uplink)),
        Change::Observe(link) => Some(format!("observing {}", link.name)),
        _ => None,
    }
}

fn masquerading(uplink: &Uplink) -> String {
    let show = |ip: Option<IpAddr>| ip.map_or_else(|| "none".into(), |ip| ip.to_string());
    format!(
        "{}: masquerading as IPv4 {}, IPv6 {}",
        uplink.name,
        show(uplink.v4.map(IpAddr::from)),
        show(uplink.v6.map(IpAddr::from))
    )
}
