//! The decision for one packet that leaves.
//!
//! Mapping → the node's own traffic → policy → replies of inbound flows → a new mapping.

use super::admission::refusal;
use super::allocate::allocate;
use super::established::apply;
use super::evict::Among;
use super::inbound::Continued;
use super::lookup::{Progress, lookup_mapping};
use super::node::needs_mapping;
use super::origin::{is_forged, is_forged_by, key_of};
use super::policy::{self, Decision};
use super::reach::{self, Whose};
use super::scope::{Opening, is_bridged, may_open, others_are_bridged, out_of_scope};
use super::scratch::Scratch;
use super::source::choose_source;
use super::{fragment, icmp_error, inbound, node};
use crate::direction::Direction;
use crate::env::{Env, Masqueraded};
use crate::flow::{DRAIN_SECONDS, ticks32};
use crate::layout::{
    Action, Addr, DropReason, Family, MAPPING_PICKUP, NO_LEAK_ADDRESS, NO_LEAK_PASS, NodeProtocol,
    SETTING_ANY_SOURCE, SETTING_DRAIN, SETTING_SEVERAL_UPLINKS, Tuple, proto,
};
use crate::packet::{ACK, L4, Packet, RST, SYN};
use crate::slot::Key;
use crate::verdict::Verdict;

/// Decides about a packet that leaves by an uplink.
#[inline(always)]
pub fn egress<E: Env>(env: &E, scratch: &mut Scratch, progress: Progress) -> Verdict {
    if out_of_scope(env, &scratch.pkt) {
        env.count_packet(|c| &mut c.egress_untouched);
        return Verdict::Pass;
    }
    let verdict = match scratch.pkt.l4 {
        // For packets of all other kinds, only new flows are checked for this.
        L4::Error | L4::LaterFragment | L4::Untranslatable(_) if is_bridged(env, &scratch.pkt) => {
            return Verdict::Pass;
        }
        L4::Error => icmp_error::egress(env, scratch),
        L4::LaterFragment => return later_fragment(env, scratch),
        _ => egress_flow(env, scratch, progress),
    };
    let verdict = match verdict {
        Verdict::Drop(reason) if reason.is_untranslatable() => no_leak(env, scratch, reason),
        other => other,
    };
    // A forged fragment must not decide about the datagram that it claims to belong to.
    if scratch.pkt.is_fragment != 0 && verdict != Verdict::Drop(DropReason::ForgedSource) {
        fragment::first_egress(env, scratch, verdict);
    }
    verdict
}

#[inline(always)]
fn later_fragment<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let Tuple { src, dst, .. } = &scratch.pkt.tuple;
    if is_forged(env, src, scratch.pkt.family)
        && !matches!(policy::action(env, dst), Action::Bypass)
    {
        return Verdict::Drop(DropReason::ForgedSource);
    }
    match fragment::known_egress(env, scratch) {
        Some(known) => known,
        None => fragment::early_egress(env, scratch),
    }
}

#[inline(always)]
fn egress_flow<E: Env>(env: &E, scratch: &mut Scratch, progress: Progress) -> Verdict {
    let pkt = &mut scratch.pkt;
    if progress == Progress::Pending {
        let l4 = pkt.l4;
        if let Some(hit) = lookup_mapping(env, pkt, &l4, pkt.family, Direction::Egress) {
            return apply(pkt, hit);
        }
    }
    let known = env.lookup_masqueraded(&pkt.tuple.src, &pkt.tuple.dst, env.epoch());
    let Decision { action, rule } = match known {
        Some(known) => Decision {
            action: Action::Masquerade,
            rule: known.rule,
        },
        None => policy::decide(env, &pkt.tuple.dst),
    };
    scratch.claim.rule = rule;
    scratch.source = known.map_or(Key::NONE, |known| known.key);
    let flags = if known.is_none() && is_nodes(env, &scratch.pkt) {
        if !needs_mapping(env, scratch, action) {
            return Verdict::Pass;
        }
        let Scratch { pkt, source, .. } = scratch;
        *source = key_of(env, &pkt.tuple.src);
        if env.ingress_ifindex() == 0 {
            let bucket = source.bucket();
            scratch.claim.set_bucket(bucket, 0);
            scratch.recycling.begin(bucket, Among::All, u32::MAX, 0);
        } else if let Some(reason) = refusal(env, scratch) {
            // Translated by a third party, or a forged source: it counts against one share.
            return Verdict::Drop(reason);
        }
        0
    } else {
        if matches!(action, Action::Bypass) {
            let Tuple { src, dst, .. } = &scratch.pkt.tuple;
            policy::bypass(env, src, dst, rule);
            if reach::is_begin(&scratch.pkt.l4) {
                reach::count_begin(env, &scratch.pkt.tuple.dst, Whose::Pods);
            }
            return Verdict::Pass;
        }
        if let Some(verdict) = egress_pod(env, scratch, action) {
            return verdict;
        }
        let pickup = matches!(may_open(&scratch.pkt.l4), Opening::Pickup);
        if let Some(reason) = refusal(env, scratch) {
            return Verdict::Drop(reason);
        }
        if pickup { MAPPING_PICKUP } else { 0 }
    };
    // Not called from `egress_pod`, whose stack frame would still be live: all live frames together
    // may have 512 bytes.
    allocate(env, scratch, flags)
}

/// Reports whether the node itself is the source of a packet.
#[inline(always)]
fn is_nodes<E: Env>(env: &E, pkt: &Packet) -> bool {
    env.is_local(&pkt.tuple.src) || env.ingress_ifindex() == 0 && env.is_any_ip(&pkt.tuple.src)
}

/// Decides about a pod's packet without a mapping to a destination that is masqueraded or withheld.
/// `None` if it may begin a mapping. `scratch.source` is the pod's key, or [`Key::NONE`] if nothing
/// is known of the two addresses yet.
#[inline(never)]
fn egress_pod<E: Env>(env: &E, scratch: &mut Scratch, action: Action) -> Option<Verdict> {
    let Scratch {
        pkt, source, claim, ..
    } = scratch;
    let opening = may_open(&pkt.l4);
    let begins_connection = pkt.l4.is_bare_syn();
    if !begins_connection && !matches!(pkt.l4, L4::Query | L4::Untranslatable(_)) {
        match inbound::continued(env, pkt, &pkt.tuple) {
            Continued::No => {}
            Continued::Yes => {
                env.count_packet(|c| &mut c.egress_replies);
                return Some(Verdict::Pass);
            }
            Continued::Forged if others_are_bridged(env, pkt) => return Some(Verdict::Pass),
            Continued::Forged => return Some(Verdict::Drop(DropReason::ForgedSource)),
        }
        if env.settings().flags & SETTING_SEVERAL_UPLINKS != 0
            && env.lookup_snat(&pkt.tuple.reversed()).is_some()
        {
            // A reply that came in by another uplink; this uplink leads to the pod.
            env.count_packet(|c| &mut c.egress_replies);
            return Some(Verdict::Pass);
        }
    }
    if others_are_bridged(env, pkt) {
        return Some(Verdict::Pass);
    }
    if *source == Key::NONE {
        *source = key_of(env, &pkt.tuple.src);
        if is_forged_by(env, *source, &pkt.tuple.src, pkt.family) {
            return Some(Verdict::Drop(DropReason::ForgedSource));
        }
        if matches!(action, Action::Masquerade) {
            remember(env, pkt, *source, claim.rule);
        }
    }
    if begins_connection {
        // A pod's new SYN is never a reply, regardless of stray packets that came before it
        // (requirement 1.5).
        inbound::forget(env, &pkt.tuple);
    }
    if is_bypassed_by_earlier_policy(env, pkt) {
        env.count_packet(|c| &mut c.egress_bypassed);
        return Some(Verdict::Pass);
    }
    if matches!(action, Action::Withhold) {
        return Some(Verdict::Drop(DropReason::IpsecPolicy));
    }
    if let Opening::Denied(reason) = opening {
        return Some(Verdict::Drop(reason));
    }
    if matches!(pkt.l4, L4::AddressOnly) && is_spoken(env, pkt) {
        return Some(Verdict::Drop(DropReason::NodeProtocol));
    }
    if !choose_source(env, pkt) {
        return Some(Verdict::Drop(DropReason::NoSourceAddress));
    }
    None
}

/// Caches that new flows between the addresses of the packet are masqueraded. A function of its own,
/// to keep the caller's stack frame small. Returns `true`.
#[inline(never)]
fn remember<E: Env>(env: &E, pkt: &Packet, key: Key, rule: u32) -> bool {
    // While sources are not checked, nothing is known of them.
    let is_checked = env.settings().flags & SETTING_ANY_SOURCE == 0;
    if is_checked && env.ingress_ifindex() != 0 {
        let Tuple { src, dst, .. } = &pkt.tuple;
        env.cache_masqueraded(src, dst, env.epoch(), Masqueraded { key, rule });
    }
    true
}

/// Reports whether the node itself uses the packet's protocol, which has no ports, with its
/// destination: all replies then belong to the node.
#[inline(always)]
fn is_spoken<E: Env>(env: &E, pkt: &Packet) -> bool {
    if pkt.tuple.proto == proto::SCTP {
        // SCTP has ports (`is_node_port`).
        return false;
    }
    let any = match pkt.family {
        Family::V4 => Addr::from_v4([0; 4]),
        Family::V6 => Addr::from_words([0; 4]),
    };
    env.is_node_protocol(&NodeProtocol::new(pkt.tuple.dst, pkt.tuple.proto))
        || env.is_node_protocol(&NodeProtocol::new(any, pkt.tuple.proto))
}

const DRAIN_TICKS: u32 = ticks32(DRAIN_SECONDS);

/// Reports whether the packet continues a connection that an earlier policy bypassed: its peer uses
/// the pod's own address and must keep it (`--on-reload sticky`).
///
/// Only a mid-stream segment is evidence of that. A RST does not count: a stray segment after the
/// end of a mapping is mostly a RST, and must not leave with the pod's address (requirement 4.1).
/// UDP and ICMP packets contain no such evidence; there, a packet from the peer after the change
/// provides it (`ingress_forwarded`).
#[inline(always)]
fn is_bypassed_by_earlier_policy<E: Env>(env: &E, pkt: &Packet) -> bool {
    let L4::Tcp(segment) = pkt.l4 else {
        return false;
    };
    if segment.flags & (SYN | ACK | RST) != ACK || !policy::was_bypassed(env, &pkt.tuple.dst) {
        return false;
    }
    let limit = if env.settings().flags & SETTING_DRAIN == 0 {
        0
    } else {
        DRAIN_TICKS
    };
    inbound::record_bypassed(env, pkt, limit);
    true
}

/// Returns the verdict for a packet that cannot be translated, by `--untranslatable`.
#[inline(never)]
fn no_leak<E: Env>(env: &E, scratch: &mut Scratch, reason: DropReason) -> Verdict {
    match env.settings().no_leak {
        NO_LEAK_PASS => {
            env.count_packet(|c| &mut c.egress_let_out);
            Verdict::Pass
        }
        NO_LEAK_ADDRESS
            if choose_source(env, &mut scratch.pkt) && !speaks_for_node(env, &scratch.pkt) =>
        {
            env.count_packet(|c| &mut c.egress_let_out);
            scratch.pkt.new.id = scratch.pkt.tuple.src_id.into();
            Verdict::Rewrite
        }
        _ => Verdict::Drop(reason),
    }
}

/// Reports whether a TCP segment with its own port and the node's address would be attributed to
/// another connection: one of the node, or one of a pod by its mapping.
#[inline(always)]
fn speaks_for_node<E: Env>(env: &E, pkt: &Packet) -> bool {
    if !matches!(pkt.l4, L4::Tcp(_)) {
        return false;
    }
    let wire = pkt.tuple.reply_to(pkt.new.addr, pkt.tuple.src_id);
    env.lookup_rev_snat(&wire).is_some()
        || node::receives(env, &wire)
        || node::owns_flow(env, &wire)
}
