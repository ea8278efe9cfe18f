//! The packets that may be translated, and those that may begin a mapping.

use crate::env::Env;
use crate::layout::{DropReason, Family, SETTING_IPV6};
use crate::packet::{ACK, FIN, L4, Packet, RST, SYN};

/// The permission of a packet without a mapping.
pub(super) enum Opening {
    /// Begin a new mapping.
    New,
    /// Begin a mapping for a connection that already existed.
    Pickup,
    /// Continue a known flow only; otherwise drop for this reason.
    Denied(DropReason),
}

/// Reports whether the packet only crosses the uplink's link and comes from a guest on that link (a
/// macvlan, a virtual machine on a bridge): the node does not translate it. A hit is counted.
#[inline(always)]
pub(super) fn is_bridged<E: Env>(env: &E, pkt: &Packet) -> bool {
    !env.is_local(&pkt.tuple.src) && others_are_bridged(env, pkt)
}

/// Reports what [`is_bridged`] does, for a packet whose source is not an address of the node.
#[inline(always)]
pub(super) fn others_are_bridged<E: Env>(env: &E, pkt: &Packet) -> bool {
    let bridged = env.is_bridged(&pkt.tuple, pkt.family);
    if bridged {
        env.count_packet(|c| &mut c.egress_untouched);
    }
    bridged
}

/// Reports whether the packet never gets a mapping: multicast, broadcast, unspecified or link-local
/// source, neighbour discovery, and IPv6 while it is disabled.
#[inline(always)]
pub(super) fn out_of_scope<E: Env>(env: &E, pkt: &Packet) -> bool {
    match pkt.family {
        Family::V4 => {}
        Family::V6 => {
            if env.settings().flags & SETTING_IPV6 == 0 || pkt.tuple.src.is_v6_link_local() {
                return true;
            }
        }
    }
    matches!(pkt.l4, L4::Discovery)
        || pkt.tuple.src.is_special(pkt.family)
        || pkt.tuple.dst.is_special(pkt.family)
}

/// Returns the permission of a packet without a known mapping or inbound flow.
#[inline(always)]
pub(super) const fn may_open(l4: &L4) -> Opening {
    match l4 {
        L4::Udp | L4::Query | L4::AddressOnly => Opening::New,
        L4::QueryReply | L4::Error => Opening::Denied(DropReason::IcmpNoFlow),
        L4::LaterFragment | L4::Discovery => Opening::Denied(DropReason::Malformed),
        L4::Untranslatable(reason) => Opening::Denied(*reason),
        L4::Tcp(segment) => match segment.flags & (SYN | ACK | RST | FIN) {
            SYN => Opening::New,
            ACK => Opening::Pickup,
            _ => Opening::Denied(DropReason::TcpNoFlow),
        },
    }
}

/// Reports whether an arriving packet can be part of an inbound flow. A SYN-ACK or RST can only be
/// a reply.
#[inline(always)]
pub(super) const fn begins_outside(l4: &L4) -> bool {
    match l4 {
        L4::Udp | L4::Query | L4::AddressOnly => true,
        L4::Tcp(segment) => segment.flags & RST == 0 && segment.flags & (SYN | ACK) != SYN | ACK,
        L4::QueryReply | L4::Error | L4::LaterFragment | L4::Discovery | L4::Untranslatable(_) => {
            false
        }
    }
}
