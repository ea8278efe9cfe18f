//! Selection of the uplinks: a pure function of a snapshot.

use ipnet::IpNet;
use netdp_common::layout::Family;
use std::collections::BTreeSet;

use super::address::{source_v4, source_v6};
use super::macs::{Mac, macs};
use super::masters::{masters, top};
use super::model::{Link, Route, Snapshot};
use super::observed::observed;
use super::route_classes::{RouteClasses, classify_routes};
use super::selection::{Patterns, Selection};
use super::sources::{Sources, mark_only_sources, sources};
use super::stacked::{is_translated_below, unstack};
use super::uplink::Uplink;

/// Result of [`select`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selected {
    /// Uplinks, sorted by interface index.
    pub uplinks: Vec<Uplink>,
    /// Observed links, by which requests to pods may come in. They are no uplinks: only ingress is
    /// processed, so that replies that leave by an uplink are recognised as such.
    pub observed: Vec<Uplink>,
    /// Hardware addresses that the node sends from at the uplinks.
    pub macs: BTreeSet<Mac>,
    /// Source addresses that packets may have on the uplinks.
    pub sources: Sources,
    /// Patterns that match no link: one may appear later.
    pub unmatched: Vec<String>,
    /// Named links that can't be uplinks, with the reason, a sentence each.
    pub left_out: Vec<String>,
    /// Indexes of links that are uplinks although the policy masquerades neighbours on them, which
    /// look like guests: their default route, an address of the node or a router distinguishes
    /// them. They stay uplinks when these are gone.
    pub with_guests: BTreeSet<u32>,
    /// Reason why there are no uplinks, if there are none, with the remedy.
    pub reason: Option<String>,
    /// Decisions about stacked devices, a sentence each.
    pub stacked: Vec<String>,
    /// Links by which the node routes to masqueraded destinations and that are no uplinks, a
    /// sentence each: packets leave there untranslated.
    pub leaks: Vec<String>,
    /// Links that lead to guests of the node that the policy masquerades; packets sent there are
    /// not translated.
    pub guests: Vec<String>,
}

/// Selects the uplinks, and the source address of each.
///
/// The loopback device never is one. Of a bond or bridge and its members only the upper one is, so
/// that a packet is translated once; a member that is named without its master is accepted.
/// Membership of a VRF is not enslavement in this sense: packets pass the member's TC hooks and
/// carry its address. If selected links are stacked, each packet is translated by one of them.
pub(crate) fn select(snapshot: &Snapshot, selection: &Selection) -> Selected {
    let mut unmatched = Vec::new();
    let mut left_out = Vec::new();
    let classify = |counts: fn(&Route) -> bool| {
        classify_routes(
            snapshot,
            &selection.masqueraded,
            selection.enable_ipv6,
            counts,
        )
    };
    // A rule may lead to a table at any time: programs are there already.
    let classes = classify(|_| true);
    let mut chosen = if selection.patterns.is_empty() {
        by_role(snapshot, selection, &classes)
    } else {
        let mut named = by_name(snapshot, &selection.patterns, &mut unmatched);
        left_out = leave_out_vrfs(snapshot, &mut named);
        named
    };
    let stack = unstack(snapshot, &mut chosen);
    let mut uplinks: Vec<Uplink> = snapshot
        .links
        .iter()
        .filter(|link| chosen.contains(&link.ifindex))
        .map(|link| Uplink {
            untagged: stack.untagged.contains(&link.ifindex),
            ..uplink(snapshot, link, selection)
        })
        .collect();
    uplinks.sort_by_key(|uplink| uplink.ifindex);
    let sources = sources(snapshot, selection, &uplinks);
    mark_only_sources(&mut uplinks, &sources);
    let leaks = match snapshot.routes.iter().all(|route| route.is_led_to) {
        true => leaks(snapshot, selection, &classes, &uplinks),
        false => {
            let taken = classify(|route| route.is_led_to);
            leaks(snapshot, selection, &taken, &uplinks)
        }
    };
    let guests = (classes
        .guests
        .iter()
        .filter_map(|ifindex| snapshot.link(*ifindex)))
    .filter(|link| !is_translated(snapshot, link, &uplinks))
    .map(|link| link.name.clone())
    .collect();
    let reason = (uplinks.is_empty()).then(|| reason_for_none(selection, &unmatched, &left_out));
    let had = selection.with_guests.iter().chain(&classes.with_neighbours);
    let is_uplink = |ifindex: &u32| uplinks.iter().any(|uplink| uplink.ifindex == *ifindex);
    let with_guests = had.copied().filter(is_uplink).collect();
    Selected {
        observed: observed(snapshot, &uplinks),
        macs: macs(snapshot, &uplinks),
        sources,
        uplinks,
        unmatched,
        left_out,
        with_guests,
        reason,
        stacked: stack.decisions,
        leaks,
        guests,
    }
}

/// Returns the links that lead to masqueraded destinations although nothing translates there, by the classes of the
/// routes that packets take.
fn leaks(
    snapshot: &Snapshot,
    selection: &Selection,
    classes: &RouteClasses,
    uplinks: &[Uplink],
) -> Vec<String> {
    let message = |link: &Link, net: &IpNet, why: &str| {
        let name = &link.name;
        format!(
            "{name} is not an uplink, but the route to {net}, which is masqueraded, leads through \
             it: packets leave there with pods' addresses; {why}"
        )
    };
    let named = "name it with --uplink, or the destinations in nonMasqueradeCIDRs";
    let guests = "it also leads to guests that are masqueraded and so can't be an uplink: name their network in nonMasqueradeCIDRs";
    let out = classes.out.iter().map(|way| (way, named));
    // Naming the uplinks is a decision about these too.
    let by_role = selection.patterns.is_empty();
    let unfit = classes.unfit.iter().filter(|_| by_role);
    out.chain(unfit.map(|way| (way, guests)))
        .filter_map(|((ifindex, net), why)| Some((snapshot.link(*ifindex)?, net, why)))
        .filter(|(link, _, _)| !is_translated(snapshot, link, uplinks))
        .map(|(link, net, why)| message(link, net, why))
        .collect()
}

/// Reports whether packets that leave by a link are translated, there or at a lower device.
fn is_translated(snapshot: &Snapshot, link: &Link, uplinks: &[Uplink]) -> bool {
    uplinks.iter().any(|uplink| uplink.ifindex == link.ifindex)
        || is_translated_below(snapshot, link, uplinks)
}

fn uplink(snapshot: &Snapshot, link: &Link, selection: &Selection) -> Uplink {
    let known = &selection.node_addrs;
    let v6 = || source_v6(snapshot, link, known);
    Uplink {
        ifindex: link.ifindex,
        name: link.name.clone(),
        link_layer: link.link_layer,
        v4: source_v4(snapshot, link, known),
        v6: selection.enable_ipv6.then(v6).flatten(),
        up: link.up && link.running,
        untagged: false,
        only_v4: false,
        only_v6: false,
    }
}

/// Returns the links that have a default route, an address of the node, or a route to masqueraded
/// destinations, or had one before, or the masters of those.
fn by_role(snapshot: &Snapshot, selection: &Selection, classes: &RouteClasses) -> BTreeSet<u32> {
    let routes = snapshot
        .default_routes
        .iter()
        .filter(|route| route.family == Family::V4 || selection.enable_ipv6)
        .map(|route| route.ifindex);
    let addrs = snapshot
        .addrs
        .iter()
        .filter(|addr| selection.node_addrs.contains(&addr.addr))
        .map(|addr| addr.ifindex);
    let named = snapshot
        .links
        .iter()
        .filter(|link| selection.names.contains(&link.name))
        .map(|link| link.ifindex);
    let kept = named.chain(selection.keep.iter().copied());
    routes
        .chain(addrs)
        .chain(classes.out.keys().copied())
        // Replies to guests that are masqueraded by now would be dropped there. A neighbour that
        // was taken for a router before is not such a guest.
        .chain(kept.filter(|ifindex| {
            !classes.guests.contains(ifindex) || selection.with_guests.contains(ifindex)
        }))
        .filter_map(|ifindex| snapshot.link(ifindex))
        .map(|link| top(snapshot, link))
        .filter(|link| !link.loopback && !link.is_vrf())
        .map(|link| link.ifindex)
        .collect()
}

/// Returns the links that match a pattern, except those whose master matches too.
fn by_name(snapshot: &Snapshot, patterns: &Patterns, unmatched: &mut Vec<String>) -> BTreeSet<u32> {
    let mut named = BTreeSet::new();
    for pattern in &patterns.0 {
        let matching = |link: &&Link| !link.loopback && pattern.is_match(&link.name);
        let found: Vec<u32> = snapshot
            .links
            .iter()
            .filter(matching)
            .map(|link| link.ifindex)
            .collect();
        if found.is_empty() {
            unmatched.push(pattern.glob().to_string());
        }
        named.extend(found);
    }
    let below_named = |ifindex: &u32| {
        snapshot.link(*ifindex).is_some_and(|link| {
            masters(snapshot, link).any(|master| named.contains(&master.ifindex))
        })
    };
    named
        .iter()
        .copied()
        .filter(|ifindex| !below_named(ifindex))
        .collect()
}

/// Removes VRF devices from the named links, and returns a message for each: replies pass the
/// members' hooks only.
fn leave_out_vrfs(snapshot: &Snapshot, named: &mut BTreeSet<u32>) -> Vec<String> {
    let vrfs = (snapshot.links.iter()).filter(|link| link.is_vrf() && named.remove(&link.ifindex));
    vrfs.map(|vrf| {
        let members = (snapshot.links.iter()).filter(|link| link.master == Some(vrf.ifindex));
        let members: Vec<&str> = members.map(|link| link.name.as_str()).collect();
        let members = match members.as_slice() {
            [] => "it has none".to_owned(),
            members => members.join(", "),
        };
        format!(
            "{} is a VRF device and can't be an uplink: packets leave and come back by its members; \
             name these with --uplink ({members})",
            vrf.name
        )
    })
    .collect()
}

fn reason_for_none(selection: &Selection, unmatched: &[String], left_out: &[String]) -> String {
    if let [first, ..] = left_out {
        return first.clone();
    }
    if !unmatched.is_empty() {
        return format!("no interface matches --uplink {}", unmatched.join(", "));
    }
    let versions = if selection.enable_ipv6 {
        "IPv4 or IPv6"
    } else {
        "IPv4"
    };
    let mut reason = format!(
        "no interface has an {versions} default route in the main table or another route to \
         masqueraded destinations"
    );
    if !selection.node_addrs.is_empty() {
        let addrs: Vec<String> = selection
            .node_addrs
            .iter()
            .map(ToString::to_string)
            .collect();
        reason += &format!(" or an address of the node ({})", addrs.join(", "));
    }
    reason + "; name the uplinks with --uplink"
}
