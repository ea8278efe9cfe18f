//! Source addresses that packets may have on an uplink, from which the programs choose by the route
//! of each packet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netdp_common::layout::SOURCE_ANY_IP;

use super::address::{addrs_of, is_usable_v6, own};
use super::model::{AddressScope, Link, LinkAddr, Snapshot};
use super::selection::Selection;
use super::stacked::{lower_devices, upper_devices};
use super::uplink::Uplink;

/// Maximum number of addresses of a link that are considered: for the rest the uplink's address is
/// used.
const MOST: usize = 1024;

/// Key of a program's query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceQuery {
    /// Index of the outgoing interface of the packet's route; [`SOURCE_ANY_IP`] for a query that is
    /// not about a source.
    pub link: u32,
    /// True if `net` is the source address selected by the kernel, false if it contains the next
    /// hop.
    pub named: bool,
    /// Address or network of the query.
    pub net: IpNet,
}

/// Result of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceChoice {
    /// Source address for the packet.
    pub addr: IpAddr,
    /// Index of the uplink at whose hooks it applies.
    pub via: u32,
}

/// Source addresses, keyed by query.
pub(crate) type Sources = BTreeMap<SourceQuery, SourceChoice>;

/// Returns the networks that the node receives without having the addresses, and the sources of
/// uplinks and of the VLAN devices, bridges and bonds whose packets they translate.
pub(super) fn sources(snapshot: &Snapshot, selection: &Selection, uplinks: &[Uplink]) -> Sources {
    let mut found = Sources::new();
    for &net in &snapshot.any_ip {
        let link = SOURCE_ANY_IP;
        let addr = net.addr();
        let named = false;
        found.insert(
            SourceQuery { link, named, net },
            SourceChoice { addr, via: link },
        );
    }
    for uplink in uplinks {
        let Some(link) = snapshot.link(uplink.ifindex) else {
            continue;
        };
        let via = uplink.ifindex;
        add(&mut found, snapshot, selection, link, via);
        // Other devices whose packets pass its hooks and that have addresses of their own.
        for upper in upper_devices(snapshot, via) {
            let is_uplink = uplinks.iter().any(|other| other.ifindex == upper.ifindex);
            let tagged = lower_devices(snapshot, upper)
                .iter()
                .any(|(lower, tagged)| lower.ifindex == via && *tagged);
            let shares = upper.kind.as_deref() == Some("vlan") || has_ports(snapshot, upper);
            if !is_uplink && shares && !(tagged && uplink.untagged) {
                add(&mut found, snapshot, selection, upper, via);
                add_for_any(&mut found, snapshot, selection, upper, via);
            }
        }
    }
    found
}

/// Marks the uplinks by which packets leave with one and the same source, whatever their route: there
/// the programs need not look up routes.
pub(super) fn mark_only_sources(uplinks: &mut [Uplink], sources: &Sources) {
    for uplink in uplinks {
        let via = uplink.ifindex;
        let others = |own: IpAddr| {
            let mut given = sources.values().filter(|given| given.via == via);
            given.any(|it| it.addr.is_ipv4() == own.is_ipv4() && it.addr != own)
        };
        uplink.only_v4 = uplink.v4.is_some_and(|own| !others(own.into()));
        uplink.only_v6 = uplink.v6.is_some_and(|own| !others(own.into()));
    }
}

/// Reports whether a link is a bridge, a bond or the like.
fn has_ports(snapshot: &Snapshot, link: &Link) -> bool {
    (snapshot.links.iter()).any(|port| port.master == Some(link.ifindex))
}

fn add(found: &mut Sources, snapshot: &Snapshot, selection: &Selection, link: &Link, via: u32) {
    let addrs: Vec<&LinkAddr> = addrs_of(snapshot, link)
        .filter(|addr| addr.scope == AddressScope::Universe)
        .take(MOST)
        .collect();
    let mut give = |named: bool, net: IpNet, addr: IpAddr| {
        let link = link.ifindex;
        found.insert(SourceQuery { link, named, net }, SourceChoice { addr, via });
    };
    let is_node = |addr: &LinkAddr| selection.node_addrs.contains(&addr.addr);
    // Of one network the node's known address, else the first one, as inet_select_addr
    // (net/ipv4/devinet.c) chooses.
    let v4 = addrs
        .iter()
        .filter(|addr| addr.addr.is_ipv4() && (!addr.flags.secondary || is_node(addr)));
    let mut networks: BTreeMap<IpNet, &LinkAddr> = BTreeMap::new();
    for addr in v4 {
        let Some(net) = network(addr) else {
            continue;
        };
        let first = networks.entry(net).or_insert(addr);
        if is_node(addr) && !is_node(first) {
            *first = addr;
        }
    }
    for (net, addr) in networks {
        give(false, net, addr.addr);
    }
    if selection.enable_ipv6 {
        let v6: Vec<&LinkAddr> = addrs
            .into_iter()
            .filter(|addr| is_usable_v6(addr))
            .collect();
        for addr in &v6 {
            let peers = v6.iter().filter(|peer| are_peers(addr, peer));
            let best = peers.min_by_key(|peer| {
                let flags = peer.flags;
                (
                    flags.deprecated,
                    !is_node(peer),
                    flags.temporary,
                    peer.addr != addr.addr,
                )
            });
            let best = best.unwrap_or(addr).addr;
            give(true, addr.addr.into(), best);
            if let Some(net) = network(addr) {
                give(false, net, best);
            }
        }
    }
    for route in snapshot
        .routes
        .iter()
        .filter(|route| route.ifindex == link.ifindex)
    {
        if let Some(source) = route.prefsrc
            && (source.is_ipv4() || selection.enable_ipv6)
        {
            give(true, source.into(), source);
        }
    }
}

/// Adds the source of packets that leave by a link above an uplink towards a router that is on none
/// of its networks: a link-local one, or one of a single host. The entry also indicates to the
/// programs that the link is stacked on the uplink.
fn add_for_any(
    found: &mut Sources,
    snapshot: &Snapshot,
    selection: &Selection,
    link: &Link,
    via: u32,
) {
    let [v4, v6] = own(snapshot, link, &selection.node_addrs);
    let v6 = v6.filter(|_| selection.enable_ipv6);
    let any = [
        (IpNet::from(Ipv4Net::default()), v4),
        // IPv4 may have an IPv6 router.
        (IpNet::from(Ipv6Net::default()), v6.or(v4)),
    ];
    let link = link.ifindex;
    let named = false;
    for (net, addr) in any {
        if let Some(addr) = addr {
            found.insert(SourceQuery { link, named, net }, SourceChoice { addr, via });
        }
    }
}

/// Reports whether two IPv6 addresses of a link are equivalent for every destination: of one kind,
/// and on one network unless one of them has none.
fn are_peers(a: &LinkAddr, b: &LinkAddr) -> bool {
    let is_local = |addr: &LinkAddr| matches!(addr.addr, IpAddr::V6(ip) if ip.is_unique_local());
    let on_one = match (network(a), network(b)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    is_local(a) == is_local(b) && on_one
}

/// Returns the network of an address; `None` for a single address.
fn network(addr: &LinkAddr) -> Option<IpNet> {
    let net = IpNet::new(addr.prefix_addr, addr.prefix_len).ok()?.trunc();
    let alone = net.prefix_len() == net.max_prefix_len() && addr.prefix_addr == addr.addr;
    (!alone).then_some(net)
}
