//! The node's own traffic.

use super::{Work, evict};
use crate::abi::NodeFlow;
use crate::addr::Family;
use crate::conntrack::{ACK, FIN, RST, SYN, age, live_seconds, ticks};
use crate::packet::{L4, Packet};
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::{Tuple, proto};

/// Whether a packet of the node's own needs a mapping: a pod's holds its wire
/// tuple, towards a bypassed destination too, for the mapping may be older than
/// the policy. All others are left alone.
#[inline(never)]
pub(super) fn needs_mapping<T: Tables>(tables: &T, work: &mut Work, bypass: bool) -> bool {
    let pkt = &work.pkt;
    tables.count(|c| &mut c.egress_host);
    if matches!(
        pkt.l4,
        L4::QueryReply | L4::Error | L4::LaterFragment | L4::Untranslatable(_)
    ) {
        return false;
    }
    let wire = pkt.tuple.reversed();
    match tables.rev_snat(&wire) {
        Some(slot) if slot.may_leave() => {
            slot.record(&pkt.l4, tables.now());
            false
        }
        Some(slot) => meets_pod(tables, work, &wire, slot),
        // Sockets are looked up when a port is given away. What a lookup does
        // not find (pings, what netfilter translated to a node address) is
        // remembered here, where it takes no pod's room.
        None => {
            let found_by_lookup = matches!(pkt.tuple.proto, proto::TCP | proto::UDP);
            if !bypass && !(found_by_lookup && tables.sent_by_socket()) {
                note(tables, &wire);
            }
            false
        }
    }
}

/// Whether the node's packet gets another port because a pod's mapping has its own. What
/// has no other port, or answers to something, is the node's: there the pod's mapping ends
/// unless a connection lives by it, or the packet may be a pod's with a forged source.
#[inline(always)]
fn meets_pod<T: Tables>(tables: &T, work: &mut Work, wire: &Tuple, slot: Slot) -> bool {
    let pkt = &work.pkt;
    let changes_port = match pkt.l4 {
        L4::Udp | L4::Query => true,
        L4::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
        _ => false,
    };
    if changes_port {
        work.pkt.new.addr = work.pkt.tuple.src;
        return true;
    }
    let lives = matches!(pkt.l4, L4::Tcp(_)) && slot.packets() > 0;
    if !lives && !may_be_forged(tables, pkt) {
        let original = Tuple::new(slot.addr(), wire.src, slot.id(), wire.src_id, wire.proto);
        evict::end(tables, &original, wire);
        note(tables, wire);
    }
    false
}

/// Whether a packet with an address of the node for source may be a pod's. Those of IPv4
/// are refused by the kernel (`fib_validate_source`, net/ipv4/fib_frontend.c, Linux 6.12).
#[inline(always)]
fn may_be_forged<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    matches!(pkt.family, Family::V6) && tables.ingress_ifindex() != 0
}

/// Remembers a flow that no socket is found for.
#[inline(always)]
fn note<T: Tables>(tables: &T, wire: &Tuple) {
    let now = tables.now();
    let known = tables.node_flow(wire);
    if known.is_none_or(|flow| flow.last_seen != now) {
        let flow = NodeFlow {
            last_seen: now,
            pad: 0,
        };
        tables.set_node_flow(wire, &flow);
    }
}

/// Whether what comes in by this tuple is known to be the node's.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "days at most")]
pub(super) fn is_nodes<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    match tables.node_flow(wire) {
        Some(flow) => {
            let limit = ticks(live_seconds(wire.proto, false)) as u32;
            age(tables.now(), flow.last_seen) < limit
        }
        None => false,
    }
}
