//! The steps of an answer, in the order in which a packet meets them.

use super::ask::endpoint;
use super::headline::masquerades;
use super::model::{Detail, Step};
use super::node::Node;
use super::route::Way;
use super::{Facts, netfilter, uplink_address};
use crate::codes::Code;
use crate::datapath::name_of;
use crate::explain::{NotAsked, Question, Tried, Verdict, Why};
use crate::format::grouped;
use crate::reach;
use crate::time::pretty;
use crate::uplinks::{AddressScope, LinkAddr};
use anyhow::Result;
use netdp_common::flow::{TICK_SHIFT, age};
use netdp_common::layout::{Family, Mapping};
use std::net::IpAddr;

/// Number of addresses, and of pods, that are listed.
const LISTED: usize = 8;

/// Returns the steps.
///
/// # Errors
/// Returns an error if a map can't be read.
pub(super) fn of(node: &Node<'_>, facts: &Facts<'_>) -> Result<Vec<Step>> {
    let via = facts.case.service.as_ref();
    let mut steps: Vec<_> = via.map(|via| via.step(facts.case)).into_iter().collect();
    steps.push(facts.way.step(facts.is_uplink));
    if let Some(probed) = &facts.netfilter {
        steps.push(netfilter::step(probed));
    }
    if !matches!(facts.way, Way::Out { .. }) {
        return Ok(steps);
    }
    let mapping = facts.mapping();
    if facts.explained.is_some() {
        steps.push(mapping_step(facts, mapping));
    }
    steps.push(policy_step(node, facts));
    if facts.explained.is_none() {
        return Ok(steps);
    }
    steps.push(source_step(node, facts));
    if mapping.is_none() {
        steps.push(reply_step(facts));
    }
    if let Some(Verdict::Rewritten(by)) = facts.verdict() {
        steps.push(address_step(node, facts, by.to.addr.into()));
    }
    steps.extend(port_step(node, facts)?);
    Ok(steps)
}

impl Facts<'_> {
    /// Returns the mapping that the packet belongs to.
    pub(super) fn mapping(&self) -> Option<Mapping> {
        self.explained.as_ref()?.mapping()
    }
}

fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}

fn mapping_step(facts: &Facts<'_>, mapping: Option<Mapping>) -> Step {
    let now = facts.explained.as_ref().map_or(0, |it| it.now);
    match mapping {
        Some(mapping) => {
            let wire = endpoint(mapping.addr.into(), Some(mapping.id));
            let began = pretty(seconds(age(now, mapping.created)));
            let last = pretty(seconds(age(now, mapping.last_seen)));
            let why = format!("began {began} ago, last packet of the pod {last} ago");
            Step::new("mapping", wire, why)
        }
        None if facts.case.src_port.is_none() => {
            Step::new("mapping", "none", "the first packet of a new flow")
        }
        None => Step::new("mapping", "none", "no flow of these ends is translated"),
    }
}

fn policy_step(node: &Node<'_>, facts: &Facts<'_>) -> Step {
    let which = if node.policy.is_given {
        "; of the policy given by --with"
    } else {
        ""
    };
    if facts.is_off() {
        let why = "IPv6 is not enabled, so that it is not asked";
        return Step::new("policy", "not asked", why);
    }
    if node.policy.rules.is_none() {
        let why = "no report of an agent in the state directory: the origin of rules is unknown";
        return Step::new("policy", "unknown", why);
    }
    let covering = node.policy.covering(facts.case.dst);
    let [first, masked @ ..] = covering.as_slice() else {
        let why = format!("no entry covers it, and the default is to masquerade{which}");
        return Step::new("policy", "masquerade", why);
    };
    let answer = format!("{}  {}  {}", first.action, first.prefix, first.origin);
    let why = match masked.len() {
        0 => "the only entry that covers it".to_owned(),
        more => format!("longest of {}", more + 1),
    };
    let mut step = Step::new("policy", answer, why + which);
    for rule in masked {
        step.details.push(Detail {
            label: "masked",
            what: format!("{}  {}", rule.prefix, rule.action),
            why: rule.origin.clone(),
        });
    }
    step
}

fn source_step(node: &Node<'_>, facts: &Facts<'_>) -> Step {
    if let Some(translated) = facts.translated {
        let why = match node.is_local(translated) {
            true => "netdp sees the node's address and takes it for the node's own",
            false => "netdp sees the address that netfilter gave",
        };
        return Step::new("source", translated.to_string(), why);
    }
    match facts.verdict() {
        Some(Verdict::Dropped(netdp_common::layout::DropReason::ForgedSource)) => Step::new(
            "source",
            "forged",
            "the route to it leads to another interface",
        ),
        _ if node.is_local(facts.src) => {
            Step::new("source", "the node's", "an address of the node")
        }
        _ => Step::new("source", "a pod's", "no address of the node"),
    }
}

fn reply_step(facts: &Facts<'_>) -> Step {
    let to = facts.case.to();
    if facts.verdict() == Some(Verdict::Unmodified(Why::Reply)) {
        return Step::new(
            "reply",
            "yes",
            format!("a flow from {to} keeps the pod's address"),
        );
    }
    if facts.is_answer {
        let why = format!(
            "answers of the flow that began at {to} keep {} ({}); this is a new one",
            facts.src,
            Code::BeganOutside
        );
        return Step::new("reply", "no", why);
    }
    match facts.case.src_port {
        Some(_) => Step::new(
            "reply",
            "no",
            format!("no flow from {to} to this end is known"),
        ),
        None => Step::new(
            "reply",
            "not asked",
            "the pod's port is unknown (--from POD:PORT)",
        ),
    }
}

/// Explains the address that the packet gets, and lists those that it does not.
fn address_step(node: &Node<'_>, facts: &Facts<'_>, taken: IpAddr) -> Step {
    let Way::Out {
        ifindex,
        name,
        source,
        ..
    } = &facts.way
    else {
        return Step::new("address", taken.to_string(), "");
    };
    let explained = facts.explained.as_ref();
    let configured = explained.and_then(|it| {
        it.questions.iter().find_map(|question| match question {
            Question::Source { found, .. } => *found,
            _ => None,
        })
    });
    let of_uplink = explained.and_then(|it| uplink_address(it, Family::of(taken)));
    let first = node
        .addresses
        .iter()
        .find(|it| it.ifindex == *ifindex && it.addr.is_ipv4() == taken.is_ipv4() && is_global(it));
    let unnamed = match source {
        None => "the route names no source".to_owned(),
        Some(source) if *source == taken => format!("the route names {source}"),
        Some(source) => format!("the source that the route names, {source}, is not used"),
    };
    let why = if facts.mapping().is_some() {
        "the mapping's".to_owned()
    } else if *source == Some(taken) {
        "the route names it".to_owned()
    } else if configured == Some(taken.into()) {
        format!("the one of {name} in the next hop's network; {unnamed}")
    } else if first.is_some_and(|it| it.addr == taken) {
        format!("first of scope global on {name}; {unnamed}")
    } else if of_uplink == Some(taken.into()) {
        format!("the agent's choice for {name}; {unnamed}")
    } else {
        unnamed
    };
    let mut step = Step::new("address", taken.to_string(), why);
    let others = node.addresses.iter().filter(|it| {
        it.addr.is_ipv4() == taken.is_ipv4() && it.addr != taken && !it.addr.is_loopback()
    });
    for other in others.take(LISTED) {
        step.details.push(Detail {
            label: "not",
            what: other.addr.to_string(),
            why: why_not(other, *ifindex),
        });
    }
    step
}

/// Reports whether an address is of scope global, and no secondary one.
pub(super) fn is_global(address: &LinkAddr) -> bool {
    address.scope == AddressScope::Universe && !address.flags.secondary
}

/// Returns why an address of the node is not the packet's.
fn why_not(other: &LinkAddr, ifindex: u32) -> String {
    if other.ifindex != ifindex {
        let name = name_of(other.ifindex).unwrap_or_else(|| other.ifindex.to_string());
        return format!("{name}'s");
    }
    let why = if other.scope != AddressScope::Universe {
        "not of scope global"
    } else if other.flags.secondary {
        "secondary"
    } else if other.flags.deprecated {
        "deprecated"
    } else if other.flags.tentative || other.flags.dadfailed {
        "not known to be unique"
    } else if other.flags.temporary {
        "temporary"
    } else {
        "not the first"
    };
    why.to_owned()
}

/// Explains the port of a new mapping.
fn port_step(node: &Node<'_>, facts: &Facts<'_>) -> Result<Option<Step>> {
    let Some(explained) = facts.explained.as_ref() else {
        return Ok(None);
    };
    let mode = format!("--port-mode {}", node.explainer.maps.port_mode()?);
    let use_of = facts.ports.as_ref().map(|ports| {
        format!(
            "; {} of {} are taken towards {}",
            grouped(ports.used as u64),
            grouped(ports.capacity as u64),
            facts.case.to()
        )
    });
    let use_of = use_of.unwrap_or_default();
    let mut step = match explained.verdict {
        Verdict::Rewritten(_) if facts.mapping().is_some() => return Ok(None),
        Verdict::Rewritten(_) if facts.case.src_port.is_none() => {
            Step::new("port", "the pod's own if it is free", mode + &use_of)
        }
        Verdict::Rewritten(by) => {
            let own = facts.case.src_port.map(u32::from) == Some(by.to.id);
            let answer = if own {
                format!("{}, the pod's own", by.to.id)
            } else {
                by.to.id.to_string()
            };
            Step::new("port", answer, mode + &use_of)
        }
        Verdict::Dropped(reason) if super::is_for_room(reason) => {
            Step::new("port", "none", mode + &use_of)
        }
        _ => return Ok(None),
    };
    let tried = explained.ports_tried();
    let taken = tried.iter().filter(|it| it.result != Tried::Free);
    for tried in taken.take(LISTED) {
        step.details.push(Detail {
            label: "not",
            what: tried.port.to_string(),
            why: taken_by(tried.result),
        });
    }
    let pods = facts.ports.iter().flat_map(|it| &it.pods).take(LISTED);
    let pods = pods.filter(|_| matches!(explained.verdict, Verdict::Dropped(_)));
    for (pod, all, closing) in pods {
        let what = node.names.name_of(*pod).unwrap_or_else(|| pod.to_string());
        let closing = match closing {
            0 => String::new(),
            closing => format!(", {} of them closing", grouped(*closing as u64)),
        };
        step.details.push(Detail {
            label: "pod",
            what,
            why: format!("has {}{closing}", grouped(*all as u64)),
        });
    }
    Ok(Some(step))
}

/// Returns why a port was not taken.
fn taken_by(result: Tried) -> String {
    match result {
        Tried::Free => "free".to_owned(),
        Tried::Reserved => "reserved (--reserved-ports)".to_owned(),
        Tried::NodePort => "a hostPort or service of the node".to_owned(),
        Tried::Mapping(mapping) => {
            format!("{} has it", endpoint(mapping.addr.into(), Some(mapping.id)))
        }
        Tried::Socket => "a socket of the node has it".to_owned(),
        Tried::NodeFlow => "a flow of the node has it".to_owned(),
        Tried::Full => "no room in the table".to_owned(),
    }
}

/// Returns what pods have lately heard of a bypassed destination's network, if that is nothing.
fn unanswered(node: &Node<'_>, facts: &Facts<'_>) -> Option<String> {
    if !matches!(facts.verdict(), Some(Verdict::Unmodified(Why::Bypassed))) {
        return None;
    }
    let network = reach::network(facts.case.dst);
    let counts = node.reach.get(&network)?;
    (counts.pod_new > 0 && counts.pods_heard() == 0).then(|| {
        format!(
            "in the last minutes {network} has answered none of {} attempts of pods, and {} of {} of the \
             node; `netdp suggest` says more",
            grouped(counts.pod_new),
            grouped(counts.node_answered),
            grouped(counts.node_new)
        )
    })
}

/// Returns facts that matter besides; `elsewhere` is the interface to which the source is routed, if
/// that is no pod's.
pub(super) fn notes(node: &Node<'_>, facts: &Facts<'_>, elsewhere: Option<u32>) -> Vec<String> {
    let mut notes = Vec::new();
    let case = facts.case;
    if case.is_port_assumed {
        notes.push(format!("no port was given: {} is assumed", case.dst_port));
    }
    if let Some(ifindex) = elsewhere {
        let name = name_of(ifindex).unwrap_or_else(|| ifindex.to_string());
        let src = facts.src;
        notes.push(format!(
            "{src} is not behind this node: the route to it leads out by {name}"
        ));
    }
    if let Some(owner) = facts.netfilter.as_ref().and_then(|it| it.service.as_ref()) {
        notes.push(format!(
            "{} is the address of a service: {owner} replaces it before netdp sees the packet; ask for \
             an endpoint of the service instead",
            case.dst
        ));
    }
    if case.src.is_none() {
        let is_by_rule = facts
            .netfilter
            .as_ref()
            .and_then(netfilter::first)
            .is_some();
        if is_by_rule || masquerades(node, facts) {
            notes.push(
                "other pods may differ (--from): rules of routing and of netfilter may name sources, and each \
                 pod has its share of the mapping tables"
                    .to_owned(),
            );
        }
    }
    notes.extend(unanswered(node, facts));
    let detours = node.report.iter().flat_map(|it| &it.detours);
    notes.extend(detours.map(|what| format!("{what} ({})", Code::Detour)));
    if node.policy.is_given {
        notes.push("mappings and flows are those of the policy in force".to_owned());
    }
    let not_asked = facts.explained.iter().flat_map(super::Explained::not_asked);
    notes.extend(not_asked.map(|what| match what {
        NotAsked::Sockets { protocol } => {
            format!("not asked: sockets of protocol {protocol}, which the kernel does not list")
        }
        NotAsked::Routes => "not asked: routes, which the kernel does not answer".to_owned(),
        NotAsked::Sources => "not asked: sources by route, because no program is loaded".to_owned(),
        NotAsked::HardwareAddresses => {
            "not asked: hardware addresses, because no program is loaded".to_owned()
        }
    }));
    notes
}
