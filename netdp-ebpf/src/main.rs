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
    let l3_offset = if world.uplink().l2_len == 0 { 0 } else { 14 };
    let verdict = match skb::parse(ctx, l3_offset, &mut work.pkt) {
        Parsed::Ip => decide(&world, work, leaving),
        Parsed::NotIp => Verdict::Pass,
        // The node's stack judges what comes in; nothing of the kind may leave.
        Parsed::Malformed if leaving => Verdict::Drop(DropReason::Malformed),
        Parsed::Malformed => Verdict::Pass,
    };
    let verdict = match verdict {
        Verdict::Rewrite => match skb::rewrite(ctx, &work.pkt, leaving) {
            Ok(()) => Verdict::Pass,
            Err(reason) => Verdict::Drop(reason),
        },
        other => other,
    };
    match verdict {
        Verdict::Pass | Verdict::Rewrite => NEXT,
        Verdict::Drop(reason) => {
            world.count_drop(reason);
            SHOT
        }
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
