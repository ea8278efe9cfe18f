//! Ports on which the node itself receives, which are withheld from pods' flows.

use super::Agent;
use crate::foreign::{Redirect, Redirects};
use crate::node::{Facts, NodeReport, Policy, Probe, Prober, decide};
use crate::uplinks::{Uplink, local_addresses, select};
use netdp_common::layout::{NODE_PORT_TCP, NODE_PORT_UDP};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time that the agent waits at its start for the scan, before it attaches programs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Known facts about the node.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// NAT rules for packets addressed to the node; `None` until the first scan has ended.
    nat: Option<Redirects>,
    prober: Prober,
    probe: Option<Probe>,
    /// Set once all rules have been read: entries of an earlier agent no longer apply.
    complete: bool,
    /// Context of the last assessment of rules.
    assessed_in: Option<AssessmentContext>,
    /// Traffic that IPsec policies cover, and that netdp does not protect as netfilter would.
    missed_ipsec: Vec<String>,
    /// Set if there is a datapath; otherwise nothing is polled.
    wanted: bool,
    /// Ports and traffic withheld from pods' flows, once known.
    pub(super) report: Option<NodeReport>,
}

/// Context for the assessment of third-party rules, besides the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AssessmentContext {
    /// The node's addresses.
    pub local: BTreeSet<IpAddr>,
    /// The uplinks' names.
    pub uplinks: Vec<String>,
    /// Source addresses with which packets may leave by uplinks.
    pub wire: Vec<IpAddr>,
}

impl Node {
    /// Returns the obstacles of a takeover: traffic that netfilter protects by IPsec policies, and
    /// that netdp would drop or send in clear.
    pub(super) fn missed_ipsec(&self) -> &[String] {
        &self.missed_ipsec
    }

    /// Returns the IPsec policies that are known.
    pub(super) fn policies(&self) -> &[Policy] {
        let probe = self.probe.as_ref();
        probe.map_or(&[], |probe| probe.policies.as_slice())
    }

    /// Sets the traffic that is not protected as netfilter would. Returns whether it has changed.
    pub(super) fn set_missed_ipsec(&mut self, missed: Vec<String>) -> bool {
        let is_news = missed != self.missed_ipsec;
        self.missed_ipsec = missed;
        is_news
    }

    /// Waits for a change of the polled facts; forever without a datapath.
    pub(super) async fn changed(&mut self) -> Probe {
        if !self.wanted {
            return std::future::pending().await;
        }
        self.prober.changed().await
    }
}

impl Agent {
    /// Detects the ports on which the node receives, and puts them in force, before programs are
    /// attached.
    pub(super) async fn detect_node(&mut self) {
        if self.engine.as_datapath().is_none() {
            return;
        }
        self.node.wanted = true;
        self.scan_foreign();
        let until = Instant::now() + PATIENCE;
        // Both continue in the background; later results are handled by the loop.
        let probe = timeout_at(until, self.node.prober.changed()).await;
        let scan = timeout_at(until, self.foreign.scanned()).await;
        if probe.is_err() || scan.is_err() {
            log::warn!(
                "reading NAT rules, sockets and services takes longer than {} s: until it is done, pods' \
                 flows may get ports on which the node receives",
                PATIENCE.as_secs()
            );
        }
        self.node.probe = probe.ok();
        if let Ok(scan) = scan {
            self.set_inward_rules(scan.redirects);
            self.foreign.record_scan(&scan.findings);
        }
    }

    /// Handles the NAT rules of a scan.
    pub(super) fn set_inward_rules(&mut self, mut nat: Redirects) {
        if !self.node.wanted {
            return;
        }
        if let Some(before) = &self.node.nat {
            // Rules that could not be read this time are assumed to be unchanged.
            let missing =
                |rule: &&Redirect| nat.failed.contains(&rule.backend) && !nat.rules.contains(rule);
            let kept: Vec<_> = before.rules.iter().filter(missing).cloned().collect();
            nat.rules.extend(kept);
        }
        self.node.complete |= nat.failed.is_empty();
        self.node.nat = Some(nat);
        self.update_node();
    }

    /// Handles a change of sockets, services or IPsec policies.
    pub(super) fn on_probe(&mut self, probe: Probe) {
        let before = self.node.probe.replace(probe);
        let policies = |probe: Option<&Probe>| probe.map(|probe| probe.policies.clone());
        if policies(before.as_ref()) != policies(self.node.probe.as_ref()) {
            self.reconcile();
        }
        let legacy = |probe: Option<&Probe>| probe.map(|probe| probe.legacy.clone());
        if legacy(before.as_ref()) != legacy(self.node.probe.as_ref()) {
            self.scan_foreign();
        }
        self.update_node();
    }

    /// Handles a possible change of links or addresses.
    pub(super) fn on_network_change(&mut self) {
        if !self.node.wanted {
            return;
        }
        if self.node.assessed_in.as_ref() != Some(&self.assessment_context()) {
            self.scan_foreign();
        }
        self.update_node();
    }

    /// Returns the current context for the assessment of third-party rules.
    pub(super) fn assessment_context(&self) -> AssessmentContext {
        let selected = select(&self.snapshot, &self.selection);
        let own = selected.uplinks.iter().flat_map(Uplink::addresses);
        let is_uplink = |via: u32| selected.uplinks.iter().any(|uplink| uplink.ifindex == via);
        let given = selected.sources.values();
        let given = given.filter(|given| is_uplink(given.via));
        let wire: BTreeSet<IpAddr> = own.chain(given.map(|given| given.addr)).collect();
        AssessmentContext {
            local: local_addresses(&self.snapshot),
            uplinks: selected.uplinks.into_iter().map(|u| u.name).collect(),
            wire: wire.into_iter().collect(),
        }
    }

    /// Records the context of the next assessment.
    pub(super) fn set_assessment_context(&mut self, by: AssessmentContext) {
        self.node.assessed_in = Some(by);
    }

    /// Puts the known facts in force where they differ.
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
                Ok(ended) => log::info!("{ended} mappings that used them ended"),
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
            log::warn!(
                "not kept from pods' flows, only live connections are distinguished: {what}"
            );
        }
        let no_programs = self.node.nat.as_ref().is_some_and(|nat| nat.no_programs);
        let unread = new(&wanted.report.unread, &before.unread);
        if no_programs && !unread.is_empty() {
            log::info!(
                "third-party NAT rules are not read, because neither nft nor iptables is \
                 installed: where hostPorts or services lead to pods, reserve their ports with \
                 --reserved-ports, or use the image with iptables"
            );
        }
        for problem in unread.iter().filter(|_| !no_programs) {
            log::warn!(
                "hostPorts and services that NAT rules direct to pods are not kept from pods' \
                 flows: {problem}"
            );
        }
        self.save_report();
    }
}
