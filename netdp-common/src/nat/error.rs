//! ICMP errors (RFC 5508 4): the packet inside identifies the mapping.
//!
//! An error neither refreshes nor ends a mapping (RFC 4787 REQ-12).

use super::Work;
use super::inbound::is_known;
use super::origin::{may_report, same};
use crate::abi::Action;
use crate::slot::Slot;
use crate::tables::Tables;
use crate::verdict::{DropReason, Verdict};

/// Decides about an error from outside that concerns a pod's packet: the inner packet is the one
/// that left, translated.
#[inline(never)]
pub fn ingress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    // An error is addressed to the source of the packet inside (RFC 792); any other is forged.
    if !same(&work.pkt.tuple.dst, &work.inner.tuple.src) {
        tables.count(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    match tables.rev_snat(&work.inner.tuple.reversed()) {
        Some(slot) if !slot.is_others() => {
            translate(tables, work, slot);
            Verdict::RewriteError
        }
        _ => {
            tables.count(|c| &mut c.ingress_passed);
            Verdict::Pass
        }
    }
}

/// Decides about an error that a pod sends, or the node sends about a reply that was already
/// translated back (too big for the pod's link, hop limit exceeded): the inner packet is addressed
/// to the pod.
#[inline(never)]
pub fn egress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let own = tables.is_local(&work.pkt.tuple.src);
    let original = work.inner.tuple.reversed();
    if let Some(slot) = tables.snat(&original) {
        if !own && !may_report(tables, &work.pkt, &original.src) {
            return Verdict::Drop(DropReason::ForgedSource);
        }
        translate(tables, work, slot);
        return if own {
            Verdict::RewriteInner
        } else {
            Verdict::RewriteError
        };
    }
    if own {
        tables.count(|c| &mut c.egress_host);
        return Verdict::Pass;
    }
    if let Action::Bypass = tables.action(&work.pkt.tuple.dst) {
        tables.count(|c| &mut c.egress_bypassed);
        return Verdict::Pass;
    }
    if !may_report(tables, &work.pkt, &original.src) {
        return Verdict::Drop(DropReason::ForgedSource);
    }
    if is_known(tables, &original) {
        tables.count(|c| &mut c.egress_replies);
        return Verdict::Pass;
    }
    Verdict::Drop(DropReason::IcmpNoFlow)
}

#[inline(always)]
pub(super) fn translate<T: Tables>(tables: &T, work: &mut Work, slot: Slot) {
    work.pkt.new.addr = slot.addr();
    work.pkt.new.id = slot.id().into();
    tables.count(|c| &mut c.errors_translated);
}
