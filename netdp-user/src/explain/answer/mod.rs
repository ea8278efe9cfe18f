//! Answers to `netdp explain`: the way of one packet, its decision, and what to change.

mod ask;
mod headline;
mod model;
mod names;
mod netfilter;
mod node;
mod ports;
mod route;
mod service;
mod steps;
mod text;

pub(crate) use ask::{Case, End, KINDS, protocol};
pub(crate) use headline::drop_in_words;
pub(crate) use model::{Answer, Answers, Detail, Outcome, Step};
pub(crate) use node::Node;
pub(crate) use service::Given;

use super::{At, Explained, Verdict, Why};
use crate::datapath::{name_of, protocol_name};
use crate::foreign::Probed;
use anyhow::{Context as _, Result};
use ask::endpoint;
use netdp_common::direction::Direction;
use netdp_common::layout::{Addr, DropReason, Family, MAPPING_PICKUP, proto};
use ports::PortUse;
use route::Way;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// All that was found out about a case, for the headline and the steps.
struct Facts<'a> {
    case: &'a Case,
    /// Source of the packet as the pod sends it.
    src: IpAddr,
    way: Way,
    is_uplink: bool,
    /// The rules of netfilter that concern it; `None` if it does not leave.
    netfilter: Option<Probed>,
    /// Source of the packet as it arrives at the uplink, if netfilter has translated it.
    translated: Option<IpAddr>,
    /// The decision; `None` if no programs meet the packet.
    explained: Option<Explained>,
    /// The decision about a later packet of the connection, if it is an answer of a flow that keeps
    /// the pod's address.
    is_answer: bool,
    /// Ports towards the destination, where they were counted.
    ports: Option<PortUse>,
    has_ipv6: bool,
}

impl Facts<'_> {
    /// Returns the end of the decision, where programs meet the packet.
    fn verdict(&self) -> Option<Verdict> {
        self.explained.as_ref().map(|it| it.verdict)
    }

    /// Reports whether the packet's mapping began, or begins with it, in the middle of a TCP connection.
    fn is_pickup(&self) -> bool {
        match self.mapping() {
            Some(mapping) => mapping.flags & MAPPING_PICKUP != 0,
            // Nothing else of TCP begins a mapping.
            None => u32::from(self.case.protocol) == proto::TCP && !self.case.is_syn(),
        }
    }

    /// Returns the interface that the packet leaves by.
    fn leaves_by(&self) -> Option<&str> {
        match &self.way {
            Way::Out { name, .. } => Some(name),
            Way::Local | Way::None(_) => None,
        }
    }

    /// Reports whether all rules that could translate the packet before netdp were read.
    fn knows_netfilter(&self) -> bool {
        let probed = self.netfilter.as_ref();
        probed.is_none_or(|probed| !probed.no_programs && probed.unread.is_empty())
    }

    /// Reports whether a rule of netfilter may translate the packet, by what is not known of it.
    fn may_be_translated(&self) -> bool {
        let rules = self.netfilter.iter().flat_map(|it| &it.translations);
        let mut before = rules.take_while(|rule| !rule.is_certain);
        before.next().is_some()
    }

    /// Reports whether the destination's family is translated.
    const fn is_off(&self) -> bool {
        self.case.dst.is_ipv6() && !self.has_ipv6
    }
}

/// Explains all cases, those of a service for each of its endpoints. Without a source, destinations of a family in which the node has no pods are
/// left out, unless that is all of them.
///
/// # Errors
/// Returns the errors of [`explain`].
pub(crate) fn explain_all(node: &mut Node<'_>, cases: &[Case]) -> Result<Vec<Answer>> {
    let mut expanded = Vec::new();
    let mut found = service::FoundServices::default();
    for case in cases {
        expanded.extend(service::expand(node, case, &mut found));
    }
    let cases = expanded;
    let mut answers = Vec::new();
    for case in &cases {
        if case.src.is_none() && node.any_pod(case.dst.is_ipv4())?.is_none() {
            continue;
        }
        let (answer, named) = explain(node, case)?;
        let others = match case.src {
            Some(_) => Vec::new(),
            None => others(node, case, &answer, named)?,
        };
        answers.push(answer);
        answers.extend(others);
    }
    match cases.first() {
        Some(case) if answers.is_empty() => Ok(vec![explain(node, case)?.0]),
        _ => Ok(answers),
    }
}

/// The most other pods that an answer about any pod is compared with.
const COMPARED: usize = 4;

/// Explains a case of any pod for the pods that routing rules, or the `named` addresses of rules of
/// netfilter, are about. Returns the answers that differ from that of any other pod.
fn others(
    node: &mut Node<'_>,
    case: &Case,
    any: &Answer,
    mut named: BTreeSet<IpAddr>,
) -> Result<Vec<Answer>> {
    named.extend(node.sources_of_rules(case.dst.is_ipv4()));
    let is_same = |answer: &Answer| {
        answer.outcome == any.outcome
            && answer.seen_as.is_some() == any.seen_as.is_some()
            && answer.leaves_by == any.leaves_by
    };
    let pods: Vec<_> = (named.into_iter())
        .filter(|address| node.is_pods(*address))
        .take(COMPARED)
        .collect();
    let mut answers = Vec::new();
    for src in pods {
        let case = Case {
            src: Some(src),
            pod: node.names.name_of(src),
            ..case.clone()
        };
        let (answer, _) = explain(node, &case)?;
        if !is_same(&answer) {
            answers.push(answer);
        }
    }
    Ok(answers)
}

/// Explains one case. Returns the sources that rules of netfilter name, too.
///
/// # Errors
/// Returns an error if a map or the kernel's tables can't be read, or no source is known.
fn explain(node: &mut Node<'_>, case: &Case) -> Result<(Answer, BTreeSet<IpAddr>)> {
    let src = match case.src {
        Some(src) => src,
        None => node.any_pod(case.dst.is_ipv4())?.with_context(|| {
            format!(
                "no interface of the node has an address in a network of pods, so that no pod is \
                 known that could send to {}: give --from",
                case.to()
            )
        })?,
    };
    let is_own = node.is_local(src);
    let incoming = route::came_by(node, src).filter(|_| !is_own);
    let came_by = match incoming {
        Some(ifindex) if !node.is_uplink(ifindex)? => ifindex,
        _ => 0,
    };
    let way = route::way(node, case, src, came_by);
    let mut facts = Facts {
        case,
        src,
        is_uplink: false,
        netfilter: None,
        translated: None,
        explained: None,
        is_answer: false,
        ports: None,
        has_ipv6: node.explainer.maps.has_ipv6()?,
        way,
    };
    if let Way::Out { ifindex, name, .. } = &facts.way {
        facts.is_uplink = node.is_uplink(*ifindex)?;
        let probed = netfilter::probe(node, case, src, name);
        facts.translated = netfilter::translated(node, &probed, case.dst, *ifindex, is_own);
        facts.netfilter = Some(probed);
        let at = At {
            direction: Direction::Egress,
            ifindex: *ifindex,
            came_by,
            by_socket: is_own,
        };
        if facts.is_uplink {
            let seen = facts.translated.unwrap_or(src);
            let packet = case.packet(seen)?;
            let explained = node.explainer.decide(&packet, at)?;
            if let Some(later) = case.later(seen) {
                let later = node.explainer.decide(&later?, at)?;
                facts.is_answer = later.verdict == Verdict::Unmodified(Why::Reply);
            }
            facts.ports = PortUse::count(node, case, &explained)?;
            facts.explained = Some(explained);
        }
    }
    let from = endpoint(src, case.src_port);
    let (mut headline, outcome, codes) = headline::of(node, &facts);
    let via = case.service.as_ref();
    if let Some(via) = via {
        headline.insert_str(0, &via.headline());
    }
    let (seen_as, seen_port) = seen(&facts, outcome);
    let named = facts.netfilter.as_ref().map(|it| it.named.clone());
    let answer = Answer {
        headline,
        outcome,
        is_certain: !facts.may_be_translated()
            && facts.knows_netfilter()
            && via.is_none_or(service::Via::is_certain),
        codes,
        from,
        pod: case.pod.clone(),
        is_pods: !is_own,
        any_pod: case.src.is_none(),
        came_by: name_of(came_by),
        to: case.to(),
        asked_for: via.and_then(service::Via::replaced),
        service: via.and_then(service::Via::line),
        protocol: protocol_name(case.protocol.into()),
        seen_as,
        seen_port,
        leaves_by: facts.leaves_by().map(str::to_owned),
        drop_reason: match facts.verdict() {
            Some(Verdict::Dropped(reason)) => Some(reason.name()),
            _ => None,
        },
        steps: steps::of(node, &facts)?,
        notes: steps::notes(node, &facts, incoming.filter(|_| came_by == 0)),
        remedies: headline::remedies(node, &facts, outcome),
    };
    Ok((answer, named.unwrap_or_default()))
}

/// Returns the source that the destination sees, if a packet reaches it.
fn seen(facts: &Facts<'_>, outcome: Outcome) -> (Option<IpAddr>, Option<u16>) {
    let source = facts.translated.unwrap_or(facts.src);
    match (outcome, facts.verdict()) {
        (
            Outcome::Stays | Outcome::NoRoute | Outcome::Held | Outcome::Refused | Outcome::Dropped,
            _,
        ) => (None, None),
        (_, Some(Verdict::Rewritten(by))) => {
            let kept = facts.case.src_port.is_some();
            (
                Some(by.to.addr.into()),
                kept.then(|| u16::try_from(by.to.id).ok()).flatten(),
            )
        }
        _ => {
            let port = facts.case.src_port.filter(|_| facts.translated.is_none());
            (Some(source), port)
        }
    }
}

/// Returns the address that the uplink has for a family, if it has one.
fn uplink_address(explained: &Explained, family: Family) -> Option<Addr> {
    use netdp_common::layout::{UPLINK_V4, UPLINK_V6};
    let uplink = explained.uplink?;
    match family {
        Family::V4 => (uplink.flags & UPLINK_V4 != 0).then_some(uplink.v4),
        Family::V6 => (uplink.flags & UPLINK_V6 != 0).then_some(uplink.v6),
    }
}

/// Reports whether a reason is that no room is left for a new flow.
const fn is_for_room(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoFreePort | DropReason::TableFull | DropReason::PodLimit
    )
}
