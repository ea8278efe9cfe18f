//! Conversion of iptables rules to the common model.

use super::redirect::{has_between, may_be_node};
use super::rule::{Branch, BranchTarget, Match, NatRule, Ruleset, Target};
use crate::iptables::{RuleOption, RuleOptions, Table};
use crate::node::{PortSet, Ranges, protocol_bit};
use netdp_common::layout::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Returns the nat table of a node with these addresses.
pub(crate) fn ruleset(table: &Table, family: Family, local: &BTreeSet<IpAddr>) -> Ruleset {
    Ruleset {
        roots: vec!["POSTROUTING".into()],
        inward_roots: vec!["PREROUTING".into(), "OUTPUT".into()],
        ..chains(table, family, local)
    }
}

/// Returns the raw or the mangle table.
pub(crate) fn early(table: &Table, family: Family) -> Ruleset {
    Ruleset {
        early_roots: vec!["PREROUTING".into()],
        ..chains(table, family, &BTreeSet::new())
    }
}

fn chains(table: &Table, family: Family, local: &BTreeSet<IpAddr>) -> Ruleset {
    let chains = table.chains.iter().map(|(name, rules)| {
        let parse = |rule: &crate::iptables::IptablesRule| parse(name, &rule.text, local);
        let rules = rules.iter().map(parse).collect();
        (name.clone(), rules)
    });
    Ruleset {
        family: Some(family),
        chains: chains.collect(),
        ..Ruleset::default()
    }
}

/// Converts a rule, given without its `-A CHAIN`.
fn parse(chain: &str, text: &str, local: &BTreeSet<IpAddr>) -> NatRule {
    let mut rule = NatRule {
        text: format!("-A {chain} {text}"),
        matches: Vec::new(),
        target: Target::Other,
        branches: Vec::new(),
    };
    let mut ports = PortSet::all();
    let mut target = None;
    for option in RuleOptions::parse(text).iter() {
        add_option(&mut rule, &option);
        match option.name {
            "-j" | "-g" => target = branch_target(option.value()),
            _ => {
                if let Some(only) = node_ports(&option, local) {
                    ports = ports.intersection(&only);
                }
            }
        }
    }
    if !ports.is_empty() {
        rule.branches
            .extend(target.map(|target| Branch { ports, target }));
    }
    rule
}

/// Returns the target of ingress packets.
fn branch_target(target: &str) -> Option<BranchTarget> {
    match target {
        "DNAT" | "REDIRECT" | "NETMAP" | "TPROXY" => Some(BranchTarget::Redirect),
        "RETURN" | "ACCEPT" | "DROP" | "MARK" | "CONNMARK" | "LOG" | "NFLOG" => None,
        chain => Some(BranchTarget::Chain(chain.into())),
    }
}

/// Returns the ports of packets addressed to the node that match a condition, if it is about that.
fn node_ports(option: &RuleOption<'_, '_>, local: &BTreeSet<IpAddr>) -> Option<PortSet> {
    let (value, not) = (option.value(), option.inverted);
    let all_or_none = |all: bool| {
        if all {
            PortSet::all()
        } else {
            PortSet::default()
        }
    };
    match option.name {
        "-p" => {
            let bit = protocol_bit(value);
            let mask = if not { !bit } else { bit };
            Some(PortSet::of(mask, &Ranges::all()))
        }
        "--dport" | "--dports" => {
            let ports = ports(value)?;
            let ports = if not { ports.complement() } else { ports };
            Some(PortSet::of(u32::MAX, &ports))
        }
        "-d" => {
            let net = option.net()?;
            Some(all_or_none(may_be_node(&[net], not, local)))
        }
        "--dst-range" if !not => {
            let (first, last) = value.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            Some(all_or_none(has_between(first, last, local)))
        }
        "--dst-type" => {
            let is_local = value.split(',').any(|kind| kind == "LOCAL");
            Some(all_or_none(is_local != not))
        }
        _ => None,
    }
}

/// Parses `80,443,8000:8010`; `None` for anything else.
fn ports(text: &str) -> Option<Ranges> {
    let range = |part: &str| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.split(',').map(range).collect()
}

/// Adds an option to the conditions or the target of a rule.
fn add_option(rule: &mut NatRule, option: &RuleOption<'_, '_>) {
    let (value, not) = (option.value(), option.inverted);
    let found = match option.name {
        "-m" | "--comment" | "--random" | "--random-fully" | "--to-ports" | "--persistent" => None,
        "-s" => Some(option.net().map(|net| Match::Source {
            nets: vec![net],
            not,
        })),
        "-d" => Some(option.net().map(|net| Match::Destination {
            nets: vec![net],
            not,
        })),
        "-i" => Some(Some(Match::In {
            names: vec![value.into()],
            not,
        })),
        "-o" => Some(Some(Match::Out {
            names: vec![value.into()],
            not,
        })),
        "--mark" => Some(Some(mark(value, not))),
        "--src-type" if value == "LOCAL" => Some(Some(Match::LocalSource { not })),
        "--dst-type" if value == "LOCAL" => Some(Some(Match::LocalDestination { not })),
        "--ctstate" | "--ctstatus" if value == "DNAT" && !not => Some(Some(Match::Translated)),
        "-j" | "-g" => {
            rule.target = target(value);
            None
        }
        "--to-source" => {
            if let Target::Snat(to) = &mut rule.target {
                to.extend(address(value));
            }
            None
        }
        // An option of another target, such as MARK's.
        _ if rule.target != Target::Other => None,
        _ => Some(None),
    };
    if let Some(condition) = found {
        let other = || Match::Other(format!("{} {}", option.name, option.values()));
        rule.matches.push(condition.unwrap_or_else(other));
    }
}

fn target(name: &str) -> Target {
    match name {
        "MASQUERADE" => Target::Masquerade,
        "SNAT" => Target::Snat(Vec::new()),
        "RETURN" | "ACCEPT" => Target::Leave,
        "DROP" | "REJECT" => Target::Drop,
        "MARK" | "CONNMARK" | "LOG" | "NFLOG" | "DNAT" | "REDIRECT" | "NETMAP" => Target::Other,
        chain => Target::Jump(chain.into()),
    }
}

/// Parses `VALUE` or `VALUE/MASK`; the value 0 means that the mark is absent.
fn mark(value: &str, not: bool) -> Match {
    let number = value.split('/').next().unwrap_or(value);
    let zero = number.trim_start_matches("0x").bytes().all(|b| b == b'0');
    Match::Mark {
        text: value.into(),
        set: zero == not,
    }
}

/// Returns the first address of `A[-B][:PORTS]`.
fn address(text: &str) -> Option<IpAddr> {
    let first = text.split('-').next().unwrap_or(text);
    let alone = first.parse().ok();
    alone.or_else(|| {
        let bare = first.rsplit_once(':').map_or(first, |(ip, _)| ip);
        bare.trim_matches(['[', ']']).parse().ok()
    })
}
