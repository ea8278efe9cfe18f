//! The TC programs: parse the packet, decide in netdp-common, apply the verdict. A packet walks
//! `main` → `skb` → `netdp_common::nat` → `skb`, or `rewrite`.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "aya's macros wrap the programs in functions without their comments"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "helpers and headers have narrower fields than Rust's types; what they hold fits"
)]

mod fib;
mod hold;
mod known;
mod maps;
mod refuse;
mod report;
mod rewrite;
mod skb;
mod sockets;
mod turn;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use maps::World;
use netdp_common::abi::UPLINK_UNTAGGED;
use netdp_common::nat::{self, Known, Work, fragment};
use netdp_common::packet::{L4, Parsed, Plain};
use netdp_common::tables::Tables;
use netdp_common::verdict::{DropReason, Verdict};

/// `TCX_NEXT` and `TC_ACT_UNSPEC` are the same number: other programs on the hook also run
/// (include/uapi/linux/bpf.h, Linux 6.6).
const NEXT: i32 = TC_ACT_UNSPEC;
/// Drops the packet and runs no further program.
const SHOT: i32 = TC_ACT_SHOT;

/// Uplink, TC egress: translates the source of pods' packets to the node's address.
#[classifier]
pub fn egress_snat(ctx: TcContext) -> i32 {
    run(&ctx, true)
}

/// Uplink, TC ingress: translates the destination of replies back to the pod's address.
#[classifier]
pub fn ingress_rev_snat(ctx: TcContext) -> i32 {
    run(&ctx, false)
}

/// Interfaces towards pods, TC ingress: hairpin between pods.
#[classifier]
pub fn pod_hairpin(ctx: TcContext) -> i32 {
    turn::back(&ctx)
}

/// Uplink, TC egress, until its ingress has a program: drops forwarded packets. They would leave
/// untranslated, or their replies would meet no program that translates them back.
#[classifier]
pub fn shut(ctx: TcContext) -> i32 {
    // SAFETY: a TC program's context is readable for the program's run.
    match unsafe { (*ctx.skb.skb).ingress_ifindex } {
        0 => NEXT,
        _ => SHOT,
    }
}

/// The placeholder of a link while its program is moved ahead of others: passes every packet.
#[classifier]
pub fn stand_in(_ctx: TcContext) -> i32 {
    NEXT
}

#[inline(always)]
fn run(ctx: &TcContext, leaving: bool) -> i32 {
    let Some((world, work)) = World::new(ctx) else {
        return NEXT;
    };
    if world.uplink().flags & UPLINK_UNTAGGED != 0 && skb::is_tagged(ctx) {
        return NEXT;
    }
    let (l2_len, plain) = match world.uplink().l2_len {
        0 => (0, None),
        _ => (skb::ETHERNET, skb::plain(ctx)),
    };
    if let Some(plain) = &plain {
        match judge_plain(ctx, &world, work, plain, leaving) {
            Some(Ok(())) => return NEXT,
            Some(Err(reason)) => return drop_it(ctx, &world, work, reason, leaving),
            None => {}
        }
    } else if let Some((src, dst)) = skb::peek(ctx, l2_len)
        && nat::passes(&world, &src, &dst, leaving)
    {
        if leaving {
            skb::set_queue_hash(ctx, l2_len, &src, &dst);
        }
        return NEXT;
    }
    let parsed = match (&plain, l2_len) {
        (Some(_), _) => Parsed::Ip,
        (None, 0) => skb::parse(ctx, 0, work),
        (None, _) => skb::parse_any(ctx, l2_len, work),
    };
    let verdict = match parsed {
        Parsed::Ip => match ip(ctx, &world, work, plain.is_some(), leaving) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        },
        Parsed::NotIp => Verdict::Pass,
        // The node's stack handles malformed packets that arrive; none may leave.
        Parsed::Malformed if leaving && !world.is_bridged(&work.pkt.tuple, work.pkt.family) => {
            Verdict::Drop(DropReason::Malformed)
        }
        Parsed::Malformed => Verdict::Pass,
    };
    let failed = match verdict {
        Verdict::Pass => {
            // As above: a flow must stay in its queue, whether its addresses are in the bypass
            // cache or not.
            if leaving {
                skb::set_queue_hash(ctx, l2_len, &work.pkt.tuple.src, &work.pkt.tuple.dst);
            }
            None
        }
        Verdict::Hold => return SHOT,
        Verdict::Rewrite => {
            skb::set_hash(ctx, &work.pkt);
            rewrite::packet(ctx, &work.pkt, leaving, leaving).err()
        }
        Verdict::RewriteError => rewrite_error(ctx, work, leaving, true),
        Verdict::RewriteInner => rewrite_error(ctx, work, leaving, false),
        Verdict::Drop(reason) => Some(reason),
    };
    match failed {
        None => NEXT,
        Some(reason) => drop_it(ctx, &world, work, reason, leaving),
    }
}

/// Counts a dropped packet. A refusal is also logged, and answered with an ICMP error.
#[inline(never)]
fn drop_it(
    ctx: &TcContext,
    world: &World<'_>,
    work: &Work,
    reason: DropReason,
    leaving: bool,
) -> i32 {
    world.count_drop(reason);
    if leaving && reason.is_refusal() {
        report::refused(ctx, world, &work.pkt, reason);
        if nat::is_answered(world, &work.pkt) {
            return refuse::answer(ctx, world, &work.pkt);
        }
    }
    SHOT
}

/// Fast path: handles a packet that hits the bypass cache or a mapping, as far as possible in
/// registers. An error is the drop reason. `None` means the slow path; `work` is then filled in.
#[inline(always)]
fn judge_plain(
    ctx: &TcContext,
    world: &World<'_>,
    work: &mut Work,
    plain: &Plain,
    leaving: bool,
) -> Option<Result<(), DropReason>> {
    match nat::plain(world, work, plain, skb::ETHERNET, leaving)? {
        Known::Bypassed => {
            if leaving {
                skb::set_tuple_hash(ctx, &plain.tuple());
            }
            Some(Ok(()))
        }
        Known::Rewrite(slot) => {
            skb::set_tuple_hash(ctx, &plain.tuple());
            if skb::rewrite_plain(ctx, plain, slot, leaving) {
                return Some(Ok(()));
            }
            plain.fill(skb::ETHERNET, &mut work.pkt);
            nat::fill_new(&mut work.pkt, slot);
            Some(rewrite::by_helpers(ctx, &work.pkt, leaving))
        }
        Known::Pass | Known::Unmapped => Some(Ok(())),
        Known::Forged => Some(Err(DropReason::ForgedSource)),
        Known::Resting => {
            plain.fill(skb::ETHERNET, &mut work.pkt);
            Some(Err(DropReason::NoSourceAddress))
        }
    }
}

/// Decides about an IP packet, and releases the fragments that are queued behind it. `asked`: the
/// lookup of its mapping was a miss.
#[inline(always)]
fn ip(
    ctx: &TcContext,
    world: &World<'_>,
    work: &mut Work,
    asked: bool,
    leaving: bool,
) -> Result<Verdict, DropReason> {
    let verdict = match decide(world, work, asked, leaving) {
        Verdict::Hold => hold(ctx, world, work),
        other => other,
    };
    if !leaving && work.pkt.is_fragment != 0 && !matches!(work.pkt.l4, L4::LaterFragment) {
        // The fragments that arrived before it follow it.
        let datagram = fragment::key(&work.pkt);
        if !hold::release(ctx, &datagram) {
            return Err(DropReason::RewriteFailed);
        }
    }
    Ok(verdict)
}

/// Queues a fragment until the first one arrives; returns `Hold` if it was queued. If there is no
/// room, it is passed to the node's stack: it may belong to the node.
#[inline(always)]
fn hold(ctx: &TcContext, world: &World<'_>, work: &mut Work) -> Verdict {
    if !hold::hold(ctx, &fragment::key(&work.pkt)) {
        return Verdict::Pass;
    }
    // The first one may have arrived on another CPU in the meantime, and found nothing queued.
    let verdict = fragment::later_ingress(world, work);
    if matches!(verdict, Verdict::Hold) {
        world.count(|c| &mut c.fragments_held);
    }
    verdict
}

#[inline(always)]
fn rewrite_error(ctx: &TcContext, work: &Work, leaving: bool, outer: bool) -> Option<DropReason> {
    match rewrite::error(ctx, work, leaving, outer) {
        0 => None,
        _ => Some(DropReason::RewriteFailed),
    }
}

#[inline(always)]
fn decide(world: &World<'_>, work: &mut Work, asked: bool, leaving: bool) -> Verdict {
    if leaving {
        nat::egress(world, work, asked)
    } else {
        nat::ingress(world, work, asked)
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence, which the kernel checks before it lets a program call its GPL-only helpers.
/// LICENSE-GPL2 has the text of the second one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
