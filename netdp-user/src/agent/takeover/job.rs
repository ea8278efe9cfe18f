//! Background tasks of the takeover.

use super::{Done, Tried};
use crate::config::{Action, Config};
use crate::conntrack::{Conntrack, Flow};
use crate::datapath::{self, Maps};
use crate::iptables::{self, KEEP_CHAIN};
use anyhow::Result;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

/// Inputs of a background task.
pub(super) struct Job {
    pub(super) bpffs: PathBuf,
    pub(super) config: Config,
    pub(super) local: BTreeSet<IpAddr>,
    pub(super) chain: String,
    /// Reasons why chains have to stay, if any.
    pub(super) stay: Vec<String>,
}

impl Job {
    /// Lets untranslated connections keep their addresses. Returns their number.
    pub(super) fn keep_untranslated(&self) -> Result<usize> {
        let Some(flows) = tracked() else {
            return Ok(0);
        };
        // Programs have translated here, and are gone without a record of their flows. Flows that
        // they may have translated must not leave with the pod's address.
        let marked = flows.iter().any(Flow::is_mark);
        let answered = flows.iter().filter(|flow| flow.answered);
        let ends = answered.flat_map(|flow| {
            let ends = datapath::untranslated(flow, &self.local).into_iter();
            ends.filter(move |ends| !(marked && datapath::may_be_translated(flow, ends)))
                .map(|ends| (flow.protocol, ends))
        });
        let kept: Vec<_> = ends
            .filter(|(_, ends)| self.config.decide(ends.destination).action != Action::Bypass)
            .collect();
        let mut maps = Maps::open(&self.bpffs)?;
        maps.keep_addresses(&kept)?;
        maps.count_inbound()?;
        Ok(kept.len())
    }

    /// Deletes flows that programs may have translated from connection tracking. Returns their
    /// number.
    pub(super) fn forget_translated(&self) -> Result<usize> {
        if !datapath::is_marked() {
            return Ok(0);
        }
        datapath::forget(&self.local, |flow, ends| {
            datapath::may_be_translated(flow, ends)
                && self.config.decide(ends.destination).action != Action::Bypass
        })
    }

    pub(super) fn take_over(&self) -> Tried {
        let masqueraded = |prefix: &str| {
            let net = prefix.parse::<IpNet>();
            let net = net.or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
            net.is_ok_and(|net| self.config.masquerades(net))
        };
        let (found, mut failed) = iptables::find(&self.chain, masqueraded);
        let (kept, _) = iptables::find(KEEP_CHAIN, |_| false);
        let any = !kept.is_empty() || !found.is_empty();
        if !self.stay.is_empty() && !found.is_empty() {
            let why = self.stay.join("; ");
            failed.extend(found.iter().map(|found| format!("{found}: {why}")));
            return Tried { any, failed };
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
        Tried { any, failed }
    }

    /// Returns the connections that netfilter translates to an address of the node.
    fn translated(&self) -> Option<Vec<Flow>> {
        let mut flows = tracked()?;
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
    pub(super) fn watch(&self) -> Done {
        self.release_tracking();
        let (back, _) = iptables::find(&self.chain, |_| false);
        Done::Watched {
            back: back.iter().map(ToString::to_string).collect(),
        }
    }

    /// Stops keeping connection tracking active once netfilter translates nothing any more.
    fn release_tracking(&self) {
        let (kept, _) = iptables::find(KEEP_CHAIN, |_| false);
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
fn tracked() -> Option<Vec<Flow>> {
    match Conntrack::open().and_then(|mut conntrack| conntrack.dump()) {
        Ok(flows) => Some(flows),
        Err(err) => {
            log::debug!("connection tracking: {err:#}");
            None
        }
    }
}
