//! A NAT rule of any kind, as far as it matters to pods' packets.

use super::inward::Onward;
use crate::iptables::Family;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a packet has to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Its source is within (or, if `not`, outside) these.
    Source { nets: Vec<IpNet>, not: bool },
    /// Its destination is.
    Destination { nets: Vec<IpNet>, not: bool },
    /// It comes in by (or, if `not`, by another than) one of these; a `+` at the end stands for
    /// anything.
    In { names: Vec<String>, not: bool },
    /// It leaves by (or, if `not`, by another than) one of these; a `+` at the end stands for
    /// anything.
    Out { names: Vec<String>, not: bool },
    /// It carries (or, if not `set`, does not carry) a mark.
    Mark { text: String, set: bool },
    /// Its source is (or is not) an address of the node.
    LocalSource { not: bool },
    /// Its destination is.
    LocalDestination { not: bool },
    /// A service has translated its destination.
    Translated,
    /// Something else: fewer packets, no telling which.
    Other(String),
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It gets the address of the way out.
    Masquerade,
    /// It gets one of these; none if that could not be read.
    Snat(Vec<IpAddr>),
    /// Nothing more in this chain.
    Leave,
    /// Another chain decides.
    Jump(String),
    /// It goes no further.
    Drop,
    /// Nothing that concerns its source.
    Other,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As its program prints it.
    pub text: String,
    pub matches: Vec<Match>,
    pub target: Target,
    /// What it does with packets that are addressed to the node.
    pub onward: Vec<Onward>,
}

/// The chains that know each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The only family whose packets come here, if there is one.
    pub family: Option<Family>,
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// Those that every packet goes through on its way out.
    pub roots: Vec<String>,
    /// Those that packets go through before it is known whether they are for the node.
    pub inward_roots: Vec<String>,
    /// Those that packets go through before netfilter would give answers a pod's address.
    pub early_roots: Vec<String>,
}

/// Whether the prefixes share addresses.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
