//! Source validation: a packet that another pod sends with a pod's address changes nothing,
//! provided that the routing table distinguishes the two.

use crate::env::Env;
use crate::layout::{Addr, Family, SETTING_ANY_SOURCE};
use crate::packet::Packet;
use crate::slot::{Key, Role};

/// The location of a source by the routing table, relative to the interface by which its packet
/// came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// No contradiction: no route, a default route, a route via a gateway that leads elsewhere, or
    /// the packet came by no interface.
    Unknown,
    /// Its network is on-link at the interface by which the packet came, and a neighbour there is
    /// known by this address.
    Link,
    /// Its network is on-link at that interface, but no neighbour is known by this address.
    Unresolved,
    /// It is reached via a gateway behind the interface by which the packet came.
    Routed,
    /// Its network is on-link at another interface: the packet is forged.
    Elsewhere,
}

/// Returns the location of `addr`, relative to the interface by which the packet came.
#[inline(always)]
pub(super) fn locate<E: Env>(env: &E, addr: &Addr, family: Family) -> Origin {
    let came_by = env.ingress_ifindex();
    if came_by == 0 {
        return Origin::Unknown;
    }
    let Some(route) = env.lookup_pod_route(addr, family) else {
        return Origin::Unknown;
    };
    match (route.direct, route.ifindex == came_by) {
        (true, true) if route.resolved => Origin::Link,
        (true, true) => Origin::Unresolved,
        // An address behind an uplink is not a pod of this node.
        (true, false) if !env.is_uplink(route.ifindex) => Origin::Elsewhere,
        (false, true) => Origin::Routed,
        _ => Origin::Unknown,
    }
}

/// Reports whether the packet, which has the source `src`, arrives by an interface behind which
/// that source is not. Looked up once for each pod, interface and epoch.
#[inline(always)]
pub(super) fn is_forged<E: Env>(env: &E, src: &Addr, family: Family) -> bool {
    is_forged_by(env, key_of(env, src), src, family)
}

/// Reports what [`is_forged`] does, given the `key` of `src`.
#[inline(never)]
pub(super) fn is_forged_by<E: Env>(env: &E, key: Key, src: &Addr, family: Family) -> bool {
    let ifindex = env.ingress_ifindex();
    if ifindex == 0 || env.settings().flags & SETTING_ANY_SOURCE != 0 {
        return false;
    }
    let Some(share) = env.lookup_share(key.bucket()) else {
        return false;
    };
    let epoch = env.settings().epoch;
    if share.is_behind(key.tag(), ifindex, epoch) {
        return false;
    }
    if matches!(locate(env, src, family), Origin::Elsewhere) {
        return true;
    }
    share.set_behind(key.tag(), ifindex, epoch);
    false
}

/// Returns the key of a source. A function of its own, because hashing takes many registers.
#[inline(never)]
pub(super) fn key_of<E: Env>(env: &E, src: &Addr) -> Key {
    Key::of(env.secret(), src, Role::Pod)
}

/// Reports whether an ICMP error that a pod sends may concern a packet to `pod`: if it is from that
/// pod itself, or from a router on the way to it.
#[inline(always)]
pub(super) fn may_report<E: Env>(env: &E, pkt: &Packet, pod: &Addr) -> bool {
    let origin = locate(env, pod, pkt.family);
    if pkt.tuple.src.is_same(pod) {
        !matches!(origin, Origin::Elsewhere)
    } else {
        // There is no router between the node and a neighbour.
        matches!(origin, Origin::Routed | Origin::Unknown)
    }
}
