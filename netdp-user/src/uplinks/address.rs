//! Selection of the source addresses for traffic that leaves by a link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use netdp_common::layout::Family;

use super::masters::masters;
use super::model::{AddressScope, Link, LinkAddr, Snapshot};

/// Returns the IPv4 address for traffic by `link`'s default route, as MASQUERADE would choose it:
/// `inet_select_addr(oif, nexthop, RT_SCOPE_UNIVERSE)` in net/ipv4/devinet.c of Linux 6.12. It
/// skips addresses of narrower scope, and secondary ones except those in `known`, prefers one on
/// the next hop's subnet, and otherwise takes the first; of several that are equal in this, one in
/// `known`, the addresses that the node is known by. The `src` of a route plays no part in it.
///
/// If the link has no such address, the address of its bridge or bond is used: packets routed by
/// that leave here. After that the kernel tries the link's VRF device, or the loopback device if it
/// is in none, and so does this function: routers run links without addresses, with the node's own
/// on loopback. The kernel then tries every other interface; this function does not, because it
/// might find a pod bridge's address, or one of another network, to which no reply comes back.
/// `None` means that the packet must be dropped.
pub(super) fn source_v4(snapshot: &Snapshot, link: &Link, known: &[IpAddr]) -> Option<Ipv4Addr> {
    let of = |link| primary_v4(snapshot, link, gateway(snapshot, link, Family::V4), known);
    of(link)
        .or_else(|| masters(snapshot, link).find_map(of))
        .or_else(|| primary_v4(snapshot, fallback_device(snapshot, link)?, None, known))
}

fn primary_v4(
    snapshot: &Snapshot,
    link: &Link,
    nexthop: Option<IpAddr>,
    known: &[IpAddr],
) -> Option<Ipv4Addr> {
    let on_subnet = |addr: &LinkAddr| match (addr.prefix_addr, nexthop) {
        (IpAddr::V4(prefix), Some(IpAddr::V4(nexthop))) => {
            Ipv4Net::new(prefix, addr.prefix_len).is_ok_and(|subnet| subnet.contains(&nexthop))
        }
        _ => true,
    };
    addrs_of(snapshot, link)
        .filter_map(|addr| match addr.addr {
            IpAddr::V4(ip) => Some((ip, addr)),
            IpAddr::V6(_) => None,
        })
        // One that the node is known by counts whatever its order: an address that was gone while
        // another one of its subnet took its place comes back as a secondary one
        // (promote_secondaries).
        .filter(|(_, addr)| !addr.flags.secondary || known.contains(&addr.addr))
        .filter(|(_, addr)| addr.scope == AddressScope::Universe)
        // The first of the best ones.
        .min_by_key(|(_, addr)| (!on_subnet(addr), !known.contains(&addr.addr)))
        .map(|(ip, _)| ip)
}

/// Returns the IPv6 address for traffic by `link`'s default route: the order of RFC 6724 for a
/// global destination, as implemented by `ipv6_dev_get_saddr` in net/ipv6/addrconf.c of Linux 6.12,
/// applied to the addresses of this link alone. Never one that is not of global scope or not yet
/// known to be unique; then, each only if the earlier ones do not decide: preferred before
/// deprecated, global before unique-local, one in `known`, public before temporary, on the
/// gateway's /64 before elsewhere, first listed.
///
/// A link without any borrows from its VRF or loopback device, as in [`source_v4`]. `None` means
/// that the packet must be dropped.
pub(super) fn source_v6(snapshot: &Snapshot, link: &Link, known: &[IpAddr]) -> Option<Ipv6Addr> {
    let of = |link| best_v6(snapshot, link, gateway(snapshot, link, Family::V6), known);
    of(link)
        .or_else(|| masters(snapshot, link).find_map(of))
        .or_else(|| best_v6(snapshot, fallback_device(snapshot, link)?, None, known))
}

fn best_v6(
    snapshot: &Snapshot,
    link: &Link,
    gateway: Option<IpAddr>,
    known: &[IpAddr],
) -> Option<Ipv6Addr> {
    let on_gateway_subnet = |ip: &Ipv6Addr| match gateway {
        Some(IpAddr::V6(gateway)) => ip.segments()[..4] == gateway.segments()[..4],
        _ => false,
    };
    addrs_of(snapshot, link)
        .filter_map(|addr| match addr.addr {
            IpAddr::V6(ip) => Some((ip, addr)),
            IpAddr::V4(_) => None,
        })
        .filter(|(_, addr)| is_usable_v6(addr))
        .min_by_key(|(ip, addr)| {
            (
                addr.flags.deprecated,
                ip.is_unique_local(),
                !known.contains(&addr.addr),
                addr.flags.temporary,
                !on_gateway_subnet(ip),
            )
        })
        .map(|(ip, _)| ip)
}

/// Returns a link's own addresses, without those it could borrow.
pub(super) fn own(snapshot: &Snapshot, link: &Link, known: &[IpAddr]) -> [Option<IpAddr>; 2] {
    let v4 = primary_v4(snapshot, link, gateway(snapshot, link, Family::V4), known);
    let v6 = best_v6(snapshot, link, gateway(snapshot, link, Family::V6), known);
    [v4.map(IpAddr::from), v6.map(IpAddr::from)]
}

/// Returns the router of the link's best default route.
fn gateway(snapshot: &Snapshot, link: &Link, family: Family) -> Option<IpAddr> {
    snapshot
        .default_routes
        .iter()
        .filter(|route| route.family == family && route.ifindex == link.ifindex)
        .min_by_key(|route| route.metric)?
        .gateway
}

/// Returns the device whose addresses are used for a link that has none.
fn fallback_device<'a>(snapshot: &'a Snapshot, link: &Link) -> Option<&'a Link> {
    snapshot
        .vrf(link)
        .or_else(|| snapshot.links.iter().find(|link| link.loopback))
}

/// Reports whether an address is IPv6, of global scope and known to be unique.
pub(super) fn is_usable_v6(addr: &LinkAddr) -> bool {
    addr.addr.is_ipv6()
        && addr.scope == AddressScope::Universe
        && !addr.flags.tentative
        && !addr.flags.dadfailed
}

/// Reports whether a link has addresses that are reachable from elsewhere.
pub(super) fn carries_addresses(snapshot: &Snapshot, link: &Link) -> bool {
    addrs_of(snapshot, link).any(|addr| addr.scope == AddressScope::Universe)
}

pub(super) fn addrs_of<'a>(
    snapshot: &'a Snapshot,
    link: &Link,
) -> impl Iterator<Item = &'a LinkAddr> {
    let ifindex = link.ifindex;
    snapshot
        .addrs
        .iter()
        .filter(move |addr| addr.ifindex == ifindex)
}
