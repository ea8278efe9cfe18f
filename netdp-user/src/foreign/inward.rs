//! Rules that give another destination to what is addressed to the node: on which ports that is.
//!
//! What is not understood counts as no condition, so that a port is taken for one too many rather
//! than one too few.

use super::rule::Ruleset;
use crate::node::PortSet;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Where a rule sends a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// To another chain.
    Chain(String),
    /// To another destination: DNAT, REDIRECT, TPROXY.
    Elsewhere,
}

/// What becomes of the packets that are addressed to the node and meet a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onward {
    /// The ports that they may be addressed to.
    pub ports: PortSet,
    pub to: To,
}

/// A rule that gives some of what is addressed to the node another destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diverted {
    /// Who writes such rules, as far as names tell.
    pub owner: String,
    /// `nft`, `legacy` (iptables of either kind) or `nftables`.
    pub backend: String,
    /// `IPv4`, `IPv6`, or `both`.
    pub family: String,
    /// Where it is.
    pub chain: String,
    /// Its text.
    pub rule: String,
    /// The ports that this is addressed to.
    pub ports: PortSet,
}

/// A rule that is reached, with its chain and the ports.
pub struct Reached<'a> {
    pub chain: &'a str,
    pub rule: &'a str,
    pub ports: PortSet,
}

/// All such rules, with the ports that packets have when they get there.
pub fn reached(set: &Ruleset) -> Vec<Reached<'_>> {
    // Which ports get to a chain; it is looked at again whenever there are more.
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
            for onward in &rule.onward {
                let To::Chain(next) = &onward.to else {
                    continue;
                };
                let ports = ports.intersection(&onward.ports);
                if !ports.is_empty() && known.entry(next).or_default().extend(&ports) {
                    due.insert(next);
                }
            }
        }
    }
    let mut found = Vec::new();
    for (chain, ports) in &known {
        for rule in set.chains.get(*chain).into_iter().flatten() {
            let mut diverted = PortSet::default();
            for onward in rule.onward.iter().filter(|o| o.to == To::Elsewhere) {
                diverted.extend(&ports.intersection(&onward.ports));
            }
            if !diverted.is_empty() {
                found.push(Reached {
                    chain,
                    rule: &rule.text,
                    ports: diverted,
                });
            }
        }
    }
    found
}

/// Whether a destination within (or, if `not`, outside) these may be an address of the node.
pub fn may_be_node(nets: &[IpNet], not: bool, local: &BTreeSet<IpAddr>) -> bool {
    let v4 = nets.iter().any(|net| matches!(net, IpNet::V4(_)));
    let v6 = nets.iter().any(|net| matches!(net, IpNet::V6(_)));
    local
        .iter()
        .filter(|ip| if ip.is_ipv4() { v4 } else { v6 })
        .any(|ip| nets.iter().any(|net| net.contains(ip)) != not)
}

/// Whether an address of the node is one of `first` to `last`.
pub fn has_between(first: IpAddr, last: IpAddr, local: &BTreeSet<IpAddr>) -> bool {
    first <= last && local.range(first..=last).next().is_some()
}
