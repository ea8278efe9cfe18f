//! The ICMP error for a refused new flow: the pod's packet is turned into an ICMP "unreachable"
//! about itself (RFC 6888 REQ-11b) and is sent back to where it came from.
//!
//! Only for packets with a minimal header: no IP options, no extension headers.

use crate::fib;
use crate::redirect::redirect;
use crate::skb::read::words;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail,
};
use aya_ebpf::programs::TcContext;
use netdp_common::env::Env;
use netdp_common::layout::{Family, UPLINK_V4, UPLINK_V6, proto};
use netdp_common::packet::{ETHERNET, L4, Packet, checksum};
use netdp_common::verdict::Outcome;

/// IPv4 and ICMP header.
#[repr(C)]
struct V4 {
    words: [u32; 7],
}

/// IPv6 and ICMPv6 header.
#[repr(C)]
struct V6 {
    words: [u32; 12],
}

/// Sends the ICMP error; drops the packet if the error cannot be built.
#[inline(never)]
pub fn send<E: Env>(ctx: &TcContext, env: &E, pkt: &Packet) -> Outcome {
    try_send(ctx, env, pkt).unwrap_or(Outcome::Drop)
}

#[inline(always)]
fn try_send<E: Env>(ctx: &TcContext, env: &E, pkt: &Packet) -> Option<Outcome> {
    // Bytes of the L4 header that the error includes.
    let l4 = match pkt.l4 {
        L4::Tcp(_) => 20,
        L4::Udp | L4::Query => 8,
        _ => return None,
    };
    let pod_side = fib::interface(ctx, &pkt.tuple.src, pkt.family)?;
    // SAFETY: a TC program's context is readable for the program's run.
    if pod_side == unsafe { (*ctx.skb.skb).ifindex } {
        return None;
    }
    let (l3_len, uplink) = (pkt.l4_offset - pkt.l3_offset, env.uplink());
    match pkt.family {
        Family::V4 if l3_len == 20 && uplink.flags & UPLINK_V4 != 0 => {
            make_room(ctx, pkt, 28, l4)?;
            let sum = sum_of(ctx, pkt.l3_offset + 28, 20 + l4)?;
            // Type 3, code 1: host unreachable.
            let icmp = 0x0301_0000u32.to_be();
            let check = !checksum::fold(checksum::add(sum, icmp).into());
            let total = 28 + 20 + l4;
            let mut ip = [
                (0x45c0_0000 | total).to_be(),
                0,
                (64 << 24 | proto::ICMP << 16).to_be(),
                uplink.v4.words()[3],
                pkt.tuple.src.words()[3],
            ];
            let mut header = 0;
            for word in ip {
                header += checksum::Sum::from(word);
            }
            ip[2] |= u32::from(!checksum::fold(header).to_be()).to_be();
            let headers = V4 {
                words: [
                    ip[0],
                    ip[1],
                    ip[2],
                    ip[3],
                    ip[4],
                    icmp | (u32::from(check.to_be())).to_be(),
                    0,
                ],
            };
            ctx.store(pkt.l3_offset as usize, &headers, 0).ok()?;
        }
        Family::V6 if l3_len == 40 && uplink.flags & UPLINK_V6 != 0 => {
            make_room(ctx, pkt, 48, l4)?;
            let sum = sum_of(ctx, pkt.l3_offset + 48, 40 + l4)?;
            let payload = 8 + 40 + l4;
            let (src, dst) = (uplink.v6.words(), pkt.tuple.src.words());
            // Type 1, code 3: address unreachable.
            let icmp = 0x0103_0000u32.to_be();
            let mut sum = checksum::add(sum, icmp);
            for i in 0..4 {
                sum = checksum::add(sum, checksum::add(src[i], dst[i]));
            }
            sum = checksum::add(sum, payload.to_be());
            sum = checksum::add(sum, proto::ICMPV6.to_be());
            let check = !checksum::fold(sum.into());
            let headers = V6 {
                words: [
                    0x6000_0000u32.to_be(),
                    (payload << 16 | proto::ICMPV6 << 8 | 64).to_be(),
                    src[0],
                    src[1],
                    src[2],
                    src[3],
                    dst[0],
                    dst[1],
                    dst[2],
                    dst[3],
                    icmp | (u32::from(check.to_be())).to_be(),
                    0,
                ],
            };
            ctx.store(pkt.l3_offset as usize, &headers, 0).ok()?;
        }
        _ => return None,
    }
    if uplink.l2_len == 0 {
        // `__bpf_redirect_neigh` drops packets without an Ethernet header (net/core/filter.c).
        // SAFETY: a helper on the program's own context.
        let made = unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET, 0) };
        (made == 0).then_some(())?;
    }
    Some(redirect(pod_side))
}

/// Truncates the packet after its L4 header and makes room for `room` bytes before its IP header.
#[inline(always)]
fn make_room(ctx: &TcContext, pkt: &Packet, room: i32, l4: u32) -> Option<()> {
    // SAFETY: helpers on the program's own context.
    let done = unsafe {
        bpf_skb_change_tail(ctx.skb.skb, pkt.l4_offset + l4, 0) == 0
            && bpf_skb_adjust_room(ctx.skb.skb, room, BPF_ADJ_ROOM_MAC, 0) == 0
    };
    done.then_some(())
}

/// Returns the sum of `len` bytes at `offset`: one of four lengths, each a multiple of 4.
#[inline(always)]
fn sum_of(ctx: &TcContext, offset: u32, len: u32) -> Option<u32> {
    ctx.pull_data(offset + len).ok()?;
    match len {
        40 => sum_words::<10>(ctx, offset as usize),
        28 => sum_words::<7>(ctx, offset as usize),
        60 => sum_words::<15>(ctx, offset as usize),
        _ => sum_words::<12>(ctx, offset as usize),
    }
}

#[inline(always)]
fn sum_words<const N: usize>(ctx: &TcContext, offset: usize) -> Option<u32> {
    let words = words::<N>(ctx, offset)?;
    // SAFETY: a buffer of N words on the stack.
    let sum = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            words.as_ptr().cast_mut(),
            (N * 4) as u32,
            0,
        )
    };
    u32::try_from(sum).ok()
}
