//! Lookups in the kernel's routing tables.

use crate::maps::{SOURCE_BITS, SOURCES};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SKIP_NEIGH,
    BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_fib_lookup as lookup_helper, bpf_skb_load_bytes_relative};
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use netdp_common::env::{EgressRoute, PodRoute};
use netdp_common::layout::{Addr, Family, SourceKey, Tuple, proto};

/// Address families of include/linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The result of a lookup: its code, and the parameters as the helper left them.
struct Found {
    code: u32,
    params: MaybeUninit<bpf_fib_lookup>,
}

/// Looks up a destination from the packet's device.
#[inline(always)]
fn lookup(ctx: &TcContext, dst: &Addr, family: Family, flags: u32) -> Option<Found> {
    let mut params = MaybeUninit::<bpf_fib_lookup>::uninit();
    let p = params.as_mut_ptr();
    // SAFETY: the buffer is a bpf_fib_lookup, all 64 bytes of which are written
    // before the helper reads them.
    let code = unsafe {
        p.cast::<[u64; 8]>().write([0; 8]);
        (*p).ifindex = (*ctx.skb.skb).ifindex;
        // If a length is set, the helper compares it with the MTU, and not the packet's own.
        (*p).__bindgen_anon_1.tot_len = 1;
        let to = dst.words();
        match family {
            Family::V4 => {
                (*p).family = AF_INET;
                (*p).__bindgen_anon_4.ipv4_dst = to[3];
            }
            Family::V6 => {
                (*p).family = AF_INET6;
                (*p).__bindgen_anon_4.ipv6_dst = to;
            }
        }
        lookup_helper(ctx.as_ptr(), p, size_of::<bpf_fib_lookup>() as i32, flags)
    };
    u32::try_from(code).ok().map(|code| Found { code, params })
}

/// Includes the mark in the lookup (`BPF_FIB_LOOKUP_MARK`, Linux 6.10; not in the bindings yet).
const MARK: u32 = 1 << 5;

/// Finds the route that a forwarded packet with this tuple takes by this uplink, and the source
/// that it gives. First as the kernel has routed the packet: by its source, mark, DSCP, ports and
/// ingress interface, so that `ip rule` applies. If that does not lead here (a mark that was set
/// later, a packet that others redirected), by the routes of this uplink alone.
#[inline(never)]
pub fn egress_route(
    ctx: &TcContext,
    tuple: &Tuple,
    family: Family,
    route: &mut EgressRoute,
) -> bool {
    // SAFETY: a TC program's context is readable for the program's run.
    let (here, came_by) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).ingress_ifindex) };
    if came_by != 0 && find_route(ctx, tuple, family, came_by, route) && leads_here(route, here) {
        return true;
    }
    find_route(ctx, tuple, family, 0, route) && route.link == here
}

/// Reports whether a route leads to the interface with this index: to that itself, or to a VLAN
/// device that the agent knows to be stacked on it.
#[inline(never)]
fn leads_here(route: &EgressRoute, here: u32) -> bool {
    if route.link == here {
        return true;
    }
    let key = SourceKey {
        link: route.link,
        addr: route.next,
    };
    (SOURCES.get(&Key::new(SOURCE_BITS, key))).is_some_and(|source| source.via == here)
}

/// Reports whether the kernel, routing a packet with this tuple from its ingress interface, would
/// send it by this uplink with the source address `mac`.
#[inline(never)]
pub fn sends_as(ctx: &TcContext, tuple: &Tuple, family: Family, mac: &[u8; 6]) -> bool {
    let mut params = MaybeUninit::<bpf_fib_lookup>::uninit();
    let p = params.as_mut_ptr();
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: as in `find_route`.
    unsafe {
        p.cast::<[u64; 8]>().write([0; 8]);
        (*p).ifindex = (*ctx.skb.skb).ingress_ifindex;
        (*p).__bindgen_anon_1.tot_len = 1;
        fill(ctx, p, tuple, family);
        (&raw mut (*p).smac)
            .cast::<u32>()
            .write((*ctx.skb.skb).mark);
        let mut code = lookup_helper(ctx.as_ptr(), p, size, MARK);
        if code < 0 {
            code = lookup_helper(ctx.as_ptr(), p, size, 0);
        }
        let [a, b, c, d, e, f] = (*p).smac;
        let [g, h, i, j, k, l] = *mac;
        code == 0 && (a ^ g) | (b ^ h) | (c ^ i) | (d ^ j) | (e ^ k) | (f ^ l) == 0
    }
}

/// Bits of an IPv6 header's first word that hold traffic class and flow label, in memory order
/// (`IPV6_FLOWINFO_MASK`, include/uapi/linux/in6.h, Linux 6.12).
const FLOWINFO: u32 = 0x0fff_ffff_u32.to_be();

/// Fills in protocol, addresses, ports, and the DSCP of the packet.
///
/// # Safety
/// `p` must be a complete `bpf_fib_lookup`.
#[inline(always)]
unsafe fn fill(ctx: &TcContext, p: *mut bpf_fib_lookup, tuple: &Tuple, family: Family) {
    // SAFETY: by the contract; the helper writes the first word of the IP header, or zeroes, into
    // the field of DSCP and flow label.
    unsafe {
        let word = &raw mut (*p).__bindgen_anon_2.flowinfo;
        bpf_skb_load_bytes_relative(ctx.as_ptr(), 0, word.cast(), 4, BPF_HDR_START_NET);
        let [_, tos, ..] = (*word).to_ne_bytes();
        *word = match family {
            // The union's first byte, on machines of either byte order.
            Family::V4 => u32::from_ne_bytes([tos, 0, 0, 0]),
            Family::V6 => *word & FLOWINFO,
        };
        (*p).l4_protocol = tuple.proto as u8;
        if matches!(tuple.proto, proto::TCP | proto::UDP) {
            (*p).sport = tuple.src_id.to_be();
            (*p).dport = tuple.dst_id.to_be();
        }
        let (from, to) = (tuple.src.words(), tuple.dst.words());
        match family {
            Family::V4 => {
                (*p).family = AF_INET;
                (*p).__bindgen_anon_3.ipv4_src = from[3];
                (*p).__bindgen_anon_4.ipv4_dst = to[3];
            }
            Family::V6 => {
                (*p).family = AF_INET6;
                (*p).__bindgen_anon_3.ipv6_src = from;
                (*p).__bindgen_anon_4.ipv6_dst = to;
            }
        }
    }
}

/// Looks up the route once; `came_by` 0 stands for packets that leave by this uplink.
#[inline(never)]
fn find_route(
    ctx: &TcContext,
    tuple: &Tuple,
    family: Family,
    came_by: u32,
    route: &mut EgressRoute,
) -> bool {
    let mut params = MaybeUninit::<bpf_fib_lookup>::uninit();
    let p = params.as_mut_ptr();
    let size = size_of::<bpf_fib_lookup>() as i32;
    let mut flags = BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC | MARK;
    // SAFETY: the buffer is a bpf_fib_lookup, all 64 bytes of which are written before the
    // helper reads them; a TC program's context is readable for the program's run.
    unsafe {
        p.cast::<[u64; 8]>().write([0; 8]);
        let skb = ctx.skb.skb;
        (*p).ifindex = came_by;
        if came_by == 0 {
            (*p).ifindex = (*skb).ifindex;
            flags |= BPF_FIB_LOOKUP_OUTPUT;
        }
        // If a length is set, the helper compares it with the MTU, and not the packet's own.
        (*p).__bindgen_anon_1.tot_len = 1;
        fill(ctx, p, tuple, family);
        // The union of the two hardware addresses begins with the mark.
        (&raw mut (*p).smac).cast::<u32>().write((*skb).mark);
        let mut code = lookup_helper(ctx.as_ptr(), p, size, flags);
        if code < 0 {
            // Linux 6.7 to 6.9 do not support the one flag, earlier ones neither; nothing is
            // written then.
            code = lookup_helper(ctx.as_ptr(), p, size, flags & !MARK);
        }
        route.has_source = 1;
        if code < 0 {
            let plain = flags & !(MARK | BPF_FIB_LOOKUP_SRC);
            code = lookup_helper(ctx.as_ptr(), p, size, plain);
            route.has_source = 0;
        }
        // IPv6, if no interface has an address; the other fields are set (not in the bindings yet).
        const NO_SRC_ADDR: i64 = 9;
        match code {
            0 => {}
            NO_SRC_ADDR => route.has_source = 0,
            _ => return false,
        }
        route.link = (*p).ifindex;
        let source = (*p).__bindgen_anon_3;
        let next = (*p).__bindgen_anon_4;
        // An IPv4 route may have an IPv6 next hop; the helper then sets the family.
        route.next = if (*p).family == AF_INET {
            Addr::from_v4_word(next.ipv4_dst)
        } else {
            Addr::from_words(next.ipv6_dst)
        };
        route.source = match family {
            Family::V4 => Addr::from_v4_word(source.ipv4_src),
            Family::V6 => Addr::from_words(source.ipv6_src),
        };
    }
    true
}

/// Looks up the route to `addr`, a pod; returns `false` if there is none.
#[inline(never)]
pub fn pod_route(ctx: &TcContext, addr: &Addr, family: Family, route: &mut PodRoute) -> bool {
    let Some(Found { code, params }) = lookup(ctx, addr, family, 0) else {
        return false;
    };
    if code != 0 && code != BPF_FIB_LKUP_RET_NO_NEIGH {
        return false;
    }
    // SAFETY: `lookup` has written all of it.
    let params = unsafe { params.assume_init_ref() };
    route.ifindex = params.ifindex;
    route.resolved = code == 0;
    // SAFETY: the lookup leaves the destination there, or its gateway.
    route.direct = unsafe {
        match family {
            Family::V4 => {
                params.family == AF_INET && params.__bindgen_anon_4.ipv4_dst == addr.words()[3]
            }
            Family::V6 => {
                let [a, b, c, d] = params.__bindgen_anon_4.ipv6_dst;
                let [e, f, g, h] = addr.words();
                (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
            }
        }
    };
    true
}

/// Returns the index of the interface that leads to `dst`, a pod.
#[inline(never)]
pub fn interface(ctx: &TcContext, dst: &Addr, family: Family) -> Option<u32> {
    let Found { code, params } = lookup(ctx, dst, family, 0)?;
    // There may be a route without a neighbour entry yet.
    if code != 0 && code != BPF_FIB_LKUP_RET_NO_NEIGH {
        return None;
    }
    // SAFETY: `lookup` has written all of it.
    Some(unsafe { params.assume_init_ref() }.ifindex)
}
