//! Hairpin (RFC 4787 REQ-9, RFC 5382 REQ-8): a pod sends to another pod's endpoint on the wire.
//!
//! The packet is treated as if it left by the uplink and came back: its source is translated like
//! that of any packet that leaves, and it reaches the other pod only if that pod has sent to this
//! source (requirement 2.12, docs/adr/0013). Echo requests and fragments to the node's address
//! belong to the node.

use super::Work;
use super::admit::refusal;
use super::error::translate;
use super::follow::{apply, continue_egress, continue_ingress};
use super::open::open;
use super::origin::{is_forged_by, key_of, may_report};
use super::{Opening, opening, out_of_scope};
use crate::packet::{Endpoint, L4, Packet};
use crate::tables::Tables;
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};

/// Translates the source of a packet from a pod to its endpoint on the wire: the first half. `Pass`
/// leaves the packet to the node's stack.
#[inline(always)]
pub fn leave<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let pkt = &mut work.pkt;
    // Cheapest check first: nearly all packets from pods are not for the node.
    if !tables.is_local(&pkt.tuple.dst)
        || pkt.is_fragment != 0
        || out_of_scope(tables, pkt)
        || tables.is_local(&pkt.tuple.src)
    {
        return Verdict::Pass;
    }
    match pkt.l4 {
        L4::Error => match tables.snat(&work.inner.tuple.reversed()) {
            Some(slot) if may_report(tables, pkt, &work.inner.tuple.dst) => {
                translate(tables, work, slot);
                Verdict::RewriteError
            }
            _ => Verdict::Pass,
        },
        L4::Tcp(_) | L4::Udp => match tables.snat(&pkt.tuple) {
            Some(slot) => {
                let known = continue_egress(tables, &pkt.tuple, &pkt.l4, pkt.family, slot);
                apply(pkt, known)
            }
            None if begins(tables, pkt) => {
                work.source = key_of(tables, &pkt.tuple.src);
                if is_forged_by(tables, work.source, &pkt.tuple.src, pkt.family) {
                    return Verdict::Drop(DropReason::ForgedSource);
                }
                // The source that the node itself would use towards this address.
                pkt.new.addr = pkt.tuple.dst;
                match refusal(tables, work) {
                    Some(reason) => Verdict::Drop(reason),
                    None => open(tables, work, 0),
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
fn begins<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    has_sockets(pkt.tuple.proto)
        && matches!(opening(&pkt.l4), Opening::New)
        && is_in_use(tables, &pkt.tuple)
        && !tables.socket_receives(&pkt.tuple)
}

/// Translates the destination to the pod behind it: the second half. Must be called after the
/// source is rewritten; updates the tuple.
#[inline(never)]
pub fn enter<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let Work { pkt, inner, .. } = work;
    let new = pkt.new;
    pkt.tuple.src = new.addr;
    if let L4::Error = pkt.l4 {
        inner.tuple.dst = new.addr;
        inner.tuple.dst_id = id(&new);
        return match tables.rev_snat(&inner.tuple.reversed()) {
            Some(slot) if !slot.is_host() => {
                translate(tables, work, slot);
                Verdict::RewriteError
            }
            _ => Verdict::Drop(DropReason::IcmpNoFlow),
        };
    }
    pkt.tuple.src_id = id(&new);
    match tables.rev_snat(&pkt.tuple) {
        Some(slot) if !slot.is_host() => {
            let known = continue_ingress(tables, &pkt.tuple, &pkt.l4, slot);
            apply(pkt, known)
        }
        _ => Verdict::Drop(DropReason::Unsolicited),
    }
}

/// Records that a pod has this endpoint on the wire by one of its live mappings.
#[inline(never)]
pub(super) fn remember<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    if !has_sockets(wire.proto) || is_in_use(tables, wire) {
        return false;
    }
    let far = Endpoint {
        addr: wire.src,
        id: wire.src_id.into(),
    };
    tables.set_wire_endpoint(&key(wire), &far);
    true
}

/// Reports whether the destination of `wire` is the external endpoint of a live mapping.
#[inline(always)]
fn is_in_use<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    match tables.wire_endpoint(&key(wire)) {
        Some(far) => {
            let known = Tuple::new(far.addr, wire.dst, id(&far), wire.dst_id, wire.proto);
            tables.rev_snat(&known).is_some_and(|slot| !slot.is_host())
        }
        None => false,
    }
}

/// Returns the key of the node's endpoint in a wire tuple.
#[inline(always)]
#[must_use]
pub const fn key(wire: &Tuple) -> Tuple {
    Tuple::new(wire.dst, wire.dst, 0, wire.dst_id, wire.proto)
}

/// Reports whether the node's sockets of this protocol can be looked up.
#[inline(always)]
#[must_use]
pub const fn has_sockets(protocol: u32) -> bool {
    matches!(protocol, proto::TCP | proto::UDP)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an id has 16 bits")]
const fn id(endpoint: &Endpoint) -> u16 {
    endpoint.id as u16
}
