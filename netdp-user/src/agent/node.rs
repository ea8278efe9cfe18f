//! What the node itself receives is kept from pods' flows.

use super::Agent;
use crate::foreign::{Diverted, Inward};
use crate::node::{Facts, NodeReport, Policy, Probe, Prober, decide};
use crate::uplinks::{Uplink, local_addresses, select};
use netdp_common::abi::{NODE_PORT_TCP, NODE_PORT_UDP};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long the agent waits at its start, before programs are attached, until it knows.
const PATIENCE: Duration = Duration::from_secs(5);

/// The facts as they are known.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Nothing until the first look has ended.
    nat: Option<Inward>,
    prober: Prober,
    probe: Option<Probe>,
    /// All rules have been read once: what an earlier agent put in force counts no more.
    complete: bool,
    /// By what rules were judged last.
    judged_by: Option<JudgedBy>,
    /// What falls under IPsec policies, and is not protected as netfilter would have it.
    missed_ipsec: Vec<String>,
    /// Nobody asks where there is no datapath.
    wanted: bool,
    /// What is kept from pods' flows, once that is known.
    pub(super) report: Option<NodeReport>,
}

/// What decides about others' rules, beside the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JudgedBy {
    /// The node's addresses.
    pub local: BTreeSet<IpAddr>,
    /// The uplinks' names.
    pub uplinks: Vec<String>,
    /// The addresses that packets may leave them with.
    pub wire: Vec<IpAddr>,
}

impl Node {
    /// What keeps a takeover from ending what netfilter serves: it protects by IPsec policies what netdp
    /// would drop, or let leave in clear.
    pub(super) fn missed_ipsec(&self) -> &[String] {
        &self.missed_ipsec
    }

    /// Returns the IPsec policies that are known.
    pub(super) fn policies(&self) -> &[Policy] {
        let probe = self.probe.as_ref();
        probe.map_or(&[], |probe| probe.policies.as_slice())
    }

    /// Sets what is not protected as netfilter would have it. Whether that is news.
    pub(super) fn set_missed_ipsec(&mut self, missed: Vec<String>) -> bool {
        let is_news = missed != self.missed_ipsec;
        self.missed_ipsec = missed;
        is_news
    }

    /// Waits for a change of what has to be polled; for ever where there is no datapath.
    pub(super) async fn changed(&mut self) -> Probe {
        if !self.wanted {
            return std::future::pending().await;
        }
        self.prober.changed().await
    }
}

impl Agent {
    /// Before programs are attached: finds out what the node receives, and puts that in force.
    pub(super) async fn learn_node(&mut self) {
        if self.engine.as_datapath().is_none() {
            return;
        }
        self.node.wanted = true;
        self.ask_foreign();
        let until = Instant::now() + PATIENCE;
        // Both go on meanwhile, and what comes later is taken then.
        let probe = timeout_at(until, self.node.prober.changed()).await;
        let look = timeout_at(until, self.foreign.seen()).await;
        if probe.is_err() || look.is_err() {
            log::warn!(
                "reading NAT rules, sockets and services takes longer than {} s: until it is done, pods' \
                 flows may get ports on which the node receives",
                PATIENCE.as_secs()
            );
        }
        self.node.probe = probe.ok();
        if let Ok(look) = look {
            self.accept_inward(look.nat);
            self.foreign.note(&look.seen);
        }
    }

    /// NAT rules were looked at.
    pub(super) fn accept_inward(&mut self, mut nat: Inward) {
        if !self.node.wanted {
            return;
        }
        if let Some(before) = &self.node.nat {
            // What was not read this time counts as it was.
            let missing = |rule: &&Diverted| {
                nat.failed.contains(&rule.backend) && !nat.diverted.contains(rule)
            };
            let kept: Vec<_> = before.diverted.iter().filter(missing).cloned().collect();
            nat.diverted.extend(kept);
        }
        self.node.complete |= nat.failed.is_empty();
        self.node.nat = Some(nat);
        self.update_node();
    }

    /// Sockets, services or IPsec have changed.
    pub(super) fn on_probe(&mut self, probe: Probe) {
        let before = self.node.probe.replace(probe);
        let policies = |probe: Option<&Probe>| probe.map(|probe| probe.policies.clone());
        if policies(before.as_ref()) != policies(self.node.probe.as_ref()) {
            self.reconcile();
        }
        let legacy = |probe: Option<&Probe>| probe.map(|probe| probe.legacy.clone());
        if legacy(before.as_ref()) != legacy(self.node.probe.as_ref()) {
            self.ask_foreign();
        }
        self.update_node();
    }

    /// Links or addresses may have changed.
    pub(super) fn network_changed(&mut self) {
        if !self.node.wanted {
            return;
        }
        if self.node.judged_by.as_ref() != Some(&self.to_judge_by()) {
            self.ask_foreign();
        }
        self.update_node();
    }

    /// What others' rules are to be judged by now.
    pub(super) fn to_judge_by(&self) -> JudgedBy {
        let selected = select(&self.snapshot, &self.selection);
        let own = selected.uplinks.iter().flat_map(Uplink::addresses);
        let is_uplink = |via: u32| selected.uplinks.iter().any(|uplink| uplink.ifindex == via);
        let given = selected.sources.values();
        let given = given.filter(|given| is_uplink(given.via));
        let wire: BTreeSet<IpAddr> = own.chain(given.map(|given| given.addr)).collect();
        JudgedBy {
            local: local_addresses(&self.snapshot),
            uplinks: selected.uplinks.into_iter().map(|u| u.name).collect(),
            wire: wire.into_iter().collect(),
        }
    }

    /// Rules are about to be judged by this.
    pub(super) fn judge_by(&mut self, by: JudgedBy) {
        self.node.judged_by = Some(by);
    }

    /// Puts in force what is known, where it differs.
    fn update_node(&mut self) {
        let (Some(nat), Some(probe)) = (&self.node.nat, &self.node.probe) else {
            return;
        };
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        let mut wanted = decide(&Facts {
            nat,
            probe,
            tunnels: &self.snapshot.tunnels,
            local: &local_addresses(&self.snapshot),
        });
        let maps = datapath.node_mut();
        if !self.node.complete {
            for (&port, bits) in maps.ports() {
                let bits = bits & (NODE_PORT_TCP | NODE_PORT_UDP);
                if bits != 0 {
                    *wanted.ports.entry(port).or_default() |= bits;
                }
            }
        }
        match maps.set(&wanted) {
            Ok(0) => {}
            Ok(_) => log::info!("kept from pods' flows: {}", wanted.report.line()),
            Err(err) => log::error!("{err:#}"),
        }
        let added = maps.take_added();
        if !added.is_empty() {
            match datapath.maps_mut().end_for_node(&added) {
                Ok(0) => {}
                Ok(ended) => log::info!("{ended} mappings on those have ended"),
                Err(err) => log::error!("{err:#}"),
            }
        }
        let before = self.node.report.replace(wanted.report.clone());
        if before.as_ref() == Some(&wanted.report) {
            return;
        }
        let before = before.unwrap_or_default();
        let new = |list: &[String], before: &[String]| -> Vec<String> {
            list.iter()
                .filter(|what| !before.contains(what))
                .cloned()
                .collect()
        };
        for what in new(&wanted.report.not_kept, &before.not_kept) {
            log::warn!("not kept from pods' flows, only live connections are told apart: {what}");
        }
        let no_programs = self.node.nat.as_ref().is_some_and(|nat| nat.no_programs);
        let unread = new(&wanted.report.unread, &before.unread);
        if no_programs && !unread.is_empty() {
            log::info!(
                "NAT rules of others are not looked at, for neither nft nor iptables is here: where hostPorts or \
                 services lead to pods, keep their ports with --reserved-ports, or use the image with iptables"
            );
        }
        for problem in unread.iter().filter(|_| !no_programs) {
            log::warn!(
                "hostPorts and services that NAT rules lead to pods are not kept from pods' flows: {problem}"
            );
        }
        self.save_report();
    }
}
