//! The kernel's routing tables.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LOOKUP_OUTPUT,
    BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
};
use aya_ebpf::helpers::bpf_fib_lookup as lookup_helper;
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use netdp_common::addr::{Addr, Family};

/// Address families of include/linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What a lookup found: its code, and the parameters as the helper left them.
struct Found {
    code: u32,
    params: MaybeUninit<bpf_fib_lookup>,
}

/// Looks a destination up as of the packet's device.
#[inline(always)]
fn lookup(ctx: &TcContext, dst: &Addr, family: Family, flags: u32) -> Option<Found> {
    let mut params = MaybeUninit::<bpf_fib_lookup>::uninit();
    let p = params.as_mut_ptr();
    // SAFETY: the buffer is a bpf_fib_lookup, all 64 bytes of which are written
    // before the helper reads them.
    let code = unsafe {
        p.cast::<[u64; 8]>().write([0; 8]);
        (*p).ifindex = (*ctx.skb.skb).ifindex;
        // With a length the helper compares that with the MTU, and not the packet's own.
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

/// The address that the kernel would choose for a packet of the node's own.
/// `bpf_fib_lookup` with `BPF_FIB_LOOKUP_SRC` (Linux 6.7) gives what
/// `fib_result_prefsrc` and `ipv6_dev_get_saddr` choose (net/core/filter.c).
#[inline(never)]
pub fn source(ctx: &TcContext, dst: &Addr, family: Family) -> Option<Addr> {
    let flags = BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC;
    let Found { code, params } = lookup(ctx, dst, family, flags)?;
    // The source is set too where the packet would be too big.
    if code != 0 && code != BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return None;
    }
    // SAFETY: `lookup` has written all of it.
    let params = unsafe { params.assume_init_ref() };
    // SAFETY: on success the helper has set the family's source.
    Some(unsafe {
        match family {
            Family::V4 => Addr::from_v4_word(params.__bindgen_anon_3.ipv4_src),
            Family::V6 => Addr::from_words(params.__bindgen_anon_3.ipv6_src),
        }
    })
}

/// What the route to an address says.
pub struct Route {
    /// The interface.
    pub ifindex: u32,
    /// There is no gateway on the way.
    pub direct: bool,
    /// A neighbour has the address.
    pub resolved: bool,
}

/// The route to `addr`, a pod.
#[inline(never)]
pub fn route(ctx: &TcContext, addr: &Addr, family: Family, route: &mut Route) -> bool {
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
    // SAFETY: the lookup leaves the destination there, or the gateway to it.
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

/// The interface that leads to `dst`, a pod.
#[inline(never)]
pub fn interface(ctx: &TcContext, dst: &Addr, family: Family) -> Option<u32> {
    let Found { code, params } = lookup(ctx, dst, family, 0)?;
    // There may be a route, but no neighbour yet.
    if code != 0 && code != BPF_FIB_LKUP_RET_NO_NEIGH {
        return None;
    }
    // SAFETY: `lookup` has written all of it.
    Some(unsafe { params.assume_init_ref() }.ifindex)
}
