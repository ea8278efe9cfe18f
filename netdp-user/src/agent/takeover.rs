//! Taking over from netfilter on a live node, and giving back to it.
//!
//! Takeover: first what connection tracking knows, then the programs, then once more what it
//! knows, then the chains go. Connections that netfilter translates stay with it until they end.
//! Giving back is the mirror image. docs/adr/0021 has the order and why.

use super::Agent;
use crate::config::Action;
use crate::conntrack::{Conntrack, Flow};
use crate::datapath::untranslated;
use crate::iptables::{self, KEEP_CHAIN};
use crate::rollback::Rollback;
use crate::uplinks::local_addresses;
use anyhow::Result;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

impl Agent {
    /// Before programs are attached for the first time: connections that nobody translates keep
    /// their addresses.
    pub(super) fn keep_untranslated(&mut self) {
        if self.engine.adopted() {
            return;
        }
        let Some(flows) = tracked() else {
            return;
        };
        let local: BTreeSet<_> = local_addresses(&self.snapshot).into_iter().collect();
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        let mut kept = 0;
        for flow in flows.iter().filter(|flow| flow.answered) {
            for ends in untranslated(flow, &local) {
                if self.config.decide(ends.destination).action == Action::Bypass {
                    continue;
                }
                if let Err(err) = datapath.maps_mut().keep_address(flow.protocol, &ends) {
                    log::warn!("{err:#}");
                    return;
                }
                kept += 1;
            }
        }
        if let Err(err) = datapath.maps_mut().count_inbound() {
            log::warn!("{err:#}");
        }
        if kept > 0 {
            log::info!("{kept} connections that are not translated stay so");
        }
    }

    /// With the programs attached: the chains of ip-masq-agent and the rules of k8s-custom-iptables
    /// go, the connections that they translate stay with netfilter.
    pub(super) fn take_over(&mut self) {
        let in_force = self.applied.policy.is_some() && !self.report.uplinks.is_empty();
        if !self.options.takeover || self.engine.as_datapath().is_none() || !in_force {
            return;
        }
        // Until it is known, and as long as it is so: what netfilter translates is not dropped.
        if !self.foreign.has_looked() || self.answers_would_be_dropped() {
            return;
        }
        let keep = self.reserve_translated() > 0;
        let config = &self.config;
        let masqueraded = |prefix: &str| {
            let net = prefix.parse::<IpNet>();
            let net = net.or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
            net.is_ok_and(|net| config.masquerades(&net))
        };
        let found = iptables::find(&self.options.chains.name, masqueraded);
        let kept = !iptables::find(KEEP_CHAIN, |_| false).is_empty();
        self.taken_over = Some(kept || !found.is_empty());
        for found in found {
            match found.remove(keep) {
                Ok(()) => log::info!("taken over: {found}"),
                Err(err) => {
                    log::error!("taking over {found}: {err:#}; it goes on beside the datapath");
                }
            }
        }
        // What began between the first look and the rules' end.
        self.reserve_translated();
    }

    /// Whether somebody's rules drop answers that netdp gives pods' addresses, and there are chains to
    /// take over whose connections that would end. Told once.
    fn answers_would_be_dropped(&mut self) -> bool {
        let found = self.report.foreign.rules.iter();
        let mut found = found.filter(|found| found.drops && found.conflict);
        let problem = found.next().and_then(|found| {
            let chains = iptables::find(&self.options.chains.name, |_| false);
            let chain = chains.first()?;
            Some(format!("{chain} is not taken over: {found}"))
        });
        if problem != self.report.not_taken_over {
            match &problem {
                Some(problem) => log::error!("{problem}"),
                None => log::info!("nothing is in the way of taking over any more"),
            }
            self.report.not_taken_over.clone_from(&problem);
            self.save_report();
        }
        problem.is_some()
    }

    /// How many connections netfilter translates to an address of the node; all of them are
    /// reserved.
    fn reserve_translated(&mut self) -> usize {
        let Some(flows) = tracked() else {
            return 0;
        };
        let local = &self.applied.local;
        let translated: Vec<_> = flows
            .iter()
            .filter(|flow| flow.is_masqueraded() && local.contains(&flow.reply.destination))
            .copied()
            .collect();
        let Some(datapath) = self.engine.as_datapath() else {
            return 0;
        };
        let mut reserved = 0;
        for flow in &translated {
            match datapath.maps_mut().reserve(flow) {
                Ok(new) => reserved += usize::from(new),
                Err(err) => {
                    log::warn!("{err:#}");
                    break;
                }
            }
        }
        if reserved > 0 {
            log::info!("{reserved} connections that netfilter translates stay with it");
        }
        translated.len()
    }

    /// Whether somebody has put the chains back that were taken over: said once, not fought about.
    /// What they translate arrives as the node's own traffic.
    pub(super) fn watch_chains(&mut self) {
        if self.taken_over != Some(true) {
            return;
        }
        self.release_tracking();
        let back: Vec<_> = iptables::find(&self.options.chains.name, |_| false)
            .iter()
            .map(ToString::to_string)
            .collect();
        if back != self.report.chains_back {
            for chain in &back {
                log::warn!(
                    "{chain} is back: somebody, ip-masq-agent perhaps, still writes it; new connections are netfilter's until it is gone. Stop that agent and restart this one"
                );
            }
            self.report.chains_back = back;
            self.save_report();
        }
    }

    /// Once netfilter translates nothing any more, connections need not be tracked for us.
    fn release_tracking(&mut self) {
        let kept = iptables::find(KEEP_CHAIN, |_| false);
        if kept.is_empty() {
            return;
        }
        let Some(flows) = tracked() else {
            return;
        };
        let local = &self.applied.local;
        if flows
            .iter()
            .any(|flow| flow.is_masqueraded() && local.contains(&flow.reply.destination))
        {
            return;
        }
        for chain in kept {
            match chain.remove(false) {
                Ok(()) => {
                    log::info!("the last connection of netfilter's has ended: {chain} is gone");
                }
                Err(err) => log::warn!("{err:#}"),
            }
        }
    }

    /// In iptables mode, where programs of an earlier agent are attached: gives their mappings to
    /// netfilter.
    pub(super) fn give_back(&mut self) -> Result<()> {
        let Some(chains) = self.engine.as_chains() else {
            return Ok(());
        };
        let options = &self.options;
        let (rollback, reports) =
            Rollback::begin(&options.bpffs, chains, &self.config, options.grace)?;
        self.accept_chains(reports);
        self.rollback = Some(rollback);
        self.drain();
        Ok(())
    }

    /// Takes the programs off once nothing needs them any more. As long as netfilter does not
    /// masquerade, they do.
    pub(super) fn drain(&mut self) {
        let Some(rollback) = &self.rollback else {
            return;
        };
        if self.report.chains.iter().any(|chain| chain.error.is_some()) {
            return;
        }
        match rollback.finish() {
            Ok(Some(_)) => {
                log::info!("the eBPF datapath is gone; netfilter translates");
                self.rollback = None;
            }
            Ok(None) => {}
            Err(err) => log::error!("{err:#}"),
        }
    }
}

/// What connection tracking knows; `None` where there is none.
fn tracked() -> Option<Vec<Flow>> {
    match Conntrack::open().and_then(|mut conntrack| conntrack.dump()) {
        Ok(flows) => Some(flows),
        Err(err) => {
            log::debug!("connection tracking: {err:#}");
            None
        }
    }
}

/// Whether a datapath is pinned there.
pub(super) fn is_pinned(bpffs: &Path) -> bool {
    bpffs.join(netdp_common::abi::pins::SETTINGS).exists()
}
