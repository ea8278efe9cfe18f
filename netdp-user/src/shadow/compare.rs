//! Comparison of netdp's decision about a connection with netfilter's.

use super::netfilter::{NetfilterOutcome, NetfilterRules};
use crate::config::{Config, Rule, RuleAction};
use crate::nf_conntrack::Flow;
use crate::uplinks::Uplink;
use netdp_common::layout::{Addr, Family, proto};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Inputs of the decision besides the packet.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Configuration with the policy.
    pub config: Config,
    /// The node's addresses.
    pub local: BTreeSet<IpAddr>,
    /// The uplinks, by interface index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// IPv6 translation, from `--enable-ipv6`.
    pub enable_ipv6: bool,
}

/// Route lookups of the node.
pub(super) trait RouteLookup {
    /// Returns the interface by which a packet leaves; `None` if it does not. `own`: the node sends
    /// it.
    fn egress_interface(&mut self, from: IpAddr, to: IpAddr, own: bool) -> Option<u32>;
    /// Returns the source address that the kernel would choose for `to` on this interface.
    fn source(&mut self, to: IpAddr, ifindex: u32) -> Option<IpAddr>;
}

/// netdp's decision about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// Source address of its packets beyond the node; `None` if they would be dropped.
    pub source: Option<IpAddr>,
    /// Reason of the decision, in a few words.
    pub because: String,
    /// Set if it would leave by an uplink.
    pub leaves: bool,
}

impl Expected {
    /// Returns the decision of the datapath's `nat::egress` about the first packet of `flow`, had
    /// its source not been translated before.
    pub(super) fn of(flow: &Flow, node: &Node, routes: &mut impl RouteLookup) -> Self {
        let (from, to) = (flow.original.source, flow.reply.source);
        let mut expected = Self {
            source: Some(from),
            because: String::new(),
            leaves: false,
        };
        let own = node.local.contains(&from);
        let uplink = match out_of_scope(from, to, node) {
            Some(why) => {
                expected.because = why.into();
                return expected;
            }
            None => routes.egress_interface(from, to, own),
        };
        let Some(uplink) = uplink.and_then(|ifindex| node.uplinks.get(&ifindex)) else {
            expected.because = "it does not leave by an uplink".into();
            return expected;
        };
        expected.leaves = true;
        if own {
            expected.because = "the node's own traffic".into();
            return expected;
        }
        let decision = node.config.decide(to);
        expected.because = name(decision.rule);
        if decision.action == RuleAction::Bypass {
            return expected;
        }
        if u32::from(flow.protocol) == proto::AH {
            expected.source = None;
            expected.because = "IPsec AH can't be translated".into();
            return expected;
        }
        let of_uplink = match to {
            IpAddr::V4(_) => uplink.v4.map(IpAddr::from),
            IpAddr::V6(_) => uplink.v6.map(IpAddr::from),
        };
        let routed = routes.source(to, uplink.ifindex);
        let routed = routed.filter(|source| node.local.contains(source));
        expected.source = routed.or(of_uplink);
        if expected.source.is_none() {
            expected.because = format!("{} has no address to masquerade with", uplink.name);
        }
        expected
    }
}

fn name(rule: Option<&Rule>) -> String {
    rule.map_or_else(
        || "no prefix covers it".into(),
        |rule| format!("{} ({})", rule.prefix, rule.origin),
    )
}

/// Returns why a packet is out of scope, as `nat::out_of_scope` of the datapath decides.
fn out_of_scope(from: IpAddr, to: IpAddr, node: &Node) -> Option<&'static str> {
    let (source, destination) = (Addr::from(from), Addr::from(to));
    let family = Family::of(from);
    if family == Family::V6 && !node.enable_ipv6 {
        return Some("IPv6 without --enable-ipv6");
    }
    let special = source.is_special(family)
        || destination.is_special(family)
        || (family == Family::V6 && source.is_v6_link_local());
    special.then_some("multicast, broadcast or link-local")
}

/// Result of the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Packets look the same beyond the node; with the kind of agreement.
    Agrees(&'static str),
    /// They do not: netdp's decision and netfilter's.
    Differs { netdp: String, netfilter: String },
}

/// Compares both decisions. `rules` is queried only if needed.
pub(super) fn compare(
    flow: &Flow,
    expected: &Expected,
    node: &Node,
    rules: &mut impl NetfilterRules,
) -> Comparison {
    let (from, is) = (flow.original.source, flow.reply.destination);
    let translated = is != from;
    if expected.source == Some(is) {
        return Comparison::Agrees(match (translated, expected.leaves) {
            (true, _) => "masqueraded",
            (false, _) if node.local.contains(&from) => "the node's own",
            (false, true) => "bypassed",
            (false, false) => "not by an uplink",
        });
    }
    let netfilter = match (translated, rules.outcome(flow)) {
        // A third-party rule's translation remains after a takeover, and packets that it gave an
        // address of the node are the node's own traffic to netdp.
        (true, NetfilterOutcome::Untranslated(_))
            if node.local.contains(&is) || !expected.leaves =>
        {
            return Comparison::Agrees("masqueraded by a third-party rule, which stays");
        }
        (true, NetfilterOutcome::Untranslated(_)) => {
            format!("a third-party rule: source {is}, which is not the node's")
        }
        (true, NetfilterOutcome::Masqueraded(why) | NetfilterOutcome::Unknown(why)) => {
            format!("masquerade as {is}: {why}")
        }
        (false, NetfilterOutcome::Masqueraded(rule)) => {
            format!("bypass: another rule comes before {rule}")
        }
        (false, NetfilterOutcome::Untranslated(why) | NetfilterOutcome::Unknown(why)) => {
            format!("bypass: {why}")
        }
    };
    let netdp = match expected.source {
        None => format!("drop: {}", expected.because),
        Some(source) if source == from => format!("bypass: {}", expected.because),
        Some(source) => format!("masquerade as {source}: {}", expected.because),
    };
    Comparison::Differs { netdp, netfilter }
}
