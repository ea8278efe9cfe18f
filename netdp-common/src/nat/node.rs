//! Traffic of the node itself: its records, and collisions with pods' mappings.

use super::evict;
use super::reach::{self, Whose};
use super::scratch::Scratch;
use super::traffic;
use crate::env::Env;
use crate::flow::{age, is_stamp_fresh, live_seconds, stamp, ticks32};
use crate::layout::{Action, ENDED_FOR_NODE, Family, Half, NodeFlow, Tuple, origin_tag, proto};
use crate::packet::{L4, Packet, RST};
use crate::slot::{Key, Slot};

/// Reports whether a packet of the node itself needs a mapping: if a pod's mapping has its wire
/// tuple, even towards a bypassed destination, because that mapping may be older than the policy.
/// All other packets are left unmodified.
#[inline(never)]
pub(super) fn needs_mapping<E: Env>(env: &E, scratch: &mut Scratch, action: Action) -> bool {
    let pkt = &scratch.pkt;
    env.count_packet(|c| &mut c.egress_host);
    if matches!(
        pkt.l4,
        L4::QueryReply | L4::Error | L4::LaterFragment | L4::Untranslatable(_)
    ) {
        return false;
    }
    let wire = pkt.tuple.reversed();
    match env.lookup_rev_snat(&wire) {
        Some(slot) if slot.passes_egress() => {
            traffic::begin_counting(env, &wire, Half::Reply, slot);
            traffic::record(env, &wire, Half::Reply, slot, &pkt.l4, env.now());
            false
        }
        Some(slot) => collides_with_pod(env, scratch, &wire, slot),
        // Sockets are looked up when a port is allocated. Flows that such a lookup does not find
        // (pings, flows that netfilter translated to a node address) are recorded here, in a table
        // that takes no room from pods.
        None => {
            let found_by_lookup = matches!(pkt.tuple.proto, proto::TCP | proto::UDP);
            let found = found_by_lookup && env.is_sent_by_socket();
            if !matches!(action, Action::Bypass) {
                if !found {
                    record_flow(env, pkt, &wire);
                }
            } else if reach::is_begin(&pkt.l4) {
                reach::count_begin(env, &pkt.tuple.dst, Whose::Nodes);
            }
            false
        }
    }
}

/// Reports whether the node's packet gets another port because a pod's mapping has its own. A
/// packet that cannot change its port, or is a reply, belongs to the node: the pod's mapping ends
/// then, unless it carries a live connection, or the packet may be a pod's with a forged source.
#[inline(always)]
fn collides_with_pod<E: Env>(env: &E, scratch: &mut Scratch, wire: &Tuple, slot: Slot) -> bool {
    let pkt = &scratch.pkt;
    let changes_port = match pkt.l4 {
        L4::Udp | L4::Query => true,
        _ => pkt.l4.is_bare_syn(),
    };
    if changes_port {
        scratch.pkt.new.addr = scratch.pkt.tuple.src;
        return true;
    }
    let lives = matches!(pkt.l4, L4::Tcp(_)) && slot.has_replied(wire.proto);
    if !lives && !may_be_forged(env, pkt) {
        let original = wire.answers(slot.addr(), slot.id());
        evict::end(env, &original, wire, ENDED_FOR_NODE);
        record_flow(env, pkt, wire);
    }
    false
}

/// Reports whether a packet whose source is an address of the node may come from a pod. The kernel
/// rejects those of IPv4 (`fib_validate_source`, net/ipv4/fib_frontend.c, Linux 6.12).
#[inline(always)]
fn may_be_forged<E: Env>(env: &E, pkt: &Packet) -> bool {
    matches!(pkt.family, Family::V6) && env.ingress_ifindex() != 0
}

/// Seconds for which a flow that may be forged is recorded.
const DOUBTFUL_SECONDS: u64 = 300;

/// Records a flow for which no socket is found, unless its port is never given to pods anyway. A
/// RST begins no flow: the node sends it to reject unknown segments.
#[inline(never)]
fn record_flow<E: Env>(env: &E, pkt: &Packet, wire: &Tuple) -> bool {
    if matches!(pkt.l4, L4::Tcp(segment) if segment.flags & RST != 0) {
        return false;
    }
    let has_ports = matches!(wire.proto, proto::TCP | proto::UDP);
    if has_ports && env.is_port_reserved(wire.dst_id) || env.is_node_port(wire.proto, wire.dst_id) {
        return false;
    }
    let now = env.now();
    let limit = if may_be_forged(env, pkt) {
        let tag = origin_tag(env.ingress_ifindex());
        let bucket = Key::of_interface(env.secret(), tag.into()).bucket();
        let may = (env.lookup_share(bucket)).is_none_or(|share| share.take_note(now));
        if !may {
            return false;
        }
        ticks32(DOUBTFUL_SECONDS)
    } else {
        ticks32(live_seconds(wire.proto, false))
    };
    // Before the flow itself: whoever finds the flow must also find its stamp.
    let stamp = stamp(now);
    if env.node_flow_stamp(wire.dst_id) != stamp {
        env.set_node_flow_stamp(wire.dst_id, stamp);
    }
    let known = env.lookup_node_flow(wire);
    if known.is_none_or(|flow| flow.last_seen != now) {
        let flow = NodeFlow {
            last_seen: now,
            limit,
        };
        env.insert_node_flow(wire, &flow);
    }
    true
}

/// Reports whether packets that arrive with this wire tuple are known to belong to the node.
#[inline(always)]
pub(super) fn owns_flow<E: Env>(env: &E, wire: &Tuple) -> bool {
    // The table is large, and on most ports the node has no such flow.
    if !is_stamp_fresh(env.node_flow_stamp(wire.dst_id), env.now()) {
        return false;
    }
    (env.lookup_node_flow(wire)).is_some_and(|flow| age(env.now(), flow.last_seen) < flow.limit)
}

/// Reports whether the node has begun to receive packets with this wire tuple since the mapping
/// began.
#[inline(never)]
pub(super) fn receives<E: Env>(env: &E, wire: &Tuple) -> bool {
    let has_sockets = matches!(wire.proto, proto::TCP | proto::UDP);
    env.is_node_port(wire.proto, wire.dst_id) || has_sockets && env.has_socket(wire)
}
