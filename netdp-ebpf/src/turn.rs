//! Hairpin: a pod's packet to another pod's endpoint on the wire is rewritten at both ends and sent
//! to that pod.
//!
//! It bypasses the node's stack, which rejects packets with its own address as source, and whose
//! connection tracking would see half of each flow.

use crate::maps::World;
use crate::{NEXT, SHOT, fib, rewrite, skb};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::programs::TcContext;
use netdp_common::nat::{Work, hairpin};
use netdp_common::packet::Parsed;
use netdp_common::verdict::{DropReason, Verdict};

/// Handles a packet that comes from a pod.
#[inline(always)]
pub fn back(ctx: &TcContext) -> i32 {
    let Some((world, work)) = World::of_pods(ctx) else {
        return NEXT;
    };
    // Pod-side interfaces have an Ethernet header.
    let Parsed::Ip = skb::parse(ctx, skb::ETHERNET, work) else {
        return NEXT;
    };
    let out = hairpin::leave(&world, work);
    // A packet without hops left belongs to the node's stack, as does one for no known endpoint.
    if let Verdict::Rewrite | Verdict::RewriteError = out
        && !rewrite::has_hops(ctx, &work.pkt)
    {
        return NEXT;
    }
    let redirected = match put(ctx, work, out, true) {
        Ok(false) => return NEXT,
        Ok(true) => {
            let verdict = hairpin::enter(&world, work);
            match put(ctx, work, verdict, false) {
                Ok(true) => redirect(ctx, work),
                // The mapping turned out to belong to the node: too late to pass the packet
                // unmodified.
                Ok(false) => Err(DropReason::Unsolicited),
                Err(reason) => Err(reason),
            }
        }
        Err(reason) => Err(reason),
    };
    redirected.unwrap_or_else(|reason| {
        world.count_drop(reason);
        SHOT
    })
}

/// Applies one half of the translation; returns `false` if there is nothing to apply.
#[inline(always)]
fn put(ctx: &TcContext, work: &Work, verdict: Verdict, leaving: bool) -> Result<bool, DropReason> {
    match verdict {
        Verdict::Rewrite => rewrite::packet(ctx, &work.pkt, leaving, false).map(|()| true),
        Verdict::RewriteError => match rewrite::error(ctx, work, leaving, true) {
            0 => Ok(true),
            _ => Err(DropReason::RewriteFailed),
        },
        Verdict::Drop(reason) => Err(reason),
        Verdict::Pass | Verdict::Hold | Verdict::RewriteInner => Ok(false),
    }
}

/// Redirects the packet to the pod, with one hop less.
#[inline(always)]
fn redirect(ctx: &TcContext, work: &Work) -> Result<i32, DropReason> {
    let pkt = &work.pkt;
    let failed = DropReason::RewriteFailed;
    let to = fib::interface(ctx, &pkt.new.addr, pkt.family).ok_or(failed)?;
    rewrite::hop(ctx, pkt).map_err(|_| failed)?;
    // SAFETY: a helper with plain arguments; without parameters it looks up the next hop itself.
    Ok(unsafe { bpf_redirect_neigh(to, core::ptr::null_mut(), 0, 0) } as i32)
}
