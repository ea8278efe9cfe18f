//! The path of a packet, from a hook to its outcome: [`run`] at an uplink, [`hairpin()`] at an
//! interface towards pods. The programs and the tests run the same code, each over their own
//! [`Skb`] and [`Env`].
//!
//! Everything is inlined into the programs, except where a stack frame has to be gone before the
//! next step: all live frames together may have 512 bytes (docs/adr/0008).

mod hash;
mod parse;

use crate::direction::{Direction, End};
use crate::env::Env;
use crate::layout::{DropReason, EVENTS_DROP, EVENTS_REFUSED, UPLINK_UNTAGGED};
use crate::nat::admission::refuse;
use crate::nat::egress::egress;
use crate::nat::established::{Hit, fill_new};
use crate::nat::fragment;
use crate::nat::hairpin::{may_hairpin, translate_destination, translate_source};
use crate::nat::ingress::ingress;
use crate::nat::lookup::{Progress, fast_path};
use crate::nat::policy::passes;
use crate::nat::scratch::Scratch;
use crate::packet::{ETHERNET, FastPacket, L4, Parsed, parse_fast, peek};
use crate::skb::{ErrorPart, Skb};
use crate::verdict::{Failed, Outcome, Verdict};
use hash::{hash_packet, hash_passed, hash_tuple};
use parse::{is_tagged, parse, parse_slow};

/// Handles a packet at a hook of an uplink.
#[inline(always)]
pub fn run<S: Skb, E: Env>(
    skb: &S,
    env: &E,
    scratch: &mut Scratch,
    direction: Direction,
) -> Outcome {
    // Tagged packets belong to a VLAN device above the uplink.
    if env.uplink().flags & UPLINK_UNTAGGED != 0 && is_tagged(skb) {
        return Outcome::Pass;
    }
    // The fast path: most packets end here.
    let (l2_len, fast) = match env.uplink().l2_len {
        0 => (0, None),
        _ => (ETHERNET, parse_fast(skb, skb.ethertype(), ETHERNET)),
    };
    if let Some(fast) = &fast {
        match try_fast_path(skb, env, scratch, fast, direction) {
            Some(Ok(())) => return Outcome::Pass,
            Some(Err(reason)) => return drop_packet(skb, env, scratch, reason, direction),
            None => {}
        }
    // Others that the policy bypasses need no more than their addresses.
    } else if let Some((src, dst)) = peek(skb, skb.ethertype(), l2_len)
        && passes(env, &src, &dst, direction)
    {
        if direction == Direction::Egress {
            hash_passed(skb, l2_len, &src, &dst);
        }
        return Outcome::Pass;
    }
    // The slow path.
    let parsed = match (&fast, l2_len) {
        (Some(_), _) => Parsed::Ip,
        (None, 0) => parse(skb, 0, scratch),
        (None, _) => parse_slow(skb, l2_len, scratch),
    };
    let progress = match fast {
        Some(_) => Progress::Missed,
        None => Progress::Pending,
    };
    let verdict = match parsed {
        Parsed::Ip => match decide(skb, env, scratch, progress, direction) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        },
        Parsed::NotIp => Verdict::Pass,
        Parsed::Malformed => malformed(env, direction),
    };
    let end = direction.translated_end();
    let applied = match verdict {
        Verdict::Pass => {
            // As for the bypass cache: a flow must stay in its queue, whether its addresses are in
            // the cache or not.
            if direction == Direction::Egress {
                hash_passed(skb, l2_len, &scratch.pkt.tuple.src, &scratch.pkt.tuple.dst);
            }
            Ok(())
        }
        Verdict::Hold => return Outcome::Drop,
        Verdict::Rewrite => {
            hash_packet(skb, &scratch.pkt);
            or_drop(skb.rewrite(&scratch.pkt, end, direction))
        }
        Verdict::RewriteError => or_drop(skb.rewrite_error(scratch, end, ErrorPart::Whole)),
        Verdict::RewriteInner => or_drop(skb.rewrite_error(scratch, end, ErrorPart::Inner)),
        Verdict::Drop(reason) => Err(reason),
    };
    match applied {
        Ok(()) => Outcome::Pass,
        Err(reason) => drop_packet(skb, env, scratch, reason, direction),
    }
}

/// Handles a packet that hits the bypass cache or a mapping, as far as possible in registers. An
/// error is the drop reason. `None` means the slow path; `scratch` is then filled in.
#[inline(always)]
fn try_fast_path<S: Skb, E: Env>(
    skb: &S,
    env: &E,
    scratch: &mut Scratch,
    fast: &FastPacket,
    direction: Direction,
) -> Option<Result<(), DropReason>> {
    match fast_path(env, scratch, fast, ETHERNET, direction)? {
        Hit::Bypassed => {
            if direction == Direction::Egress {
                hash_tuple(skb, &fast.tuple());
            }
            Some(Ok(()))
        }
        Hit::Rewrite(slot) => {
            hash_tuple(skb, &fast.tuple());
            if skb.rewrite_in_place(fast, slot, direction) {
                return Some(Ok(()));
            }
            fast.fill(ETHERNET, &mut scratch.pkt);
            fill_new(&mut scratch.pkt, slot);
            let end = direction.translated_end();
            Some(or_drop(skb.rewrite_by_helpers(&scratch.pkt, end)))
        }
        Hit::Pass | Hit::Unmapped => Some(Ok(())),
        Hit::Forged => Some(Err(DropReason::ForgedSource)),
        Hit::Resting => {
            fast.fill(ETHERNET, &mut scratch.pkt);
            Some(Err(DropReason::NoSourceAddress))
        }
    }
}

/// Decides about an IP packet, and releases the fragments that are queued behind it.
#[inline(always)]
fn decide<S: Skb, E: Env>(
    skb: &S,
    env: &E,
    scratch: &mut Scratch,
    progress: Progress,
    direction: Direction,
) -> Result<Verdict, DropReason> {
    let verdict = match direction {
        Direction::Egress => egress(env, scratch, progress),
        Direction::Ingress => ingress(env, scratch, progress),
    };
    let verdict = match verdict {
        Verdict::Hold => hold(skb, env, scratch),
        other => other,
    };
    if direction == Direction::Ingress
        && scratch.pkt.is_fragment != 0
        && !matches!(scratch.pkt.l4, L4::LaterFragment)
    {
        // The fragments that arrived before it follow it.
        let datagram = fragment::key(&scratch.pkt);
        if !skb.release_fragments(&datagram) {
            return Err(DropReason::RewriteFailed);
        }
    }
    Ok(verdict)
}

/// Queues a fragment until the first one arrives; returns `Hold` if it was queued. If there is no
/// room, it is passed to the node's stack: it may belong to the node.
#[inline(always)]
fn hold<S: Skb, E: Env>(skb: &S, env: &E, scratch: &mut Scratch) -> Verdict {
    if !skb.queue_fragment(&fragment::key(&scratch.pkt)) {
        return Verdict::Pass;
    }
    // The first one may have arrived on another CPU in the meantime, and found nothing queued.
    let verdict = fragment::later_ingress(env, scratch);
    if matches!(verdict, Verdict::Hold) {
        env.count(|c| &mut c.fragments_held);
    }
    verdict
}

/// Decides about a packet whose addresses cannot be read; the scratch has those of another one. The
/// node's stack handles packets that arrive; none may leave, unless a guest on the link sent it.
#[inline(always)]
fn malformed<E: Env>(env: &E, direction: Direction) -> Verdict {
    match direction {
        Direction::Egress if !env.has_foreign_mac() => Verdict::Drop(DropReason::Malformed),
        _ => Verdict::Pass,
    }
}

/// Counts a dropped packet, and reports it to those who listen. A refusal is also logged, and
/// answered with an ICMP error.
#[inline(never)]
fn drop_packet<S: Skb, E: Env>(
    skb: &S,
    env: &E,
    scratch: &Scratch,
    reason: DropReason,
    direction: Direction,
) -> Outcome {
    count_drop(skb, env, reason, direction);
    if direction == Direction::Egress && reason.is_refusal() {
        skb.log_refusal(env, &scratch.pkt, reason);
        if refuse(env, &scratch.pkt) {
            return skb.answer_refusal(env, &scratch.pkt);
        }
    }
    Outcome::Drop
}

/// Counts a dropped packet, and reports it to those who listen.
#[inline(always)]
fn count_drop<S: Skb, E: Env>(skb: &S, env: &E, reason: DropReason, direction: Direction) {
    env.count_drop(reason);
    if env.settings().events & (EVENTS_DROP | EVENTS_REFUSED) != 0 {
        skb.report_drop(env, reason, direction);
    }
}

/// Returns the drop reason of a packet that the kernel failed to rewrite.
#[inline(always)]
fn or_drop(rewritten: Result<(), Failed>) -> Result<(), DropReason> {
    rewritten.map_err(|Failed| DropReason::RewriteFailed)
}

/// Handles a packet that comes from a pod: one to another pod's endpoint on the wire is rewritten
/// at both ends and sent to that pod, past the node's stack.
#[inline(always)]
pub fn hairpin<S: Skb, E: Env>(skb: &S, env: &E, scratch: &mut Scratch) -> Outcome {
    // Interfaces towards pods have an Ethernet header.
    let Parsed::Ip = parse(skb, ETHERNET, scratch) else {
        return Outcome::Pass;
    };
    // A packet without hops left belongs to the node's stack, as does one for no known endpoint: it
    // must not change a mapping.
    if !may_hairpin(env, &scratch.pkt) || !skb.has_hops(&scratch.pkt) {
        return Outcome::Pass;
    }
    let verdict = translate_source(env, scratch);
    let sent = match apply_half(skb, scratch, verdict, End::Source) {
        Ok(Half::Untouched) => return Outcome::Pass,
        Ok(Half::Rewritten) => {
            let verdict = translate_destination(env, scratch);
            match apply_half(skb, scratch, verdict, End::Destination) {
                Ok(Half::Rewritten) => skb
                    .send_to_pod(&scratch.pkt)
                    .map_err(|Failed| DropReason::RewriteFailed),
                // The mapping turned out to belong to the node: too late to pass the packet
                // unmodified.
                Ok(Half::Untouched) => Err(DropReason::Unsolicited),
                Err(reason) => Err(reason),
            }
        }
        Err(reason) => Err(reason),
    };
    sent.unwrap_or_else(|reason| {
        count_drop(skb, env, reason, Direction::Ingress);
        Outcome::Drop
    })
}

/// The result of applying one half of a hairpin translation.
enum Half {
    /// There was nothing to apply.
    Untouched,
    Rewritten,
}

#[inline(always)]
fn apply_half<S: Skb>(
    skb: &S,
    scratch: &Scratch,
    verdict: Verdict,
    end: End,
) -> Result<Half, DropReason> {
    match verdict {
        Verdict::Rewrite => {
            or_drop(skb.rewrite(&scratch.pkt, end, Direction::Ingress)).map(|()| Half::Rewritten)
        }
        Verdict::RewriteError => {
            or_drop(skb.rewrite_error(scratch, end, ErrorPart::Whole)).map(|()| Half::Rewritten)
        }
        Verdict::Drop(reason) => Err(reason),
        Verdict::Pass | Verdict::Hold | Verdict::RewriteInner => Ok(Half::Untouched),
    }
}
