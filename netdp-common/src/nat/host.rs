//! The node's own traffic.

use super::{Work, evict};
use crate::abi::{NodeFlow, origin_tag};
use crate::addr::Family;
use crate::conntrack::{RST, age, live_seconds, ticks32};
use crate::packet::{L4, Packet};
use crate::share::Key;
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
            let found = found_by_lookup && tables.sent_by_socket();
            if !bypass && !found {
                note(tables, pkt, &wire);
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
        _ => pkt.l4.is_bare_syn(),
    };
    if changes_port {
        work.pkt.new.addr = work.pkt.tuple.src;
        return true;
    }
    let lives = matches!(pkt.l4, L4::Tcp(_)) && slot.has_sent(wire.proto);
    if !lives && !may_be_forged(tables, pkt) {
        let original = wire.answers(slot.addr(), slot.id());
        evict::end(tables, &original, wire);
        note(tables, pkt, wire);
    }
    false
}

/// Whether a packet with an address of the node for source may be a pod's. Those of IPv4
/// are refused by the kernel (`fib_validate_source`, net/ipv4/fib_frontend.c, Linux 6.12).
#[inline(always)]
fn may_be_forged<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    matches!(pkt.family, Family::V6) && tables.ingress_ifindex() != 0
}

/// Seconds for which a flow is remembered that may be forged.
const DOUBTFUL_SECONDS: u64 = 300;

/// Remembers a flow that no socket is found for, unless no pod gets its port anyway. A RST
/// begins none: so the node refuses what it does not know.
#[inline(never)]
fn note<T: Tables>(tables: &T, pkt: &Packet, wire: &Tuple) -> bool {
    if matches!(pkt.l4, L4::Tcp(segment) if segment.flags & RST != 0) {
        return false;
    }
    let has_ports = matches!(wire.proto, proto::TCP | proto::UDP);
    if has_ports && tables.port_reserved(wire.dst_id)
        || tables.node_answers(wire.proto, wire.dst_id)
    {
        return false;
    }
    let now = tables.now();
    let limit = if may_be_forged(tables, pkt) {
        let tag = origin_tag(tables.ingress_ifindex());
        let bucket = Key::of_interface(tables.secret(), tag.into()).bucket();
        let may = (tables.share(bucket)).is_none_or(|share| share.take_note(now));
        if !may {
            return false;
        }
        ticks32(DOUBTFUL_SECONDS)
    } else {
        ticks32(live_seconds(wire.proto, false))
    };
    let known = tables.node_flow(wire);
    if known.is_none_or(|flow| flow.last_seen != now) {
        let flow = NodeFlow {
            last_seen: now,
            limit,
        };
        tables.set_node_flow(wire, &flow);
    }
    true
}

/// Whether what comes in by this tuple is known to be the node's.
#[inline(always)]
pub(super) fn is_nodes<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    (tables.node_flow(wire)).is_some_and(|flow| age(tables.now(), flow.last_seen) < flow.limit)
}
