//! Hairpin (RFC 4787 REQ-9, RFC 5382 REQ-8): a pod sends to another pod's endpoint on the wire.
//!
//! The packet is treated as if it left by the uplink and came back: its source is translated like
//! that of any packet that leaves, and it reaches the other pod only if that pod has sent to this
//! source (requirement 2.12, docs/adr/0013). Echo requests and fragments to the node's address
//! belong to the node.

use super::admission::refusal;
use super::allocate::allocate;
use super::endpoints::{has_sockets, id, is_in_use};
use super::established::{apply, on_egress_hit, on_ingress_hit};
use super::icmp_error::translate;
use super::origin::{is_forged_by, key_of, may_report};
use super::policy;
use super::scope::{Opening, may_open, out_of_scope};
use super::scratch::Scratch;
use crate::env::Env;
use crate::layout::DropReason;
use crate::packet::{L4, Packet};
use crate::verdict::Verdict;

/// Reports whether a packet from a pod may be for an endpoint on the wire. All others are left to
/// the node's stack.
#[inline(always)]
pub fn may_hairpin<E: Env>(env: &E, pkt: &Packet) -> bool {
    // Cheapest check first: nearly all packets from pods are not for the node.
    env.is_local(&pkt.tuple.dst)
        && pkt.is_fragment == 0
        && !out_of_scope(env, pkt)
        && !env.is_local(&pkt.tuple.src)
}

/// Translates the source of a packet, for which [`may_hairpin`] holds, to its endpoint on the wire:
/// the first half. `Pass` leaves the packet to the node's stack.
#[inline(always)]
pub fn translate_source<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let pkt = &mut scratch.pkt;
    match pkt.l4 {
        L4::Error => match env.lookup_snat(&scratch.inner.tuple.reversed()) {
            Some(slot) if may_report(env, pkt, &scratch.inner.tuple.dst) => {
                translate(env, scratch, slot);
                Verdict::RewriteError
            }
            _ => Verdict::Pass,
        },
        L4::Tcp(_) | L4::Udp => match env.lookup_snat(&pkt.tuple) {
            Some(slot) => {
                let hit = on_egress_hit(env, &pkt.tuple, &pkt.l4, pkt.family, slot);
                apply(pkt, hit)
            }
            None if may_begin(env, pkt) => {
                scratch.source = key_of(env, &pkt.tuple.src);
                if is_forged_by(env, scratch.source, &pkt.tuple.src, pkt.family) {
                    return Verdict::Drop(DropReason::ForgedSource);
                }
                // The source that the node itself would use towards this address.
                pkt.new.addr = pkt.tuple.dst;
                scratch.claim.rule = policy::NO_RULE;
                match refusal(env, scratch) {
                    Some(reason) => Verdict::Drop(reason),
                    None => allocate(env, scratch, 0),
                }
            }
            None => Verdict::Pass,
        },
        _ => Verdict::Pass,
    }
}

/// Reports whether a packet without a mapping gets one: if a pod, and no socket of the node, is
/// behind its destination endpoint.
#[inline(never)]
fn may_begin<E: Env>(env: &E, pkt: &Packet) -> bool {
    has_sockets(pkt.tuple.proto)
        && matches!(may_open(&pkt.l4), Opening::New)
        && is_in_use(env, &pkt.tuple)
        && !env.has_socket(&pkt.tuple)
}

/// Translates the destination to the pod behind it: the second half. Must be called after the
/// source is rewritten; updates the tuple.
#[inline(never)]
pub fn translate_destination<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let Scratch { pkt, inner, .. } = scratch;
    let new = pkt.new;
    pkt.tuple.src = new.addr;
    if let L4::Error = pkt.l4 {
        inner.tuple.dst = new.addr;
        inner.tuple.dst_id = id(&new);
        return match env.lookup_rev_snat(&inner.tuple.reversed()) {
            Some(slot) if !slot.is_host() => {
                translate(env, scratch, slot);
                Verdict::RewriteError
            }
            _ => Verdict::Drop(DropReason::IcmpNoFlow),
        };
    }
    pkt.tuple.src_id = id(&new);
    match env.lookup_rev_snat(&pkt.tuple) {
        Some(slot) if !slot.is_host() => {
            let hit = on_ingress_hit(env, &pkt.tuple, &pkt.l4, slot);
            apply(pkt, hit)
        }
        _ => Verdict::Drop(DropReason::Unsolicited),
    }
}
