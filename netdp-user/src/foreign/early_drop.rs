//! Rules that drop packets addressed to pods before netfilter would have given replies a pod's
//! address: in raw and mangle PREROUTING, as Docker 28 and later write them, and at ingress of
//! devices. netdp rewrites replies to that address before all of netfilter, so that such a rule
//! drops them.

use super::assess::{NatContext, is_named};
use super::rule::{Match, overlap};
use super::walk::ReachableRule;
use crate::config::RuleAction;
use ipnet::IpNet;
use netdp_common::layout::Family;

/// Effect of a rule on replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DropEffect {
    /// The effect, as the end of a sentence about the rule.
    pub why: String,
    /// Destinations of the dropped replies; none if the rule names none.
    pub destinations: Vec<IpNet>,
}

/// Returns the effect of a rule on replies; `None` if it has none that it did not have with
/// netfilter, as far as can be determined.
#[must_use]
pub(crate) fn assess_drop(
    rule: &ReachableRule<'_, '_>,
    context: &NatContext,
) -> Option<DropEffect> {
    if rule.mark.is_some() || (rule.family == Some(Family::V6) && !context.enable_ipv6) {
        return None;
    }
    let mut destinations: Option<&[IpNet]> = None;
    let mut not_local = false;
    for condition in &rule.matches {
        match condition {
            Match::In { names, not } => {
                let comes_in = |uplink: &String| names.iter().any(|n| is_named(uplink, n)) != *not;
                if !context.uplinks.is_empty() && !context.uplinks.iter().any(comes_in) {
                    return None;
                }
            }
            Match::Destination { nets, not: false } => destinations = Some(nets),
            Match::Destination { nets, not: true } => {
                let excludes = |pods: &IpNet| nets.iter().any(|net| net.contains(pods));
                if !context.pods.is_empty() && context.pods.iter().all(excludes) {
                    return None;
                }
            }
            Match::Source { nets, not: false }
                if nets.iter().all(|net| is_bypassed(net, context)) =>
            {
                return None;
            }
            Match::LocalDestination { not: true } => not_local = true,
            Match::Mark { set: true, .. }
            | Match::LocalDestination { not: false }
            | Match::LocalSource { not: false }
            | Match::Translated
            | Match::Out { .. } => return None,
            Match::Other(text) if is_about_state(text) => return None,
            _ => {}
        }
    }
    let what = match destinations {
        Some(nets) => pods_among(nets, rule, context)?,
        // Strict mode: packets that are not for the node are dropped.
        None if not_local => String::new(),
        None => return None,
    };
    let why = format!(
        "drops replies to pods: they have the pod's address here with netdp, and the node's with \
         netfilter{what}"
    );
    Some(DropEffect {
        why,
        destinations: destinations.unwrap_or_default().to_vec(),
    })
}

/// Returns the part of the message about the destinations if pods are among them.
fn pods_among(
    nets: &[IpNet],
    rule: &ReachableRule<'_, '_>,
    context: &NatContext,
) -> Option<String> {
    // With netfilter, replies had one of these addresses, and were dropped too.
    let has_node = |net: &IpNet| context.wire.iter().any(|ip| net.contains(ip));
    let is_excluded = |net: &IpNet| rule.excluded.covers(net);
    let mut nets = nets
        .iter()
        .filter(|net| !has_node(net) && !is_excluded(net));
    if context.pods.is_empty() {
        let net = nets.next()?;
        return Some(format!(" (if there are pods in {net}; set --pod-cidr)"));
    }
    let has_pods = |net: &&IpNet| context.pods.iter().any(|pods| overlap(net, pods));
    nets.any(|net| has_pods(&net)).then(String::new)
}

/// Reports whether nothing in the prefix is masqueraded: replies from there are addressed to pods
/// in any case.
fn is_bypassed(net: &IpNet, context: &NatContext) -> bool {
    context
        .rules
        .covering(*net)
        .any(|rule| rule.action == RuleAction::Bypass)
}

/// Reports whether a condition uses conntrack or routing state: replies pass there.
fn is_about_state(text: &str) -> bool {
    [
        "state ",
        "--invert",
        "rpfilter",
        "\"ct\"",
        "\"fib\"",
        "--validmark",
        "--loose",
    ]
    .iter()
    .any(|word| text.contains(word))
}
