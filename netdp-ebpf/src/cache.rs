//! The bypass cache: per-CPU pairs of addresses between which packets are bypassed, each valid for
//! one epoch of the settings.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use netdp_common::layout::Addr;
use netdp_common::packet::pair_slot;

/// Slots of the bypass cache: a table without chains, in which the last pair replaces the earlier
/// one. 1,024 pairs take 40 KiB of each CPU, about the size of a first-level cache.
const PAIRS: u32 = 1024;

/// A pair of addresses between which packets are bypassed.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    pod: Addr,
    peer: Addr,
    epoch: u32,
    /// 1 if the slot is in use.
    valid: u32,
}

#[btf_map]
static BYPASS_CACHE: PerCpuArray<Pair, { PAIRS as usize }> = PerCpuArray::new();

/// Reports whether this pair was cached in `epoch`.
#[inline(always)]
pub fn contains(pod: &Addr, peer: &Addr, epoch: u32) -> bool {
    let Some(pair) = BYPASS_CACHE.get_ptr(pair_slot(pod, peer, PAIRS.ilog2())) else {
        return false;
    };
    // SAFETY: this CPU's own entry.
    let pair = unsafe { &*pair };
    pair.valid != 0 && pair.epoch == epoch && pair.peer.is_same(peer) && pair.pod.is_same(pod)
}

/// Adds a pair that was found bypassed in `epoch`.
#[inline(always)]
pub fn insert(pod: &Addr, peer: &Addr, epoch: u32) {
    if let Some(pair) = BYPASS_CACHE.get_ptr_mut(pair_slot(pod, peer, PAIRS.ilog2())) {
        let found = Pair {
            pod: *pod,
            peer: *peer,
            epoch,
            valid: 1,
        };
        // SAFETY: this CPU's own entry.
        unsafe { pair.write(found) };
    }
}
