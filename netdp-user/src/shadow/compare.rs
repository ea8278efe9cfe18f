//! Comparison of netdp's decision about a connection with netfilter's.

use super::env::ConfigEnv;
use super::netfilter::{NetfilterOutcome, NetfilterRules};
use crate::config::{Config, Rule};
use crate::datapath;
use crate::explain::packet::{Description, Kind};
use crate::nf_conntrack::Flow;
use crate::uplinks::Uplink;
use anyhow::Result;
use netdp_common::layout::{self, Addr, Counters, DropReason};
use netdp_common::nat::egress::egress;
use netdp_common::nat::lookup::Progress;
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::parse;
use netdp_common::verdict::Verdict;
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
    /// Returns the datapath's decision about the first packet of `flow`, had its source not been
    /// translated before.
    pub(super) fn of(flow: &Flow, node: &Node, routes: &mut impl RouteLookup) -> Self {
        let (from, to) = (flow.original.source, flow.reply.source);
        let mut expected = Self {
            source: Some(from),
            because: String::new(),
            leaves: false,
        };
        let own = node.local.contains(&from);
        let uplink = routes.egress_interface(from, to, own);
        let uplink = uplink.and_then(|ifindex| node.uplinks.get(&ifindex));
        let Ok((verdict, counters)) = decide(flow, node, routes, uplink) else {
            expected.because = "it has addresses of two families".into();
            return expected;
        };
        if !counters.egress_untouched.is_zero() {
            expected.because = match from {
                IpAddr::V6(_) if !node.enable_ipv6 => "IPv6 without --enable-ipv6".into(),
                _ => "multicast, broadcast or link-local".into(),
            };
            return expected;
        }
        let Some(uplink) = uplink else {
            expected.because = "it does not leave by an uplink".into();
            return expected;
        };
        expected.leaves = true;
        if own {
            expected.because = "the node's own traffic".into();
            return expected;
        }
        expected.because = match verdict {
            Decided::Passes => name(node.config.decide(to).rule),
            Decided::SeenAs(source) => {
                expected.source = Some(source);
                name(node.config.decide(to).rule)
            }
            Decided::Dropped(reason) => {
                expected.source = None;
                match reason {
                    DropReason::UnsupportedProtocol => "IPsec AH can't be translated".into(),
                    DropReason::NoSourceAddress => {
                        format!("{} has no address to masquerade with", uplink.name)
                    }
                    other => other.name().into(),
                }
            }
        };
        expected
    }
}

/// Decision of the datapath.
enum Decided {
    Passes,
    SeenAs(IpAddr),
    Dropped(DropReason),
}

/// Asks the datapath's own decision about the first packet of a flow that leaves by an uplink, or by
/// an interface that is none.
///
/// # Errors
/// Returns an error if the flow has addresses of two families.
fn decide(
    flow: &Flow,
    node: &Node,
    routes: &mut impl RouteLookup,
    uplink: Option<&Uplink>,
) -> Result<(Decided, Counters)> {
    let packet = Description {
        src: flow.original.source,
        src_id: flow.original.source_id,
        dst: flow.reply.source,
        dst_id: flow.reply.source_id,
        kind: Kind::first_of(flow.protocol),
    };
    let packet = packet.build()?;
    let mut scratch = Box::new(Scratch::EMPTY);
    parse(packet.ip(), packet.ethertype(), 0, &mut scratch.pkt);
    let (ifindex, entry) = match uplink {
        Some(uplink) => (uplink.ifindex, datapath::entry(uplink)),
        None => (0, NO_UPLINK),
    };
    let env = ConfigEnv::new(node, routes, ifindex, entry);
    let decided = match egress(&env, &mut scratch, Progress::Pending) {
        Verdict::Drop(reason) => Decided::Dropped(reason),
        Verdict::Rewrite => Decided::SeenAs(scratch.pkt.new.addr.into()),
        _ => Decided::Passes,
    };
    Ok((decided, env.counters()))
}

/// The entry of an interface without addresses.
const NO_UPLINK: layout::Uplink = layout::Uplink {
    v4: Addr::from_words([0; 4]),
    v6: Addr::from_words([0; 4]),
    l2_len: 0,
    flags: 0,
};

fn name(rule: Option<&Rule>) -> String {
    rule.map_or_else(
        || "no prefix covers it".into(),
        |rule| format!("{} ({})", rule.prefix, rule.origin),
    )
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
