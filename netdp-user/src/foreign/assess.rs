//! Effect of a rule on pods' packets. The reasons are in docs/adr/0020-foreign-nat.md.

use super::rule::{Match, Target, overlap};
use super::walk::ReachableRule;
use crate::config::{Rule, RuleAction, Rules};
use crate::prefixes::Prefixes;
use ipnet::IpNet;
use netdp_common::layout::Family;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

/// Maximum number of prefixes named in a reason.
const NAMED: usize = 3;

/// Component that translates for netdp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Translator {
    /// The eBPF programs, behind all of netfilter.
    Ebpf,
    /// A netfilter chain, by name.
    Chain(String),
}

/// Circumstances by which rules are assessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NatContext {
    /// Component that translates for netdp.
    pub translator: Translator,
    /// The policy in force.
    pub rules: Rules,
    /// Names of interfaces that lead out; none if they are unknown.
    pub uplinks: Vec<String>,
    /// Source addresses of translated packets.
    pub wire: Vec<IpAddr>,
    /// Networks of the pods; none if they are unknown.
    pub pods: Vec<IpNet>,
    /// Addresses of the node.
    pub local: BTreeSet<IpAddr>,
    /// True if IPv6 is translated.
    pub enable_ipv6: bool,
}

/// Assessment of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assessment {
    /// True if its effect on pods' packets contradicts the configuration.
    pub conflict: bool,
    /// Its effect, as the end of a sentence about it.
    pub why: String,
}

fn harmless(why: impl Into<String>) -> Assessment {
    Assessment {
        conflict: false,
        why: why.into(),
    }
}

fn conflict(why: impl Into<String>) -> Assessment {
    Assessment {
        conflict: true,
        why: why.into(),
    }
}

/// Assessor of rules, one after the other.
pub(super) struct Assessor<'a> {
    context: &'a NatContext,
    /// The last policy query with its result: rules that differ only in their sources need the same
    /// query.
    last: Option<(PolicyQuery<'a>, String)>,
}

/// The conditions that decide which bypassed prefixes a rule may translate.
#[derive(PartialEq, Eq)]
struct PolicyQuery<'a> {
    family: Option<Family>,
    /// True if sources may be IPv4, and IPv6.
    sources: (bool, bool),
    /// Conditions on destinations.
    conditions: Vec<&'a Match>,
    excluded_version: u64,
}

impl<'a> Assessor<'a> {
    pub(super) const fn new(context: &'a NatContext) -> Self {
        Self {
            context,
            last: None,
        }
    }

    /// Assesses a rule that translates; `after`: netdp's chain decides before it.
    pub(super) fn assess(&mut self, rule: &ReachableRule<'a, '_>, after: bool) -> Assessment {
        let context = self.context;
        if let Some(why) = reason_without_pods(rule, context) {
            return harmless(why);
        }
        let hint = pod_cidr_hint(rule, context);
        let prefixes = self.bypassed_prefixes(rule);
        if !prefixes.is_empty() {
            return conflict(format!(
                "translates packets to {prefixes}, which the configuration bypasses{hint}"
            ));
        }
        if context.translator == Translator::Ebpf {
            return conflict(format!(
                "translates packets before they reach netdp, so that netdp's options and status do \
                 not apply to them{hint}"
            ));
        }
        if after {
            return harmless("comes after netdp's chain, which decides first");
        }
        match &rule.rule.target {
            Target::Snat(to)
                if to.is_empty() || !to.iter().all(|ip| context.local.contains(ip)) =>
            {
                conflict(format!(
                    "gives packets another source than netdp's chain, which comes after it{hint}"
                ))
            }
            _ => harmless("translates only what netdp's chain translates too"),
        }
    }

    /// Describes the bypassed prefixes that the rule may translate; empty if there are none.
    fn bypassed_prefixes(&mut self, rule: &ReachableRule<'a, '_>) -> String {
        let mut query = PolicyQuery {
            family: rule.family,
            sources: (true, true),
            conditions: Vec::new(),
            excluded_version: rule.excluded_version,
        };
        for condition in &rule.matches {
            match condition {
                Match::Source { nets, .. } => {
                    let (v4, v6) = families(nets);
                    query.sources.0 &= v4;
                    query.sources.1 &= v6;
                }
                Match::Destination { .. } => query.conditions.push(condition),
                _ => {}
            }
        }
        if let Some((last, description)) = &self.last
            && *last == query
        {
            return description.clone();
        }
        let mut prefixes = find_bypassed(&query, rule, self.context);
        // The largest prefixes are the most informative.
        prefixes.sort_by_key(IpNet::prefix_len);
        let more = match prefixes.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        prefixes.truncate(NAMED);
        let description = match prefixes.as_slice() {
            [] => String::new(),
            prefixes => list(prefixes) + &more,
        };
        self.last = Some((query, description.clone()));
        description
    }
}

/// Reports whether there are IPv4 and IPv6 prefixes.
fn families(nets: &[IpNet]) -> (bool, bool) {
    let v4 = nets.iter().any(|net| matches!(net, IpNet::V4(_)));
    let v6 = nets.iter().any(|net| matches!(net, IpNet::V6(_)));
    (v4, v6)
}

/// Returns the reason why no packet that a pod sends out matches, if so.
fn reason_without_pods(rule: &ReachableRule<'_, '_>, context: &NatContext) -> Option<String> {
    if let Some(mark) = rule.mark {
        return Some(format!(
            "applies only to packets that carry the mark {mark}"
        ));
    }
    let mut sources: Option<&[IpNet]> = None;
    let mut destinations: Option<&[IpNet]> = None;
    let mut engine_bridge = None;
    for condition in &rule.matches {
        match condition {
            Match::Mark { text, set: true } => {
                return Some(format!(
                    "applies only to packets that carry the mark {text}"
                ));
            }
            Match::Translated => {
                return Some("applies only to packets that a service has redirected".into());
            }
            Match::LocalSource { not: false } => {
                return Some("applies only to the node's own packets".into());
            }
            Match::LocalDestination { not: false } => {
                return Some("applies only to packets to the node itself".into());
            }
            Match::Out { names, not } => {
                let leads_out = |uplink: &String| names.iter().any(|n| is_named(uplink, n)) != *not;
                if !context.uplinks.is_empty() && !context.uplinks.iter().any(leads_out) {
                    return Some(format!(
                        "applies to no packets that leave by {}",
                        context.uplinks.join(", ")
                    ));
                }
                if *not {
                    engine_bridge = names.iter().find(|name| is_engine_bridge(name));
                }
            }
            Match::Source { nets, not: false } => sources = Some(nets),
            Match::Destination { nets, not: false } => destinations = Some(nets),
            Match::Other(text) if text.contains("KUBE-LOOP-BACK") => {
                return Some("applies only to pods that reach themselves through a service".into());
            }
            _ => {}
        }
    }
    let sources = sources?;
    if destinations == Some(sources) && sources.iter().all(is_host) {
        return Some("applies only to packets of an address to itself".into());
    }
    let has_pods = sources
        .iter()
        .any(|net| context.pods.iter().any(|pods| overlap(net, pods)));
    if has_pods {
        return None;
    }
    if let Some(bridge) = engine_bridge {
        return Some(format!(
            "applies only to the containers on {bridge}, {}",
            list(sources)
        ));
    }
    let known = |net: &IpNet| context.pods.iter().any(|pods| same_family(net, pods));
    sources
        .iter()
        .all(known)
        .then(|| format!("applies only to sources in {}, not to pods", list(sources)))
}

/// Returns the bypassed prefixes that the rule may translate.
fn find_bypassed(
    query: &PolicyQuery<'_>,
    rule: &ReachableRule<'_, '_>,
    context: &NatContext,
) -> Vec<IpNet> {
    let mut conditions = Vec::new();
    let (mut v4, mut v6) = query.sources;
    for condition in &query.conditions {
        if let Match::Destination { nets, not } = condition {
            let of = families(nets);
            v4 &= of.0;
            v6 &= of.1;
            conditions.push((nets, *not));
        }
    }
    v4 &= query.family != Some(Family::V6);
    v6 &= query.family != Some(Family::V4) && context.enable_ipv6;
    // The shortest list of destinations leads to the prefixes; the others are checked for each.
    let positive = (0..conditions.len()).filter(|at| conditions.get(*at).is_some_and(|it| !it.1));
    let first = positive.min_by_key(|at| conditions.get(*at).map(|it| it.0.len()));
    let first = first.map(|at| conditions.swap_remove(at).0);
    let conditions: Vec<_> = conditions
        .into_iter()
        .map(|(nets, not)| (nets, Prefixes::new(nets.iter().copied()), not))
        .collect();
    let is_translated = |prefix: &IpNet, part: IpNet| {
        let mut parts = vec![part];
        for (nets, prefixes, not) in &conditions {
            if *not {
                parts.retain(|part| prefixes.covering(*part).next().is_none());
                continue;
            }
            let both = |part: IpNet| {
                let covered = prefixes.covering(part).next().map(|_| part);
                let inside = prefixes.inside(part).filter_map(|at| nets.get(at).copied());
                let inside = inside.filter(move |_| covered.is_none());
                covered.into_iter().chain(inside)
            };
            parts = parts.into_iter().flat_map(both).collect();
        }
        parts.iter().any(|part| {
            !rule.excluded.covers(part) && !masqueraded_within(&context.rules, prefix, *part)
        })
    };
    let is_bypass = |rule: &&Rule| {
        let of_family = match rule.prefix {
            IpNet::V4(_) => v4,
            IpNet::V6(_) => v6,
        };
        rule.action == RuleAction::Bypass && of_family
    };
    let rules = &context.rules;
    let Some(nets) = first else {
        let all = rules.iter().filter(is_bypass).map(|rule| rule.prefix);
        return all
            .filter(|prefix| is_translated(prefix, *prefix))
            .collect();
    };
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for net in nets {
        let covering = rules.covering(*net).map(|rule| (rule, *net));
        let inside = rules.inside(*net).map(|rule| (rule, rule.prefix));
        for (rule, part) in covering.chain(inside).filter(|(rule, _)| is_bypass(rule)) {
            if !known.contains(&rule.prefix) && is_translated(&rule.prefix, part) {
                known.insert(rule.prefix);
                found.push(rule.prefix);
            }
        }
    }
    found
}

/// Reports whether a longer prefix than `prefix` masquerades all of `part`, which lies in `prefix`.
fn masqueraded_within(rules: &Rules, prefix: &IpNet, part: IpNet) -> bool {
    rules
        .covering(part)
        .take_while(|rule| rule.prefix.prefix_len() > prefix.prefix_len())
        .any(|rule| rule.action == RuleAction::Masquerade)
}

/// Returns a hint if sources are named and the networks of the pods are unknown.
fn pod_cidr_hint(rule: &ReachableRule<'_, '_>, context: &NatContext) -> String {
    let named = rule.matches.iter().find_map(|condition| match condition {
        Match::Source { nets, not: false } => Some(nets),
        _ => None,
    });
    match named {
        Some(nets) if context.pods.is_empty() => {
            format!(" (if there are pods in {}; set --pod-cidr)", list(nets))
        }
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

/// Reports whether container engines or libvirt give such names to their own bridges.
fn is_engine_bridge(name: &str) -> bool {
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
