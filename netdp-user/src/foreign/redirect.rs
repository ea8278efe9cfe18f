//! Ports on which rules change the destination of packets addressed to the node.
//!
//! A condition that is not supported counts as no condition, so that the result has a port too
//! many rather than one too few.

use super::rule::{Branch, BranchTarget, Ruleset};
use crate::node::PortSet;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A rule that changes the destination of some packets addressed to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// Likely author of such rules, by names.
    pub owner: String,
    /// `nft`, `legacy` (iptables of either kind) or `nftables`.
    pub backend: String,
    /// `IPv4`, `IPv6`, or `both`.
    pub family: String,
    /// Name of the chain, after its table unless that is the nat table of iptables.
    pub chain: String,
    /// Text of the rule.
    pub rule: String,
    /// Ports that those packets are addressed to.
    pub ports: PortSet,
}

/// A reachable rule, with its chain and the ports.
pub(crate) struct ReachableRedirect<'a> {
    pub chain: &'a str,
    pub rule: &'a str,
    pub ports: PortSet,
}

/// Returns all reachable rules that change destinations, with the ports that packets may have
/// there.
pub(crate) fn reachable(set: &Ruleset) -> Vec<ReachableRedirect<'_>> {
    // Ports that reach a chain; it is scanned again whenever there are more.
    let mut known: BTreeMap<&str, PortSet> = BTreeMap::new();
    let mut due: BTreeSet<&str> = BTreeSet::new();
    for root in &set.inward_roots {
        known.insert(root, PortSet::all());
        due.insert(root);
    }
    while let Some(chain) = due.pop_first() {
        let Some(ports) = known.get(chain).cloned() else {
            continue;
        };
        for rule in set.chains.get(chain).into_iter().flatten() {
            for branch in &rule.branches {
                let BranchTarget::Chain(next) = &branch.target else {
                    continue;
                };
                let ports = ports.intersection(&branch.ports);
                if !ports.is_empty() && known.entry(next).or_default().extend(&ports) {
                    due.insert(next);
                }
            }
        }
    }
    let mut found = Vec::new();
    for (chain, ports) in &known {
        for rule in set.chains.get(*chain).into_iter().flatten() {
            let mut redirected = PortSet::default();
            let is_redirect = |branch: &&Branch| branch.target == BranchTarget::Redirect;
            for branch in rule.branches.iter().filter(is_redirect) {
                redirected.extend(&ports.intersection(&branch.ports));
            }
            if !redirected.is_empty() {
                found.push(ReachableRedirect {
                    chain,
                    rule: &rule.text,
                    ports: redirected,
                });
            }
        }
    }
    found
}

/// Reports whether a destination within these (outside, if `not`) may be an address of the node.
pub(crate) fn may_be_node(nets: &[IpNet], not: bool, local: &BTreeSet<IpAddr>) -> bool {
    let v4 = nets.iter().any(|net| matches!(net, IpNet::V4(_)));
    let v6 = nets.iter().any(|net| matches!(net, IpNet::V6(_)));
    local
        .iter()
        .filter(|ip| if ip.is_ipv4() { v4 } else { v6 })
        .any(|ip| nets.iter().any(|net| net.contains(ip)) != not)
}

/// Reports whether an address of the node lies within `first` to `last`.
pub(crate) fn has_between(first: IpAddr, last: IpAddr, local: &BTreeSet<IpAddr>) -> bool {
    first <= last && local.range(first..=last).next().is_some()
}
