//! Source validation: a packet that another pod sends with a pod's address changes nothing,
//! provided that the routing table distinguishes the two.

use crate::abi::SETTING_ANY_SOURCE;
use crate::addr::{Addr, Family};
use crate::packet::Packet;
use crate::share::{Key, Role};
use crate::tables::{Origin, Tables};

/// Reports whether the packet, which has the source `src`, arrives by an interface behind which
/// that source is not. Looked up once for each pod, interface and epoch.
#[inline(always)]
pub(super) fn is_forged<T: Tables>(tables: &T, src: &Addr, family: Family) -> bool {
    is_forged_by(tables, key_of(tables, src), src, family)
}

/// Reports what [`is_forged`] does, given the `key` of `src`.
#[inline(never)]
pub(super) fn is_forged_by<T: Tables>(tables: &T, key: Key, src: &Addr, family: Family) -> bool {
    let ifindex = tables.ingress_ifindex();
    if ifindex == 0 || tables.settings().flags & SETTING_ANY_SOURCE != 0 {
        return false;
    }
    let Some(share) = tables.share(key.bucket()) else {
        return false;
    };
    let epoch = tables.settings().epoch;
    if share.is_behind(key.tag(), ifindex, epoch) {
        return false;
    }
    if matches!(tables.origin(src, family), Origin::Elsewhere) {
        return true;
    }
    share.set_behind(key.tag(), ifindex, epoch);
    false
}

/// Returns the key of a source. A function of its own, because hashing takes many registers.
#[inline(never)]
pub(super) fn key_of<T: Tables>(tables: &T, src: &Addr) -> Key {
    Key::of(tables.secret(), src, Role::Pod)
}

/// Reports whether an ICMP error that a pod sends may concern a packet to `pod`: if it is from that
/// pod itself, or from a router on the way to it.
#[inline(always)]
pub(super) fn may_report<T: Tables>(tables: &T, pkt: &Packet, pod: &Addr) -> bool {
    let origin = tables.origin(pod, pkt.family);
    if same(&pkt.tuple.src, pod) {
        !matches!(origin, Origin::Elsewhere)
    } else {
        // There is no router between the node and a neighbour.
        matches!(origin, Origin::Routed | Origin::Unknown)
    }
}

/// Reports whether the addresses are equal. Compares words: a comparison of arrays would call
/// memcmp.
#[inline(always)]
pub(super) const fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}
