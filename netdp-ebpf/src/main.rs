//! The TC programs: parse, decide in netdp-common, turn the verdict into an
//! action. A packet walks `main` → `skb` → `netdp_common::nat` → `skb`, or `rewrite`.

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

/// `TCX_NEXT` and `TC_ACT_UNSPEC` are the same number: whatever other programs
/// are attached run too (include/uapi/linux/bpf.h, Linux 6.6).
const NEXT: i32 = TC_ACT_UNSPEC;
/// Drop.
const SHOT: i32 = TC_ACT_SHOT;

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

/// Interfaces towards pods, TC ingress: hairpin.
#[classifier]
pub fn pod_hairpin(ctx: TcContext) -> i32 {
    turn::back(&ctx)
}

/// Egress of an uplink until its ingress has a program: what is forwarded does not leave. It would
/// leave untranslated, or its answer would meet nothing that knows it.
#[classifier]
pub fn shut(ctx: TcContext) -> i32 {
    // SAFETY: a TC program's context is readable for the program's run.
    match unsafe { (*ctx.skb.skb).ingress_ifindex } {
        0 => NEXT,
        _ => SHOT,
    }
}

/// What a link holds while a program moves before those of others: nothing happens.
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
        // The node's stack judges what comes in; nothing of the kind may leave.
        Parsed::Malformed if leaving && !world.is_bridged(&work.pkt.tuple, work.pkt.family) => {
            Verdict::Drop(DropReason::Malformed)
        }
        Parsed::Malformed => Verdict::Pass,
    };
    let failed = match verdict {
        Verdict::Pass => {
            // As above: a flow is to stay in its queue, whether its addresses are
            // known or not.
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

/// Counts a packet that is dropped; one that the node had to refuse is reported and answered.
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

/// What most packets are: plain ones of which is known what becomes of them. What they
/// need stays in registers, as far as these go. An error is why it is dropped. `None` for
/// all others; `work` has them then.
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

/// Decides about an IP packet, and lets go what waited for it. `asked`: for its mapping,
/// of which there is none.
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
        // Those that came before it follow it.
        let datagram = fragment::key(&work.pkt);
        if !hold::release(ctx, &datagram) {
            return Err(DropReason::RewriteFailed);
        }
    }
    Ok(verdict)
}

/// Takes a fragment out of the stream until the first one comes; `Hold` if that
/// was done. Where there is no room the node's stack gets it: it may be its own.
#[inline(always)]
fn hold(ctx: &TcContext, world: &World<'_>, work: &mut Work) -> Verdict {
    if !hold::hold(ctx, &fragment::key(&work.pkt)) {
        return Verdict::Pass;
    }
    // The first may have come by another CPU meanwhile and found nothing held.
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

/// The licence that the kernel checks before it lets a program call its
/// GPL-only helpers. LICENSE-GPL2 has the text of the second.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
