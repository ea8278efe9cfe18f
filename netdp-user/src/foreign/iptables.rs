//! Parser for rules in the format of iptables-save.

use super::inward::{Onward, To, has_between, may_be_node};
use super::rule::{Match, Rule, Ruleset, Target};
use crate::iptables::{Family, Table};
use crate::node::{PortSet, Ranges, protocol_bit};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Returns the nat table of a node with these addresses.
pub fn ruleset(table: &Table, family: Family, local: &BTreeSet<IpAddr>) -> Ruleset {
    Ruleset {
        roots: vec!["POSTROUTING".into()],
        inward_roots: vec!["PREROUTING".into(), "OUTPUT".into()],
        ..chains(table, family, local)
    }
}

/// Returns the raw or the mangle table.
pub fn early(table: &Table, family: Family) -> Ruleset {
    Ruleset {
        early_roots: vec!["PREROUTING".into()],
        ..chains(table, family, &BTreeSet::new())
    }
}

fn chains(table: &Table, family: Family, local: &BTreeSet<IpAddr>) -> Ruleset {
    let chains = table.chains.iter().map(|(name, rules)| {
        let parse = |rule: &crate::iptables::Rule| parse(name, &rule.text, local);
        let rules = rules.iter().map(parse).collect();
        (name.clone(), rules)
    });
    Ruleset {
        family: Some(family),
        chains: chains.collect(),
        ..Ruleset::default()
    }
}

/// Parses a rule without its `-A CHAIN`.
fn parse(chain: &str, text: &str, local: &BTreeSet<IpAddr>) -> Rule {
    let words = words(text);
    let mut rule = Rule {
        text: format!("-A {chain} {text}"),
        matches: Vec::new(),
        target: Target::Other,
        onward: Vec::new(),
    };
    let mut ports = PortSet::all();
    let mut to = None;
    let mut not = false;
    let mut at = 0;
    while let Some(option) = words.get(at) {
        at += 1;
        if option == "!" {
            not = true;
            continue;
        }
        let rest = words.get(at..).unwrap_or_default();
        let count = match option.as_str() {
            // The text of a comment may begin with anything.
            "--comment" => 1,
            _ => rest
                .iter()
                .position(|word| word.starts_with('-') || word == "!")
                .unwrap_or(rest.len()),
        };
        let values = rest.get(..count).unwrap_or_default();
        at += count;
        understand(&mut rule, option, values, not);
        let value = values.first().map(String::as_str).unwrap_or_default();
        match option.as_str() {
            "-j" | "-g" => to = onward(value),
            _ => {
                if let Some(only) = inward(option, value, not, local) {
                    ports = ports.intersection(&only);
                }
            }
        }
        not = false;
    }
    if !ports.is_empty() {
        rule.onward.extend(to.map(|to| Onward { ports, to }));
    }
    rule
}

/// Returns the target of ingress packets.
fn onward(target: &str) -> Option<To> {
    match target {
        "DNAT" | "REDIRECT" | "NETMAP" | "TPROXY" => Some(To::Elsewhere),
        "RETURN" | "ACCEPT" | "DROP" | "MARK" | "CONNMARK" | "LOG" | "NFLOG" => None,
        chain => Some(To::Chain(chain.into())),
    }
}

/// Returns the ports of packets addressed to the node that match a condition, if it is about that.
fn inward(option: &str, value: &str, not: bool, local: &BTreeSet<IpAddr>) -> Option<PortSet> {
    let all_or_none = |all: bool| {
        if all {
            PortSet::all()
        } else {
            PortSet::default()
        }
    };
    match option {
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
            let net = value.parse::<IpNet>().or_else(|_| host(value)).ok()?;
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

fn understand(rule: &mut Rule, option: &str, values: &[String], not: bool) {
    let value = values.first().map(String::as_str).unwrap_or_default();
    let nets = || value.parse::<IpNet>().or_else(|_| host(value)).ok();
    let found = match option {
        "-m" | "--comment" | "--random" | "--random-fully" | "--to-ports" | "--persistent" => None,
        "-s" => Some(nets().map(|net| Match::Source {
            nets: vec![net],
            not,
        })),
        "-d" => Some(nets().map(|net| Match::Destination {
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
        let other = || Match::Other(format!("{option} {}", values.join(" ")));
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

fn host(text: &str) -> Result<IpNet, std::net::AddrParseError> {
    text.parse::<IpAddr>().map(IpNet::from)
}

/// Returns the first address of `A[-B][:PORTS]`.
fn address(text: &str) -> Option<IpAddr> {
    let first = text.split('-').next().unwrap_or(text);
    let plain = first.parse().ok();
    plain.or_else(|| {
        let bare = first.rsplit_once(':').map_or(first, |(ip, _)| ip);
        bare.trim_matches(['[', ']']).parse().ok()
    })
}

/// Splits at blanks; quotes group, and a backslash escapes the next character.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}
