//! The choice of the source address of a masqueraded packet.

use crate::abi::{SOURCE_NAMED, SourceKey, UPLINK_V4, UPLINK_V6};
use crate::addr::{Addr, Family};
use crate::packet::Packet;
use crate::tables::Tables;

/// The route of a packet, as far as it affects the source address. All-zero bytes are a valid
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// The index of the outgoing interface: the uplink, or a VLAN device above it.
    pub link: u32,
    /// 1 if the kernel was queried for a source and returned one.
    pub has_source: u32,
    /// The source that the kernel returned: the route's own, or one of the interface's addresses,
    /// or one of another interface if that has none.
    pub source: Addr,
    /// The next hop: the router, or the destination itself if it is on-link.
    pub next: Addr,
}

/// Puts the address to masquerade with into `pkt.new`; returns `false` if there is none. The first
/// of:
///
/// - the source of the packet's route, if that is one of [`Tables::source`]'s: a `src` that the
///   administrator configured, or in IPv6 one of the uplink's addresses;
/// - the interface's address on the subnet of the next hop, or, for an interface above the uplink,
///   its best address;
/// - the uplink's own, [`crate::abi::Uplink`].
#[inline(never)]
pub(super) fn choose_source<T: Tables>(tables: &T, pkt: &mut Packet) -> bool {
    if let Some(way) = tables.way(&pkt.tuple, pkt.family) {
        let named = way.has_source != 0 && find(tables, way.link | SOURCE_NAMED, &way.source, pkt);
        if named || find(tables, way.link, &way.next, pkt) {
            return true;
        }
        // An IPv6 next hop is on no IPv4 subnet.
        if matches!(pkt.family, Family::V4)
            && !way.next.is_v4()
            && find(tables, way.link, &Addr::from_v4([0; 4]), pkt)
        {
            return true;
        }
    }
    let uplink = tables.uplink();
    pkt.new.addr = match pkt.family {
        Family::V4 if uplink.flags & UPLINK_V4 != 0 => uplink.v4,
        Family::V6 if uplink.flags & UPLINK_V6 != 0 => uplink.v6,
        _ => return false,
    };
    true
}

/// Looks up a source that the agent has configured for this key, of the packet's family.
#[inline(always)]
fn find<T: Tables>(tables: &T, link: u32, addr: &Addr, pkt: &mut Packet) -> bool {
    let key = SourceKey { link, addr: *addr };
    tables.source(&key, &mut pkt.new.addr)
        && pkt.new.addr.is_v4() == matches!(pkt.family, Family::V4)
        // Valid only while the node has it.
        && tables.is_local(&pkt.new.addr)
}
