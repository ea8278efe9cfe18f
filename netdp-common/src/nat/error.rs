//! ICMP errors (RFC 5508 4): the packet inside names the mapping.
//!
//! An error neither refreshes nor ends a mapping (RFC 4787 REQ-12).

use super::Work;
use super::inbound::is_known;
use super::origin::{may_report, same};
use crate::abi::Action;
use crate::slot::Slot;
use crate::tables::Tables;
use crate::verdict::{DropReason, Verdict};

/// An error from outside about what a pod sent: the inner packet is the one
/// that left, translated.
#[inline(never)]
pub fn ingress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    // It goes to whom the packet inside has for source (RFC 792), else it is forged.
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

/// An error that a pod sends, or the node about a reply that was already
/// translated back (too big for the pod's link, hops used up): the inner packet
/// is addressed to the pod.
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
