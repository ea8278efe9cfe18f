//! The TC programs. Each is [`netdp_common::pipeline`] over this crate's packet ([`skb`]) and
//! environment ([`mod@env`]).

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

mod bounded_loop;
mod cache;
mod drop_log;
mod ended;
mod env;
mod events;
mod fib;
mod fragment_queue;
mod icmp_unreachable;
mod maps;
mod per_cpu;
mod redirect;
mod skb;
mod sockets;

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use env::TcEnv;
use netdp_common::direction::Direction;
use netdp_common::pipeline;
use netdp_common::verdict::Outcome;
use skb::Skb;

const _: () = assert!(
    Outcome::Pass as i32 == TC_ACT_UNSPEC
        && Outcome::Drop as i32 == TC_ACT_SHOT
        && Outcome::Redirect as i32 == TC_ACT_REDIRECT
);

/// Uplink, TC egress: translates the source of pods' packets to the node's address.
#[classifier]
pub fn egress_snat(ctx: TcContext) -> i32 {
    at_uplink(&Skb(ctx), Direction::Egress) as i32
}

/// Uplink, TC ingress: translates the destination of replies back to the pod's address.
#[classifier]
pub fn ingress_rev_snat(ctx: TcContext) -> i32 {
    at_uplink(&Skb(ctx), Direction::Ingress) as i32
}

#[inline(always)]
fn at_uplink(skb: &Skb, direction: Direction) -> Outcome {
    // SAFETY: the only environment of this run.
    match unsafe { TcEnv::at_uplink(skb) } {
        Some((env, scratch)) => pipeline::run(skb, &env, scratch, direction),
        None => Outcome::Pass,
    }
}

/// Interfaces towards pods, TC ingress: hairpin between pods.
#[classifier]
pub fn pod_hairpin(ctx: TcContext) -> i32 {
    let skb = Skb(ctx);
    // SAFETY: the only environment of this run.
    let outcome = match unsafe { TcEnv::at_pods(&skb) } {
        Some((env, scratch)) => pipeline::hairpin(&skb, &env, scratch),
        None => Outcome::Pass,
    };
    outcome as i32
}

/// Uplink, TC egress, until its ingress has a program: drops forwarded packets. They would leave
/// untranslated, or their replies would meet no program that translates them back.
#[classifier]
pub fn shut(ctx: TcContext) -> i32 {
    // SAFETY: a TC program's context is readable for the program's run.
    match unsafe { (*ctx.skb.skb).ingress_ifindex } {
        0 => Outcome::Pass as i32,
        _ => Outcome::Drop as i32,
    }
}

/// The placeholder of a link while its program is moved ahead of others: passes every packet.
#[classifier]
pub fn stand_in(_ctx: TcContext) -> i32 {
    Outcome::Pass as i32
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
