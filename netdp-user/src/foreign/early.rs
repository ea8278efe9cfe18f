//! Rules that drop what is addressed to pods before netfilter would have given answers a pod's address:
//! in raw and mangle PREROUTING, as Docker 28 and later write them, and at ingress of devices. netdp
//! gives answers that address before all of netfilter, so that such a rule drops them.

use super::classify::{Around, is_named};
use super::rule::{Match, overlap};
use super::walk::Reached;
use crate::config::Action;
use crate::iptables::Family;
use ipnet::IpNet;

/// What a rule does to answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops {
    /// The end of a sentence about it.
    pub why: String,
    /// Whose answers; none if it names nobody.
    pub destinations: Vec<IpNet>,
}

/// What a rule does to answers; `None` if nothing that it did not do with netfilter, as far as can be
/// told.
#[must_use]
pub fn drops_answers(reached: &Reached<'_, '_>, around: &Around) -> Option<Drops> {
    if reached.mark.is_some() || (reached.family == Some(Family::V6) && !around.enable_ipv6) {
        return None;
    }
    let mut destinations: Option<&[IpNet]> = None;
    let mut not_local = false;
    for condition in &reached.matches {
        match condition {
            Match::In { names, not } => {
                let comes_in = |uplink: &String| names.iter().any(|n| is_named(uplink, n)) != *not;
                if !around.uplinks.is_empty() && !around.uplinks.iter().any(comes_in) {
                    return None;
                }
            }
            Match::Destination { nets, not: false } => destinations = Some(nets),
            Match::Destination { nets, not: true } => {
                let spared = |pods: &IpNet| nets.iter().any(|net| net.contains(pods));
                if !around.pods.is_empty() && around.pods.iter().all(spared) {
                    return None;
                }
            }
            Match::Source { nets, not: false }
                if nets.iter().all(|net| is_bypassed(net, around)) =>
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
        Some(nets) => pods_among(nets, reached, around)?,
        // Strict: what is not for the node is not let in.
        None if not_local => String::new(),
        None => return None,
    };
    let why = format!(
        "drops answers to pods: netdp gives them the pod's address before this chain, where they have \
         the node's with netfilter{what}"
    );
    Some(Drops {
        why,
        destinations: destinations.unwrap_or_default().to_vec(),
    })
}

/// What is to be said of the destinations if pods are among them.
fn pods_among(nets: &[IpNet], reached: &Reached<'_, '_>, around: &Around) -> Option<String> {
    // With netfilter answers had one of these, and were dropped too.
    let has_node = |net: &IpNet| around.wire.iter().any(|ip| net.contains(ip));
    let is_spared = |net: &IpNet| reached.spared.covers(net);
    let mut nets = nets.iter().filter(|net| !has_node(net) && !is_spared(net));
    if around.pods.is_empty() {
        let net = nets.next()?;
        return Some(format!(
            " (if there are pods in {net}; --pod-cidr says where they are)"
        ));
    }
    let has_pods = |net: &&IpNet| around.pods.iter().any(|pods| overlap(net, pods));
    nets.any(|net| has_pods(&net)).then(String::new)
}

/// Whether nothing in the prefix is masqueraded: answers from there are addressed to pods in any case.
fn is_bypassed(net: &IpNet, around: &Around) -> bool {
    around
        .rules
        .covering(*net)
        .any(|rule| rule.action == Action::Bypass)
}

/// Whether a condition asks what connection tracking or routing knows: answers pass there.
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
