//! Third-party NAT rules: rules that translate the packets that netdp is to translate, and rules
//! that change the destination of packets addressed to the node.
//!
//! [`scan()`] reads iptables rules of both kinds and native nftables rules into one model (`rule`).
//! `walk` finds the rules reachable from POSTROUTING, `assess` determines their effect on pods'
//! packets. `redirect` finds the rules reachable from PREROUTING and OUTPUT, with their ports.
//! `early_drop` assesses rules that drop packets addressed to pods before netfilter would have
//! translated replies.

mod assess;
mod early_drop;
mod iptables;
mod nft;
mod nft_redirect;
mod owner;
mod probe;
mod queue;
mod redirect;
mod rule;
mod scan;
mod service;
mod service_nft;
mod walk;

#[cfg(test)]
mod tests;

pub(crate) use assess::{NatContext, Translator};
pub(crate) use probe::{Packet, Probed, Translation};
pub(crate) use queue::ScanQueue;
pub(crate) use redirect::Redirect;
pub(crate) use scan::{probe, scan};
pub(crate) use service::{Connection, Service, service};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use walk::ReachableRule;

/// Result of a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ScanResult {
    /// Findings about pods' packets.
    pub findings: NatFindings,
    /// Findings about packets to the node.
    pub redirects: Redirects,
}

/// Rules for packets that are addressed to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Redirects {
    /// Rules that change the destination of some of them.
    pub rules: Vec<Redirect>,
    /// Places of possible rules that could not be read, with the reason.
    pub unread: Vec<String>,
    /// Backends whose program is present and has failed: there may be more rules of theirs.
    pub failed: BTreeSet<String>,
    /// True if neither nft nor iptables is present, as in an image without them.
    pub no_programs: bool,
}

/// Findings about pods' packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatFindings {
    /// Third-party rules that translate sources, and those that drop replies to pods.
    pub rules: Vec<Finding>,
    /// Places that could not be scanned, with the reason.
    pub unread: Vec<String>,
    /// True if neither nft nor iptables is present, as in an image without them.
    #[serde(default)]
    pub no_programs: bool,
}

/// A rule, or several that differ only in their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// Likely author of such rules, by names.
    pub owner: String,
    /// `IPv4`, `IPv6`, or `both`.
    pub family: String,
    /// `nft`, `legacy` (iptables of either kind) or `nftables`.
    pub backend: String,
    /// Name of the chain, after its table unless that is the nat table of iptables.
    pub chain: String,
    /// Text as printed by the program of its backend; of several rules, the text of the first.
    pub rule: String,
    /// Number of rules in this finding.
    pub count: usize,
    /// True if it drops packets, rather than translating them.
    #[serde(default)]
    pub drops: bool,
    /// True if its effect on pods' packets contradicts the configuration.
    pub conflict: bool,
    /// Reason for the assessment.
    pub why: String,
}

impl Finding {
    /// Describes a rule that translates; what it means for pods' packets is left out.
    fn of(rule: &ReachableRule<'_, '_>, family: &str, backend: &str) -> Self {
        Self {
            owner: owner::owner(rule.path, &rule.rule.text).into(),
            family: family.into(),
            backend: backend.into(),
            chain: rule.chain().into(),
            rule: rule.rule.text.clone(),
            count: 1,
            drops: false,
            conflict: false,
            why: String::new(),
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            owner,
            why,
            backend,
            family,
            rule,
            ..
        } = self;
        let what = if self.drops { "a rule of" } else { "NAT by" };
        write!(f, "{what} {owner} {why}: {backend}, {family}: {rule}")
    }
}

/// Findings in the order of the scan; rules of one owner with the same meaning count as one.
#[derive(Debug, Default)]
struct FindingList {
    rules: Vec<Finding>,
    /// Positions in `rules` of findings with known owners.
    known: HashMap<Meaning, usize>,
}

/// Owner, family, backend, drops packets, is a conflict, reason.
type Meaning = (String, String, String, bool, bool, String);

impl FindingList {
    fn add(&mut self, finding: Finding) {
        if finding.owner != owner::UNKNOWN {
            let meaning = (
                finding.owner.clone(),
                finding.family.clone(),
                finding.backend.clone(),
                finding.drops,
                finding.conflict,
                finding.why.clone(),
            );
            let place = *self.known.entry(meaning).or_insert(self.rules.len());
            if let Some(like) = self.rules.get_mut(place) {
                like.count += 1;
                return;
            }
        }
        self.rules.push(finding);
    }
}
