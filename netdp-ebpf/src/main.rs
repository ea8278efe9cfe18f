//! The TC programs: parse, decide in netdp-common, turn the verdict into an
//! action. A packet walks `main` → `skb` → `netdp_common::nat` → `skb`.

#![no_std]
#![no_main]

mod maps;
mod skb;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use maps::World;
use netdp_common::nat::{self, Work};
use netdp_common::packet::Parsed;
use netdp_common::tables::Tables;
use netdp_common::verdict::{DropReason, Verdict};

/// `TCX_NEXT` and `TC_ACT_UNSPEC` are the same number: whatever other programs
/// are attached run too (include/uapi/linux/bpf.h, Linux 6.6).
const NEXT: i32 = TC_ACT_UNSPEC;
/// Drop.
const SHOT: i32 = TC_ACT_SHOT as i32;

/// Uplink, TC egress: pods' packets get the node's address.
#[classifier]
pub fn egress_snat(ctx: TcContext) -> i32 {
    run(&ctx, true)
}

/// Uplink, TC ingress: replies get the pod's address back.
#[classifier]
pub fn ingress_rev_snat(ctx: TcContext) -> i32 {
    run(&ctx, false)
}

#[inline(always)]
fn run(ctx: &TcContext, leaving: bool) -> i32 {
    let (Some(world), Some(work)) = (World::new(ctx), maps::work()) else {
        return NEXT;
    };
    let l2_len = if world.uplink().l2_len == 0 { 0 } else { 14 };
    let verdict = match skb::parse(ctx, l2_len, work) {
        Parsed::Ip => decide(&world, work, leaving),
        Parsed::NotIp => Verdict::Pass,
        // The node's stack judges what comes in; nothing of the kind may leave.
        Parsed::Malformed if leaving => Verdict::Drop(DropReason::Malformed),
        Parsed::Malformed => Verdict::Pass,
    };
    let failed = match verdict {
        Verdict::Pass | Verdict::Hold => None,
        Verdict::Rewrite => skb::rewrite(ctx, &work.pkt, leaving).err(),
        Verdict::RewriteError => rewrite_error(ctx, work, leaving, true),
        Verdict::RewriteInner => rewrite_error(ctx, work, leaving, false),
        Verdict::Drop(reason) => Some(reason),
    };
    match failed {
        None => NEXT,
        Some(reason) => {
            world.count_drop(reason);
            SHOT
        }
    }
}

#[inline(always)]
fn rewrite_error(ctx: &TcContext, work: &Work, leaving: bool, outer: bool) -> Option<DropReason> {
    match skb::rewrite_error(ctx, work, leaving, outer) {
        0 => None,
        _ => Some(DropReason::RewriteFailed),
    }
}

#[inline(always)]
fn decide(world: &World<'_>, work: &mut Work, leaving: bool) -> Verdict {
    if leaving {
        nat::egress(world, work)
    } else {
        nat::ingress(world, work)
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel checks before it lets a program call its
/// GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
