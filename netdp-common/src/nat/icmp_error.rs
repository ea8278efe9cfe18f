//! ICMP errors (RFC 5508 4): the packet inside identifies the mapping.
//!
//! An error neither refreshes nor ends a mapping (RFC 4787 REQ-12).

use super::inbound::is_recorded;
use super::origin::may_report;
use super::policy::{self, Decision};
use super::scratch::Scratch;
use crate::env::Env;
use crate::layout::{Action, DropReason};
use crate::slot::Slot;
use crate::verdict::Verdict;

/// Decides about an error from outside that concerns a pod's packet: the inner packet is the one
/// that left, translated.
#[inline(never)]
pub fn ingress<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    // An error is addressed to the source of the packet inside (RFC 792); any other is forged.
    if !scratch.pkt.tuple.dst.is_same(&scratch.inner.tuple.src) {
        env.count_packet(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    match env.lookup_rev_snat(&scratch.inner.tuple.reversed()) {
        Some(slot) if !slot.passes_ingress() => {
            translate(env, scratch, slot);
            Verdict::RewriteError
        }
        _ => {
            env.count_packet(|c| &mut c.ingress_passed);
            Verdict::Pass
        }
    }
}

/// Decides about an error that a pod sends, or the node sends about a reply that was already
/// translated back (too big for the pod's link, hop limit exceeded): the inner packet is addressed
/// to the pod.
#[inline(never)]
pub fn egress<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let own = env.is_local(&scratch.pkt.tuple.src);
    let original = scratch.inner.tuple.reversed();
    if let Some(slot) = env.lookup_snat(&original) {
        if !own && !may_report(env, &scratch.pkt, &original.src) {
            return Verdict::Drop(DropReason::ForgedSource);
        }
        translate(env, scratch, slot);
        return if own {
            Verdict::RewriteInner
        } else {
            Verdict::RewriteError
        };
    }
    if own {
        env.count_packet(|c| &mut c.egress_host);
        return Verdict::Pass;
    }
    let Decision { action, rule } = policy::decide(env, &scratch.pkt.tuple.dst);
    if action == Action::Bypass {
        policy::count_bypassed(env, rule);
        return Verdict::Pass;
    }
    if !may_report(env, &scratch.pkt, &original.src) {
        return Verdict::Drop(DropReason::ForgedSource);
    }
    if is_recorded(env, &original) {
        env.count_packet(|c| &mut c.egress_replies);
        return Verdict::Pass;
    }
    Verdict::Drop(DropReason::IcmpNoFlow)
}

#[inline(always)]
pub(super) fn translate<E: Env>(env: &E, scratch: &mut Scratch, slot: Slot) {
    scratch.pkt.new.addr = slot.addr();
    scratch.pkt.new.id = slot.id().into();
    env.count(|c| &mut c.errors_translated);
}
