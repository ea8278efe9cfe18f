//! Background tasks of the takeover.

use crate::config::{Config, RuleAction};
use crate::datapath::{self, Maps};
use crate::iptables::{self, KEEP_CHAIN};
use crate::nf_conntrack::{Conntrack, Flow};
use anyhow::Result;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Result of a background task.
#[derive(Debug)]
pub(in crate::agent) enum Done {
    /// An attempt of a takeover.
    Attempt(Attempt),
    /// A check after a takeover.
    Checked {
        /// The chains that were created again.
        recreated: Vec<String>,
    },
    /// The task failed, with the reason.
    Failed(String),
}

/// Result of an attempt of a takeover.
#[derive(Debug)]
pub(in crate::agent) struct Attempt {
    /// Set if there was something to take over.
    pub(in crate::agent) any: bool,
    /// Failures, with their reasons.
    pub(in crate::agent) failed: Vec<String>,
}

/// Inputs of a background task.
pub(in crate::agent) struct Job {
    pub(in crate::agent) bpffs: PathBuf,
    pub(in crate::agent) config: Config,
    pub(in crate::agent) local: BTreeSet<IpAddr>,
    pub(in crate::agent) chain: String,
    /// Reasons why chains have to stay, if any.
    pub(in crate::agent) stay: Vec<String>,
}

impl Job {
    /// Lets untranslated connections keep their addresses. Returns their number.
    pub(in crate::agent) fn pin_untranslated_flows(&self) -> Result<usize> {
        let Some(flows) = conntrack_dump() else {
            return Ok(0);
        };
        // Programs have translated here, and are gone without a record of their flows. Flows that
        // they may have translated must not leave with the pod's address.
        let marked = flows.iter().any(Flow::is_mark);
        let answered = flows.iter().filter(|flow| flow.answered);
        let ends = answered.flat_map(|flow| {
            let ends = datapath::untranslated_tuples(flow, &self.local).into_iter();
            ends.filter(move |ends| !(marked && datapath::may_be_translated(flow, ends)))
                .map(|ends| (flow.protocol, ends))
        });
        let kept: Vec<_> = ends
            .filter(|(_, ends)| self.config.decide(ends.destination).action != RuleAction::Bypass)
            .collect();
        let mut maps = Maps::open(&self.bpffs)?;
        maps.pin_addresses(&kept)?;
        maps.count_inbound()?;
        Ok(kept.len())
    }

    /// Deletes flows that programs may have translated from connection tracking. Returns their
    /// number.
    pub(in crate::agent) fn delete_translated_flows(&self) -> Result<usize> {
        if !datapath::is_marked() {
            return Ok(0);
        }
        datapath::delete_entries(&self.local, |flow, ends| {
            datapath::may_be_translated(flow, ends)
                && self.config.decide(ends.destination).action != RuleAction::Bypass
        })
    }

    pub(in crate::agent) fn take_over(&self) -> Attempt {
        let masqueraded = |prefix: &str| {
            let net = prefix.parse::<IpNet>();
            let net = net.or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
            net.is_ok_and(|net| self.config.masquerades(net))
        };
        let (found, mut failed) = iptables::find_replaced(&self.chain, masqueraded);
        let (kept, _) = iptables::find_replaced(KEEP_CHAIN, |_| false);
        let any = !kept.is_empty() || !found.is_empty();
        if !self.stay.is_empty() && !found.is_empty() {
            let why = self.stay.join("; ");
            failed.extend(found.iter().map(|found| format!("{found}: {why}")));
            return Attempt { any, failed };
        }
        let keep = self.reserve_translated() > 0;
        for found in found {
            match found.remove(keep) {
                Ok(()) => log::info!("taken over: {found}"),
                Err(err) => failed.push(format!("{found}: {err:#}")),
            }
        }
        // Connections that began between the first read and the removal of the rules.
        self.reserve_translated();
        Attempt { any, failed }
    }

    /// Returns the connections that netfilter translates to an address of the node.
    fn translated(&self) -> Option<Vec<Flow>> {
        let mut flows = conntrack_dump()?;
        flows.retain(|flow| flow.is_masqueraded() && self.local.contains(&flow.reply.destination));
        Some(flows)
    }

    /// Reserves the wire tuples of all these connections. Returns their number.
    fn reserve_translated(&self) -> usize {
        let translated = self.translated().unwrap_or_default();
        if translated.is_empty() {
            return 0;
        }
        match Maps::open(&self.bpffs).and_then(|mut maps| maps.reserve(&translated)) {
            Ok(0) => {}
            Ok(reserved) => {
                log::info!("{reserved} connections translated by netfilter stay with it");
            }
            Err(err) => log::warn!("{err:#}"),
        }
        translated.len()
    }

    /// Finds chains that were created again; removes the chain that keeps tracking active once it
    /// is not needed.
    pub(in crate::agent) fn check_recreated(&self) -> Done {
        self.remove_keep_chain();
        let (recreated, _) = iptables::find_replaced(&self.chain, |_| false);
        Done::Checked {
            recreated: recreated.iter().map(ToString::to_string).collect(),
        }
    }

    /// Stops keeping connection tracking active once netfilter translates nothing any more.
    fn remove_keep_chain(&self) {
        let (kept, _) = iptables::find_replaced(KEEP_CHAIN, |_| false);
        if kept.is_empty() || self.translated().is_none_or(|flows| !flows.is_empty()) {
            return;
        }
        for chain in kept {
            match chain.remove(false) {
                Ok(()) => {
                    log::info!(
                        "the last connection translated by netfilter ended: {chain} is removed"
                    );
                }
                Err(err) => log::warn!("{err:#}"),
            }
        }
    }
}

/// Returns the connections of connection tracking; `None` if it is not active.
fn conntrack_dump() -> Option<Vec<Flow>> {
    match Conntrack::open().and_then(|mut conntrack| conntrack.dump()) {
        Ok(flows) => Some(flows),
        Err(err) => {
            log::debug!("connection tracking: {err:#}");
            None
        }
    }
}
