//! Links by which a node routes to masqueraded destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::masters::top;
use super::model::{Link, LinkLayer, Route, Snapshot};
use crate::config::Masqueraded;

/// Classification of links by their routes; links are given by index.
#[derive(Debug, Default)]
pub(super) struct RouteClasses {
    /// Links that lead to masqueraded destinations, each with one of the routes.
    pub out: BTreeMap<u32, IpNet>,
    /// Links that lead to guests of this node, pods for example, that the policy masquerades.
    /// Packets that leave by them include replies to these guests, so they can't be uplinks.
    pub guests: BTreeSet<u32>,
    /// The links in `guests`, and links with masqueraded neighbours that are taken for routers.
    pub with_neighbours: BTreeSet<u32>,
    /// Links in [`guests`](Self::guests) that also lead to other masqueraded destinations, each
    /// with one of the routes.
    pub unfit: BTreeMap<u32, IpNet>,
}

/// Summary of the routes of one link.
#[derive(Default)]
struct RouteSummary {
    /// A masqueraded destination behind a router, or anywhere (a default route).
    beyond: Option<IpNet>,
    /// A masqueraded destination on the link.
    direct: Option<IpNet>,
    /// True if host routes lead to routers on the link, by which everything is reached.
    routers: bool,
}

/// Classifies links by the routes of all tables, as far as these routes count.
pub(super) fn classify_routes(
    snapshot: &Snapshot,
    masqueraded: &Masqueraded,
    enable_ipv6: bool,
    counts: impl Fn(&Route) -> bool,
) -> RouteClasses {
    let routers = routers(snapshot);
    let mut summaries: BTreeMap<u32, RouteSummary> = BTreeMap::new();
    for route in snapshot.routes.iter().filter(|route| counts(route)) {
        let net = route.destination;
        if matches!(net, IpNet::V6(_)) && !enable_ipv6 || !masqueraded.touches(&net) {
            continue;
        }
        let Some(link) = snapshot.link(route.ifindex) else {
            continue;
        };
        let summary = summaries.entry(top(snapshot, link).ifindex).or_default();
        if route.gateway.is_some() || net.prefix_len() == 0 {
            summary.beyond.get_or_insert(net);
        } else if route.is_to_neighbour() && routers.contains(&(route.ifindex, net.addr())) {
            summary.routers = true;
        } else {
            summary.direct.get_or_insert(net);
        }
    }
    let networks = networks(snapshot);
    let mut classes = RouteClasses::default();
    for (ifindex, summary) in summaries {
        let Some(link) = snapshot.link(ifindex).filter(|link| leads_out(link)) else {
            continue;
        };
        let to_guests = leads_to_guests(snapshot, link, &networks);
        let guests = summary.direct.filter(|_| to_guests);
        if to_guests && (guests.is_some() || summary.routers) {
            classes.with_neighbours.insert(ifindex);
        }
        match (guests, summary.beyond) {
            (None, beyond) => {
                if let Some(net) = beyond.or(summary.direct) {
                    classes.out.insert(ifindex, net);
                }
            }
            (Some(_), Some(net)) => {
                classes.guests.insert(ifindex);
                classes.unfit.insert(ifindex, net);
            }
            (Some(_), None) => drop(classes.guests.insert(ifindex)),
        }
    }
    classes
}

/// Reports whether packets routed to a link leave by it. Those of a VRF device leave by a member,
/// after another lookup in the VRF's table (`vrf_xmit`, drivers/net/vrf.c, Linux 6.12): its
/// members' routes are there.
pub(super) fn leads_out(link: &Link) -> bool {
    let nowhere = matches!(link.kind.as_deref(), Some("dummy" | "ifb" | "nlmon"));
    !link.loopback && !nowhere && !link.is_vrf()
}

/// Returns the neighbours that are next hops of default routes, or of routes to at least one half
/// of the addresses, with their links. A guest may be a router too, but hardly a default one.
fn routers(snapshot: &Snapshot) -> BTreeSet<(u32, IpAddr)> {
    (snapshot.routes.iter())
        .filter(|route| route.destination.prefix_len() <= 1)
        .filter_map(|route| Some((route.ifindex, route.gateway?)))
        .collect()
}

/// Reports whether the hosts on a link are guests of this node: a bridge of which no port leads out
/// of the machine, or a point-to-point link to one guest each, reached by host routes alone. A link
/// in one of the node's own networks has that network's route.
pub(super) fn leads_to_guests(snapshot: &Snapshot, link: &Link, networks: &BTreeSet<u32>) -> bool {
    if link.kind.as_deref() == Some("bridge") {
        let mut ports = (snapshot.links.iter()).filter(|port| port.master == Some(link.ifindex));
        return ports.all(is_wire);
    }
    is_wire(link) && !networks.contains(&link.ifindex)
}

/// Returns the links that have more than single hosts on them, according to the routes.
pub(super) fn networks(snapshot: &Snapshot) -> BTreeSet<u32> {
    (snapshot.routes.iter())
        .filter(|route| route.gateway.is_none() && !route.is_to_neighbour())
        .filter(|route| !is_link_local(&route.destination))
        .map(|route| route.ifindex)
        .collect()
}

/// Reports whether a link may end in a container or a virtual machine.
fn is_wire(link: &Link) -> bool {
    match link.kind.as_deref() {
        Some("veth" | "netkit") => true,
        Some("tun") => link.link_layer == LinkLayer::Ethernet,
        _ => false,
    }
}

fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.network().segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Filter of irrelevant route notifications, see [`super::Monitor::set_route_filter`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteFilter {
    /// Links that masquerade already.
    pub(super) uplinks: BTreeSet<u32>,
    /// Links to guests: another host route changes nothing.
    pub(super) guests: BTreeSet<u32>,
}

impl RouteFilter {
    /// Creates the filter after these uplinks were selected from this snapshot.
    pub(crate) fn after(snapshot: &Snapshot, uplinks: impl Iterator<Item = u32>) -> Self {
        let uplinks: BTreeSet<u32> = uplinks.collect();
        let networks = networks(snapshot);
        let guests = (snapshot.links.iter())
            .filter(|link| is_wire(link) && !networks.contains(&link.ifindex))
            .map(|link| link.ifindex)
            .filter(|ifindex| !uplinks.contains(ifindex))
            .collect();
        Self { uplinks, guests }
    }
}
