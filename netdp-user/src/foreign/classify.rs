//! What a rule means for pods' packets. The reasons are in docs/adr/0020-foreign-nat.md.

use super::rule::{Match, Target, overlap};
use super::walk::Reached;
use crate::config::{Action, Rule};
use crate::iptables::Family;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Prefixes that are named in a reason.
const NAMED: usize = 3;

/// Who does netdp's translating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translator {
    /// Programs behind all of netfilter.
    Ebpf,
    /// A chain in netfilter.
    Chain(String),
}

/// What is around the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// Who translates.
    pub translator: Translator,
    /// The policy.
    pub rules: Vec<Rule>,
    /// Interfaces that lead out; none if that is unknown.
    pub uplinks: Vec<String>,
    /// What pods' packets leave with.
    pub wire: Vec<IpAddr>,
    /// Where pods have their addresses; none if that is unknown.
    pub pods: Vec<IpNet>,
    /// The node's addresses.
    pub local: BTreeSet<IpAddr>,
    /// Whether IPv6 is translated.
    pub enable_ipv6: bool,
}

/// What the rule is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// It does to pods' packets what the configuration does not say.
    pub conflict: bool,
    /// What it does, as the end of a sentence about it.
    pub why: String,
}

fn harmless(why: impl Into<String>) -> Verdict {
    Verdict {
        conflict: false,
        why: why.into(),
    }
}

fn conflict(why: impl Into<String>) -> Verdict {
    Verdict {
        conflict: true,
        why: why.into(),
    }
}

/// Judges a rule that translates; `after` says that netdp's chain decides before it.
#[must_use]
pub fn classify(reached: &Reached<'_>, after: bool, around: &Around) -> Verdict {
    if let Some(why) = not_pods(reached, around) {
        return harmless(why);
    }
    let hint = unknown_sources(reached, around);
    let mut prefixes = bypassed(reached, around);
    if !prefixes.is_empty() {
        let more = prefixes.len().saturating_sub(NAMED);
        prefixes.truncate(NAMED);
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return conflict(format!(
            "translates packets to {}{more}, which the configuration leaves alone{hint}",
            prefixes.join(", ")
        ));
    }
    if around.translator == Translator::Ebpf {
        return conflict(format!(
            "translates packets before netdp gets them, so that netdp's options and status are not about them{hint}"
        ));
    }
    if after {
        return harmless("comes after netdp's chain, which has decided by then");
    }
    match &reached.rule.target {
        Target::Snat(to) if to.is_empty() || !to.iter().all(|ip| around.local.contains(ip)) => {
            conflict(format!(
                "gives packets another source than netdp's chain, which comes after it{hint}"
            ))
        }
        _ => harmless("translates only what netdp's chain translates, too"),
    }
}

/// Why no packet that a pod sends out is concerned, if so.
fn not_pods(reached: &Reached<'_>, around: &Around) -> Option<String> {
    if let Some(mark) = reached.mark {
        return Some(format!("concerns only packets that carry the mark {mark}"));
    }
    let mut sources: Option<&[IpNet]> = None;
    let mut destinations: Option<&[IpNet]> = None;
    let mut beside = None;
    for condition in &reached.matches {
        match condition {
            Match::Mark { text, set: true } => {
                return Some(format!("concerns only packets that carry the mark {text}"));
            }
            Match::Translated => {
                return Some("concerns only packets that a service has redirected".into());
            }
            Match::LocalSource { not: false } => {
                return Some("concerns only the node's own packets".into());
            }
            Match::LocalDestination { not: false } => {
                return Some("concerns only packets to the node itself".into());
            }
            Match::Out { names, not } => {
                let leads_out = |uplink: &String| names.iter().any(|n| is_named(uplink, n)) != *not;
                if !around.uplinks.is_empty() && !around.uplinks.iter().any(leads_out) {
                    return Some(format!(
                        "concerns no packets that leave by {}",
                        around.uplinks.join(", ")
                    ));
                }
                if *not {
                    beside = names.iter().find(|name| is_engines(name));
                }
            }
            Match::Source { nets, not: false } => sources = Some(nets),
            Match::Destination { nets, not: false } => destinations = Some(nets),
            Match::Other(text) if text.contains("KUBE-LOOP-BACK") => {
                return Some("concerns only pods that reach themselves by a service".into());
            }
            _ => {}
        }
    }
    let sources = sources?;
    if destinations == Some(sources) && sources.iter().all(is_host) {
        return Some("concerns only packets of an address to itself".into());
    }
    let has_pods = sources
        .iter()
        .any(|net| around.pods.iter().any(|pods| overlap(net, pods)));
    if has_pods {
        return None;
    }
    if let Some(bridge) = beside {
        return Some(format!(
            "concerns only the containers on {bridge}, {}",
            list(sources)
        ));
    }
    let known = |net: &IpNet| around.pods.iter().any(|pods| same_family(net, pods));
    sources
        .iter()
        .all(known)
        .then(|| format!("concerns only sources in {}, no pods", list(sources)))
}

/// The prefixes that the configuration leaves alone and that the rule may translate.
fn bypassed(reached: &Reached<'_>, around: &Around) -> Vec<String> {
    let masqueraded_within = |prefix: &IpNet, part: &IpNet| {
        around.rules.iter().any(|rule| {
            rule.action == Action::Masquerade
                && rule.prefix.prefix_len() > prefix.prefix_len()
                && rule.prefix.contains(part)
        })
    };
    let translated = |prefix: &IpNet| {
        let family = match prefix {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        };
        (around.enable_ipv6 || family == Family::V4)
            && reached.family.is_none_or(|only| only == family)
            && parts(reached, prefix).iter().any(|part| {
                !reached.spared.iter().any(|net| net.contains(part))
                    && !masqueraded_within(prefix, part)
            })
    };
    let mut found: Vec<_> = around
        .rules
        .iter()
        .filter(|rule| rule.action == Action::Bypass && translated(&rule.prefix))
        .map(|rule| rule.prefix)
        .collect();
    // The largest say most.
    found.sort_by_key(IpNet::prefix_len);
    found.iter().map(ToString::to_string).collect()
}

/// What of the prefix meets the rule's conditions, as far as addresses tell.
fn parts(reached: &Reached<'_>, prefix: &IpNet) -> Vec<IpNet> {
    let mut parts = vec![*prefix];
    for condition in &reached.matches {
        match condition {
            Match::Source { nets, .. } | Match::Destination { nets, .. }
                if !nets.iter().any(|net| same_family(net, prefix)) =>
            {
                return Vec::new();
            }
            Match::Destination { nets, not: true } => {
                parts.retain(|part| !nets.iter().any(|net| net.contains(part)));
            }
            Match::Destination { nets, not: false } => {
                let both = |part: &IpNet| {
                    let of = *part;
                    let within = nets.iter().filter(move |net| overlap(net, &of));
                    within.map(move |net| if net.contains(&of) { of } else { *net })
                };
                parts = parts.iter().flat_map(both).collect();
            }
            _ => {}
        }
    }
    parts
}

/// Where sources are named and nobody says where pods are.
fn unknown_sources(reached: &Reached<'_>, around: &Around) -> String {
    let named = reached
        .matches
        .iter()
        .find_map(|condition| match condition {
            Match::Source { nets, not: false } => Some(nets),
            _ => None,
        });
    match named {
        Some(nets) if around.pods.is_empty() => format!(
            " (if there are pods in {}; --pod-cidr says where they are)",
            list(nets)
        ),
        _ => String::new(),
    }
}

fn list(nets: &[IpNet]) -> String {
    let nets: Vec<_> = nets.iter().map(ToString::to_string).collect();
    nets.join(", ")
}

pub(super) fn is_named(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

/// Names that container engines and libvirt give their own bridges.
fn is_engines(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let network = |rest: &str| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    ["docker", "podman", "virbr", "lxcbr", "lxdbr", "incusbr"]
        .into_iter()
        .any(numbered)
        || name.strip_prefix("br-").is_some_and(network)
}

const fn same_family(a: &IpNet, b: &IpNet) -> bool {
    matches!(
        (a, b),
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
    )
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
