//! The queue of fragments that arrive before the first one of their datagram: kept in a map, and
//! reinjected at the device's ingress once the first one has arrived.
//!
//! Bounded by the maps' sizes; the least recently used are evicted.

use crate::skb::Skb;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use core::ffi::{c_long, c_void};
use netdp_common::layout::Tuple;
use netdp_common::skb::FragmentQueue;

/// The largest packet that is queued, in bytes: a jumbo frame.
const MAX_LEN: u32 = 9216;
/// The number of fragments of one datagram that are queued: 64 KiB of 1500-byte packets.
const MAX_FRAGMENTS: u32 = 48;

/// A queued packet, complete.
#[repr(C)]
pub struct Held {
    len: u32,
    bytes: [u8; MAX_LEN as usize],
}

/// Datagram and fragment number (in the upper bits of `proto`) → packet.
#[btf_map]
static HELD: LruHashMap<Tuple, Held, 256> = LruHashMap::new();
/// Datagram → the number of its packets in the queue.
#[btf_map]
static HELD_COUNT: LruHashMap<Tuple, u32, 128> = LruHashMap::new();
/// Buffer for a packet: too large for the stack.
#[btf_map]
static SCRATCH: PerCpuArray<Held, 1> = PerCpuArray::new();

impl FragmentQueue for Skb {
    #[inline(always)]
    fn queue_fragment(&self, datagram: &Tuple) -> bool {
        queue(self, datagram)
    }

    #[inline(always)]
    fn release_fragments(&self, datagram: &Tuple) -> bool {
        release(self, datagram)
    }
}

/// Returns the key of packet `n` of a datagram. Protocols have 8 bits.
#[inline(always)]
const fn slot_key(datagram: &Tuple, n: u32) -> Tuple {
    let mut key = *datagram;
    key.proto |= (n + 1) << 8;
    key
}

/// Returns the length of a packet that fits. No packet has length 0, but LLVM turns a comparison
/// with 0 into one from which Linux 6.1's verifier derives no lower bound, and it rejects copies of
/// 0 bytes.
#[inline(always)]
pub fn bounded(len: u32) -> Option<u32> {
    (len <= MAX_LEN).then_some(if len > 1 { len } else { 1 })
}

/// Copies the packet to this CPU's scratch.
#[inline(always)]
fn copy<'a>(ctx: &TcContext) -> Option<&'a mut Held> {
    let len = bounded(ctx.len())?;
    // SAFETY: this CPU's own; the packet has `len` bytes, which fit into the buffer. A map value is
    // all integers.
    unsafe {
        let held = &mut *SCRATCH.get_ptr_mut(0)?;
        held.len = len;
        let to = (&raw mut held.bytes).cast::<c_void>();
        (bpf_skb_load_bytes(ctx.as_ptr(), 0, to, len) == 0).then_some(held)
    }
}

/// Queues the packet; returns `false` if there is no room.
#[inline(never)]
fn queue(ctx: &TcContext, datagram: &Tuple) -> bool {
    // SAFETY: copied at once.
    let count = unsafe { HELD_COUNT.get(datagram).copied() }.unwrap_or(0);
    if count >= MAX_FRAGMENTS {
        return false;
    }
    let Some(held) = copy(ctx) else {
        return false;
    };
    HELD.insert(slot_key(datagram, count), &*held, 0).is_ok()
        && HELD_COUNT.insert(datagram, count + 1, 0).is_ok()
}

struct Release<'a> {
    ctx: &'a TcContext,
    datagram: &'a Tuple,
    ifindex: u32,
}

/// Reinjects the queued fragments of the datagram whose first fragment this packet is. The skb is
/// reused to carry them, and then restored.
#[inline(never)]
fn release(ctx: &TcContext, datagram: &Tuple) -> bool {
    // SAFETY: copied at once.
    let Some(count) = (unsafe { HELD_COUNT.get(datagram).copied() }) else {
        return true;
    };
    let _ = HELD_COUNT.remove(datagram);
    let Some(first) = copy(ctx) else {
        return true;
    };
    let mut release = Release {
        ctx,
        datagram,
        // SAFETY: a TC program's context is readable for the program's run.
        ifindex: unsafe { (*ctx.skb.skb).ifindex },
    };
    let count = if count > MAX_FRAGMENTS {
        MAX_FRAGMENTS
    } else {
        count
    };
    // SAFETY: the callback gets `release`, alive for the whole call.
    unsafe {
        bpf_loop(
            count,
            send as *mut c_void,
            (&raw mut release).cast::<c_void>(),
            0,
        );
    }
    load_into(ctx, first)
}

unsafe extern "C" fn send(n: u32, release: *mut c_void) -> c_long {
    // SAFETY: `release` passes a `Release`.
    let release = unsafe { &mut *release.cast::<Release<'_>>() };
    let key = slot_key(release.datagram, n);
    // SAFETY: read only while the entry exists; a replacement of it is another packet of the same
    // size limit.
    if let Some(held) = unsafe { HELD.get(key) }
        && load_into(release.ctx, held)
    {
        // SAFETY: a TC program's context. The clone returns to this device's ingress, where the
        // verdict of the first fragment is stored by then.
        unsafe {
            bpf_clone_redirect(release.ctx.skb.skb, release.ifindex, BPF_F_INGRESS.into());
        }
    }
    let _ = HELD.remove(key);
    0
}

/// Loads the queued packet into the skb.
#[inline(always)]
fn load_into(ctx: &TcContext, held: &Held) -> bool {
    let Some(len) = bounded(held.len) else {
        return false;
    };
    let from = (&raw const held.bytes).cast::<c_void>();
    // SAFETY: the buffer has `len` bytes.
    unsafe {
        bpf_skb_change_tail(ctx.skb.skb, len, 0) == 0
            && bpf_skb_store_bytes(ctx.skb.skb, 0, from, len, BPF_F_RECOMPUTE_CSUM.into()) == 0
    }
}
