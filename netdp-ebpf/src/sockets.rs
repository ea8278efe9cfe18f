//! Lookups of the node's sockets.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as SockTuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as SockTuple6,
};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use netdp_common::layout::{Tuple, proto};

/// Reports whether a socket, including a listener, would receive packets with the tuple `wire`. The
/// lookup is in the namespace of the packet's device.
#[inline(never)]
pub fn receives(ctx: &TcContext, wire: &Tuple) -> bool {
    // Uninitialised beyond the family's part: zeroing would call memset, whose returned pointer the
    // verifier rejects.
    let mut key = MaybeUninit::<bpf_sock_tuple>::uninit();
    let (sport, dport) = (wire.src_id.to_be(), wire.dst_id.to_be());
    let size = if wire.src.is_v4() {
        let v4 = SockTuple4 {
            saddr: wire.src.words()[3],
            daddr: wire.dst.words()[3],
            sport,
            dport,
        };
        // SAFETY: the union holds this variant.
        unsafe { key.as_mut_ptr().cast::<SockTuple4>().write(v4) };
        size_of::<SockTuple4>()
    } else {
        let v6 = SockTuple6 {
            saddr: wire.src.words(),
            daddr: wire.dst.words(),
            sport,
            dport,
        };
        // SAFETY: the union holds this variant.
        unsafe { key.as_mut_ptr().cast::<SockTuple6>().write(v6) };
        size_of::<SockTuple6>()
    } as u32;
    let key = key.as_mut_ptr();
    let ctx = ctx.as_ptr();
    /// `BPF_F_CURRENT_NETNS` of include/uapi/linux/bpf.h.
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: `key` is initialised up to `size`; a socket that is found is
    // released before anything else happens.
    unsafe {
        if wire.proto == proto::TCP {
            let sk = bpf_skc_lookup_tcp(ctx, key, size, CURRENT_NETNS, 0);
            if sk.is_null() {
                return false;
            }
            bpf_sk_release(sk.cast());
            true
        } else {
            let sk = bpf_sk_lookup_udp(ctx, key, size, CURRENT_NETNS, 0);
            if sk.is_null() {
                return false;
            }
            bpf_sk_release(sk.cast());
            true
        }
    }
}
