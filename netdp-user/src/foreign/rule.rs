//! Model of a NAT rule of any kind, as far as it matters to pods' packets.

use crate::node::PortSet;
use ipnet::IpNet;
use netdp_common::layout::Family;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A condition on packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// The source is within these (outside, if `not`).
    Source { nets: Vec<IpNet>, not: bool },
    /// The destination is within these (outside, if `not`).
    Destination { nets: Vec<IpNet>, not: bool },
    /// The input interface is one of these (another one, if `not`); a `+` at the end stands for any
    /// suffix.
    In { names: Vec<String>, not: bool },
    /// The output interface is one of these (another one, if `not`); a `+` at the end stands for
    /// any suffix.
    Out { names: Vec<String>, not: bool },
    /// The packet has a mark (has none, unless `set`).
    Mark { text: String, set: bool },
    /// The source is an address of the node (is not, if `not`).
    LocalSource { not: bool },
    /// The destination is an address of the node (is not, if `not`).
    LocalDestination { not: bool },
    /// The destination was translated, by a service.
    Translated,
    /// Another condition, which matches an unknown part of the packets.
    Other(String),
}

/// Target of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// SNAT to the address of the outgoing interface.
    Masquerade,
    /// SNAT to one of these; none if they could not be read.
    Snat(Vec<IpAddr>),
    /// Return from the chain, or accept.
    Leave,
    /// Jump to another chain.
    Jump(String),
    /// Drop the packet.
    Drop,
    /// Any target that does not affect the source.
    Other,
}

/// Target of packets that are addressed to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BranchTarget {
    /// Another chain, by name.
    Chain(String),
    /// Another destination: DNAT, REDIRECT, TPROXY.
    Redirect,
}

/// Path of packets that are addressed to the node and match a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Branch {
    /// Ports that they may be addressed to.
    pub ports: PortSet,
    pub target: BranchTarget,
}

/// A rule with its conditions and target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NatRule {
    /// Text as printed by its program.
    pub text: String,
    pub matches: Vec<Match>,
    pub target: Target,
    /// Paths of packets that are addressed to the node.
    pub branches: Vec<Branch>,
}

/// Chains that can jump to each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The only family of packets in these chains, if it is restricted.
    pub family: Option<Family>,
    pub chains: BTreeMap<String, Vec<NatRule>>,
    /// Base chains that every packet traverses on its way out.
    pub roots: Vec<String>,
    /// Base chains that packets traverse before the routing decision.
    pub inward_roots: Vec<String>,
    /// Base chains that packets traverse before netfilter would translate replies.
    pub early_roots: Vec<String>,
}

/// Reports whether the prefixes overlap.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
