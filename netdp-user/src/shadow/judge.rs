//! Comparison of netdp's decision about a connection with netfilter's.

use super::netfilter::{Did, Rules};
use crate::config::{Action, Config, Rule};
use crate::conntrack::Flow;
use crate::uplinks::Uplink;
use netdp_common::layout::{Addr, Family, proto};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Inputs of the decision besides the packet.
#[derive(Debug, Clone)]
pub struct Node {
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
pub(super) trait Ways {
    /// Returns the interface by which a packet leaves; `None` if it does not. `own`: the node sends
    /// it.
    fn leaves_by(&mut self, from: IpAddr, to: IpAddr, own: bool) -> Option<u32>;
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
    pub(super) fn of(flow: &Flow, node: &Node, ways: &mut impl Ways) -> Self {
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
            None => ways.leaves_by(from, to, own),
        };
        let Some(uplink) = uplink.and_then(|ifindex| node.uplinks.get(&ifindex)) else {
            expected.because = "it leaves by no uplink".into();
            return expected;
        };
        expected.leaves = true;
        if own {
            expected.because = "the node's own traffic".into();
            return expected;
        }
        let decision = node.config.decide(to);
        expected.because = name(decision.rule);
        if decision.action == Action::Bypass {
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
        let routed = ways.source(to, uplink.ifindex);
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
    let family = match from {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    };
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
pub(super) enum Judgement {
    /// Packets look the same beyond the node; with the kind of agreement.
    Agrees(&'static str),
    /// They do not: netdp's decision and netfilter's.
    Differs { netdp: String, netfilter: String },
}

/// Compares both decisions. `rules` is queried only if needed.
pub(super) fn judge(
    flow: &Flow,
    expected: &Expected,
    node: &Node,
    rules: &mut impl Rules,
) -> Judgement {
    let (from, is) = (flow.original.source, flow.reply.destination);
    let translated = is != from;
    if expected.source == Some(is) {
        return Judgement::Agrees(match (translated, expected.leaves) {
            (true, _) => "masqueraded",
            (false, _) if node.local.contains(&from) => "the node's own",
            (false, true) => "left alone",
            (false, false) => "by no uplink",
        });
    }
    let netfilter = match (translated, rules.did(flow)) {
        // A third-party rule's translation remains after a takeover, and packets that it gave an
        // address of the node are the node's own traffic to netdp.
        (true, Did::Not(_)) if node.local.contains(&is) || !expected.leaves => {
            return Judgement::Agrees("masqueraded by another's rule, which stays");
        }
        (true, Did::Not(_)) => format!("another's rule: source {is}, which is not the node's"),
        (true, Did::Masquerade(why) | Did::Unknown(why)) => format!("masquerade as {is}: {why}"),
        (false, Did::Masquerade(rule)) => format!("leave alone: something comes before {rule}"),
        (false, Did::Not(why) | Did::Unknown(why)) => format!("leave alone: {why}"),
    };
    let netdp = match expected.source {
        None => format!("drop: {}", expected.because),
        Some(source) if source == from => format!("leave alone: {}", expected.because),
        Some(source) => format!("masquerade as {source}: {}", expected.because),
    };
    Judgement::Differs { netdp, netfilter }
}
