//! The choice of the source address of a masqueraded packet.

use crate::env::Env;
use crate::layout::{
    Addr, Family, SOURCE_NAMED, SourceKey, UPLINK_ONLY_V4, UPLINK_ONLY_V6, UPLINK_V4, UPLINK_V6,
};
use crate::packet::Packet;

/// Puts the address to masquerade with into `pkt.new`; returns `false` if there is none. The first
/// of:
///
/// - the source of the packet's route, if [`lookup_source`](crate::env::Routes::lookup_source) has
///   it: a `src` that the administrator configured, or in IPv6 one of the uplink's addresses;
/// - the interface's address on the subnet of the next hop, or, for an interface above the uplink,
///   its best address;
/// - the uplink's own, [`crate::layout::Uplink`].
///
/// The route is not looked up where all of these are the same address, as on most nodes.
#[inline(never)]
pub(super) fn choose_source<E: Env>(env: &E, pkt: &mut Packet) -> bool {
    let uplink = env.uplink();
    let only = match pkt.family {
        Family::V4 => UPLINK_ONLY_V4,
        Family::V6 => UPLINK_ONLY_V6,
    };
    if uplink.flags & only == 0 && by_route(env, pkt) {
        return true;
    }
    pkt.new.addr = match pkt.family {
        Family::V4 if uplink.flags & UPLINK_V4 != 0 => uplink.v4,
        Family::V6 if uplink.flags & UPLINK_V6 != 0 => uplink.v6,
        _ => return false,
    };
    true
}

/// Puts the address that the packet's route calls for into `pkt.new`, if there is one.
#[inline(always)]
fn by_route<E: Env>(env: &E, pkt: &mut Packet) -> bool {
    if let Some(route) = env.lookup_route(&pkt.tuple, pkt.family) {
        let named =
            route.has_source != 0 && find(env, route.link | SOURCE_NAMED, &route.source, pkt);
        if named || find(env, route.link, &route.next, pkt) {
            return true;
        }
        // An IPv6 next hop is on no IPv4 subnet.
        if matches!(pkt.family, Family::V4)
            && !route.next.is_v4()
            && find(env, route.link, &Addr::from_v4([0; 4]), pkt)
        {
            return true;
        }
    }
    false
}

/// Looks up a source that the agent has configured for this key, of the packet's family.
#[inline(always)]
fn find<E: Env>(env: &E, link: u32, addr: &Addr, pkt: &mut Packet) -> bool {
    let key = SourceKey { link, addr: *addr };
    env.lookup_source(&key, &mut pkt.new.addr)
        && pkt.new.addr.is_v4() == matches!(pkt.family, Family::V4)
        // Valid only while the node has it.
        && env.is_local(&pkt.new.addr)
}
