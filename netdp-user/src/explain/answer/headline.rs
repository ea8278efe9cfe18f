//! The first line of an answer, its codes, and what to change.

use super::model::Outcome;
use super::node::{Node, PolicyRule};
use super::route::Way;
use super::steps::is_global;
use super::{Facts, netfilter};
use crate::codes::Code;
use crate::config::is_link_local;
use crate::explain::{Verdict, Why};
use crate::format::grouped;
use crate::uplinks::LinkAddr;
use ipnet::IpNet;
use netdp_common::layout::{Action, DropReason, POLICY_WAS_BYPASSED};
use std::net::IpAddr;

/// Origin of rules that no document has.
const BUILT_IN: &str = "built-in";

/// Returns the headline, the outcome and the codes.
pub(super) fn of(node: &Node<'_>, facts: &Facts<'_>) -> (String, Outcome, Vec<Code>) {
    let to = facts.case.to();
    let (name, src) = match &facts.way {
        Way::Local => {
            let line =
                format!("{to} is the node's own address: the packet does not leave the node");
            return (line, Outcome::Stays, Vec::new());
        }
        Way::None(why) => {
            let line = format!("{to} gets nothing: the node has no route to it ({why})");
            return (line, Outcome::NoRoute, Vec::new());
        }
        Way::Out { name, .. } => (name, facts.src),
    };
    let probed = facts.netfilter.as_ref();
    if let Some(rule) = probed
        .and_then(netfilter::first)
        .filter(|_| facts.translated.is_some())
    {
        let (seen, _) = super::seen(facts, Outcome::TranslatedFirst);
        let seen = seen.unwrap_or(src);
        let owner = &rule.finding.owner;
        let chain = &rule.finding.chain;
        let line = format!(
            "{to} sees {seen}, by {name}: netfilter translates it first, by a rule of {owner} in chain \
             {chain}"
        );
        return (line, Outcome::TranslatedFirst, vec![Code::OtherNat]);
    }
    if !facts.is_uplink {
        let whose = whose(node, facts);
        let line = format!("{to} sees {whose}{src}: it leaves by {name}, which is no uplink");
        let codes = match masquerades(node, facts) && whose == POD && !facts.is_off() {
            true => vec![Code::NoUplink],
            false => Vec::new(),
        };
        return (line, Outcome::NoUplink, codes);
    }
    let Some(verdict) = facts.verdict() else {
        let line = format!("{to} sees {src}, by {name}: no program decides about it");
        return (line, Outcome::OutOfScope, Vec::new());
    };
    let sees = format!("{to} sees {}{src}, by {name}", whose(node, facts));
    match verdict {
        Verdict::Rewritten(by) => {
            let seen = IpAddr::from(by.to.addr);
            let why = match facts.mapping() {
                Some(_) => "it belongs to a mapping".to_owned(),
                None => format!("masqueraded by {}", decided_by(node, facts)),
            };
            let mut line = format!("{to} sees {seen}, by {name}: {why}");
            let mut codes = notable(node, facts);
            if facts.mapping().is_none() {
                codes.extend(about_source(node, facts, seen));
            }
            if facts.is_pickup() {
                codes.push(Code::Pickup);
            }
            if facts.is_answer {
                line += &format!("; answers of the flow that began there keep {src}");
                codes.push(Code::BeganOutside);
            }
            (line, Outcome::Masqueraded, codes)
        }
        Verdict::Unmodified(Why::Bypassed) => {
            let mut codes = notable(node, facts);
            let why = if was_bypassed(facts) && masquerades(node, facts) {
                codes.push(Code::EarlierPolicy);
                "an earlier policy bypassed it, and the connection goes on".to_owned()
            } else {
                format!("bypassed by {}", decided_by(node, facts))
            };
            (format!("{sees}: {why}"), Outcome::Bypassed, codes)
        }
        Verdict::Unmodified(Why::Own) => {
            let line = format!("{to} sees {src}, by {name}: it is the node's own");
            (line, Outcome::Own, Vec::new())
        }
        Verdict::Unmodified(Why::Reply) => {
            let (code, why) = if was_bypassed(facts) {
                (
                    Code::EarlierPolicy,
                    "an earlier policy bypassed it, and the connection goes on",
                )
            } else {
                (Code::BeganOutside, "an answer of a flow that began outside")
            };
            (format!("{sees}: {why}"), Outcome::Reply, vec![code])
        }
        Verdict::Unmodified(Why::LetOut) => {
            let why = "it can't be translated, and --untranslatable lets it pass";
            (format!("{sees}: {why}"), Outcome::LetOut, Vec::new())
        }
        Verdict::Unmodified(_) if facts.is_off() => {
            let why = "IPv6 is not enabled (--enable-ipv6)";
            (
                format!("{sees}: {why}"),
                Outcome::OutOfScope,
                vec![Code::Ipv6Off],
            )
        }
        Verdict::Unmodified(_) => {
            let why = "it is of a kind that netdp leaves alone";
            (format!("{sees}: {why}"), Outcome::OutOfScope, Vec::new())
        }
        Verdict::Held => {
            let line = format!("{to} sees nothing yet: the packet waits for its first fragment");
            (line, Outcome::Held, Vec::new())
        }
        Verdict::Dropped(reason) => dropped(facts, reason),
    }
}

/// Words before the address of a pod.
const POD: &str = "the pod's ";

fn whose(node: &Node<'_>, facts: &Facts<'_>) -> &'static str {
    if node.is_local(facts.src) { "" } else { POD }
}

/// Returns the headline of a packet that is dropped.
fn dropped(facts: &Facts<'_>, reason: DropReason) -> (String, Outcome, Vec<Code>) {
    let to = facts.case.to();
    let line = match reason {
        DropReason::NoFreePort => match &facts.ports {
            Some(ports) => format!(
                "refused: every port of {} towards {to} is taken ({} of {})",
                ports.address,
                grouped(ports.used as u64),
                grouped(ports.capacity as u64)
            ),
            None => format!("refused: every port towards {to} is taken"),
        },
        DropReason::TableFull => {
            let why = "the mapping tables are full, or the pod has used up its share of them";
            format!("refused: {why}")
        }
        DropReason::PodLimit => {
            let why = "the pod has reached its limit (--pod-flows, --pod-new-flows)";
            format!("refused: {why}")
        }
        DropReason::NoSourceAddress => {
            let name = facts.leaves_by().unwrap_or_default();
            let family = if facts.case.dst.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            format!("refused: {name} has no {family} address that {to} could see")
        }
        DropReason::NodeProtocol => {
            let why = "the node itself uses this protocol, which has no ports, with it";
            format!("refused: {to}: {why}")
        }
        DropReason::IpsecPolicy => {
            let why = "with the node's address it would fall under an IPsec policy, yet leave in clear text";
            format!("refused: {to}: {why}")
        }
        other => {
            let line = format!("dropped: {} ({})", drop_in_words(other), other.name());
            return (line, Outcome::Dropped, Vec::new());
        }
    };
    (
        line,
        Outcome::Refused,
        Code::of_drop(reason).into_iter().collect(),
    )
}

/// Returns a drop reason in words.
pub(crate) const fn drop_in_words(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed => "a header is truncated or inconsistent",
        DropReason::UnsupportedProtocol => "a protocol that is not translated",
        DropReason::ExtensionHeader => "an IPv6 extension header that is not skipped",
        DropReason::FragmentOfDropped => "the first fragment of its datagram was dropped",
        DropReason::IcmpNoFlow => "an ICMP message that belongs to no mapping",
        DropReason::TcpNoFlow => "a TCP segment that opens no connection and belongs to no mapping",
        DropReason::Unsolicited => "to another pod's endpoint, which has not sent here",
        DropReason::RewriteFailed => "the kernel could not rewrite it",
        DropReason::ForgedSource => "its source is behind another interface than it came by",
        DropReason::NoSourceAddress => "the uplink has no address of the packet's family",
        DropReason::NoFreePort => "every port towards the destination is taken",
        DropReason::TableFull => "the mapping tables are full, or the pod has used up its share",
        DropReason::NodeProtocol => "the node itself uses the protocol with the destination",
        DropReason::PodLimit => "the pod has reached its limit",
        DropReason::IpsecPolicy => "an IPsec policy covers it, and it would leave in clear text",
    }
}

/// Names the origin of the rule that decides.
fn decided_by(node: &Node<'_>, facts: &Facts<'_>) -> String {
    let Some(rules) = &node.policy.rules else {
        return "the policy in force (no report of an agent says which entry)".to_owned();
    };
    let covering = node.policy.covering(facts.case.dst);
    match covering.first() {
        _ if is_report_behind(node, facts) => {
            "the policy in force, which is newer than the agent's report".to_owned()
        }
        Some(rule) if is_default(rule) => {
            format!(
                "the built-in default {}, because no document has nonMasqueradeCIDRs",
                rule.prefix
            )
        }
        Some(rule) => format!("{}, {}", rule.prefix, rule.origin),
        None if rules.is_empty() => "the default, because there is no entry".to_owned(),
        None => "the default, because no entry covers it".to_owned(),
    }
}

/// Reports whether the datapath decides otherwise than the rules of the report: a policy comes into
/// force before the report of it is written.
fn is_report_behind(node: &Node<'_>, facts: &Facts<'_>) -> bool {
    let explained = facts.explained.as_ref();
    let Some(value) = explained.and_then(super::Explained::policy) else {
        return false;
    };
    let is_bypass = Action::from_raw(value.action) == Action::Bypass;
    is_bypass == masquerades(node, facts)
}

/// Reports whether a rule is of the built-in list, which counts while no document has its own.
fn is_default(rule: &PolicyRule) -> bool {
    rule.origin == BUILT_IN && !is_link_local(&rule.prefix)
}

/// Reports whether the policy masquerades the destination.
pub(super) fn masquerades(node: &Node<'_>, facts: &Facts<'_>) -> bool {
    let covering = node.policy.covering(facts.case.dst);
    covering.first().is_none_or(|rule| rule.action != "bypass")
}

/// Reports whether an earlier policy bypassed the destination.
fn was_bypassed(facts: &Facts<'_>) -> bool {
    let explained = facts.explained.as_ref();
    let value = explained.and_then(super::Explained::policy);
    value.is_some_and(|value| value.action & POLICY_WAS_BYPASSED != 0)
}

/// Returns the codes of what is notable about a packet that netdp decides about.
fn notable(node: &Node<'_>, facts: &Facts<'_>) -> Vec<Code> {
    let mut codes = Vec::new();
    let covering = match is_report_behind(node, facts) {
        true => Vec::new(),
        false => node.policy.covering(facts.case.dst),
    };
    if covering.first().is_some_and(|rule| is_default(rule)) {
        codes.push(Code::Defaults);
    }
    if let [first, rest @ ..] = covering.as_slice()
        && rest.iter().any(|rule| rule.action != first.action)
    {
        codes.push(Code::Masked);
    }
    if let Some(ports) = &facts.ports
        && ports.used * 5 > ports.capacity * 4
    {
        codes.push(Code::PortsScarce);
    }
    codes
}

/// Returns the code of a choice among several addresses, and of a source that was not used.
fn about_source(node: &Node<'_>, facts: &Facts<'_>, taken: IpAddr) -> Option<Code> {
    let Way::Out {
        ifindex, source, ..
    } = &facts.way
    else {
        return None;
    };
    match source {
        Some(source) if *source == taken => return None,
        Some(source) if !node.is_local(*source) => return Some(Code::ForeignSource),
        _ => {}
    }
    let could = |it: &&LinkAddr| {
        it.ifindex == *ifindex && it.addr.is_ipv4() == taken.is_ipv4() && is_global(it)
    };
    let several = node.addresses.iter().filter(could).nth(1);
    several.map(|_| Code::SeveralAddresses)
}

/// Returns what can be done, each a line.
pub(super) fn remedies(node: &Node<'_>, facts: &Facts<'_>, outcome: Outcome) -> Vec<String> {
    let whole = IpNet::from(facts.case.dst);
    let name = facts.leaves_by().unwrap_or_default();
    let is_by_policy = matches!(outcome, Outcome::Masqueraded | Outcome::Bypassed);
    if is_by_policy && !node.rejected().is_empty() {
        let first = "first correct the configuration that was rejected, or whatever is added to it is \
                     rejected too; `netdp explain --with FILE` tells what it would do";
        return vec![first.to_owned()];
    }
    match outcome {
        Outcome::Masqueraded if facts.mapping().is_none() => {
            vec![format!(
                "to have it see the pod: add \"{whole}\" to nonMasqueradeCIDRs"
            )]
        }
        Outcome::Bypassed if !node.is_local(facts.src) => {
            vec![format!(
                "to have it see the node: add \"{whole}\" to masqueradeCIDRs"
            )]
        }
        Outcome::TranslatedFirst => {
            let probed = facts.netfilter.as_ref();
            let rule = probed.and_then(netfilter::first);
            rule.map(netfilter::remedy).into_iter().collect()
        }
        Outcome::NoUplink if masquerades(node, facts) && !node.is_local(facts.src) => {
            vec![format!(
                "to have it see the node: start the agent with --uplink {name} besides the others, or \
             change the route or rule above"
            )]
        }
        Outcome::OutOfScope if facts.is_off() => {
            vec!["to have it see the node: start the agent with --enable-ipv6".to_owned()]
        }
        Outcome::Refused => refused(facts),
        _ => Vec::new(),
    }
}

/// Returns the remedies of exhaustion, the cheapest first.
fn refused(facts: &Facts<'_>) -> Vec<String> {
    let whole = IpNet::from(facts.case.dst);
    match facts.verdict() {
        Some(Verdict::Dropped(DropReason::NoFreePort)) => vec![
            "nothing leaks: refused packets are dropped, and the pod gets an ICMP error".to_owned(),
            "free of cost: let the pods above reuse or close connections; where one of them should not take \
             all ports, limit it (--pod-flows)"
                .to_owned(),
            "costs ports of the node: widen --to-ports, or give up --reserved-ports; restarting the agent with \
             other flags ends no connection"
                .to_owned(),
            format!(
                "costs a route back to pods: add \"{whole}\" to nonMasqueradeCIDRs; or give the destination \
                 more addresses"
            ),
        ],
        Some(Verdict::Dropped(DropReason::TableFull)) => {
            vec!["costs memory: raise --max-flows; `netdp top` shows the pods".to_owned()]
        }
        Some(Verdict::Dropped(DropReason::NoSourceAddress)) => {
            let name = facts.leaves_by().unwrap_or_default();
            vec![format!(
                "give {name} an address, or route {whole} by another uplink"
            )]
        }
        _ => Vec::new(),
    }
}
