//! Caches of address pairs, on each CPU: tables without chains, in which the last pair replaces the
//! earlier one, and each pair is valid for one epoch of the settings.
//!
//! The bypass cache has pairs between which packets are bypassed, in both directions. The other one
//! has pairs whose new flows are masqueraded, and what was found out about the pod.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use netdp_common::layout::Addr;
use netdp_common::packet::pair_slot;
use netdp_common::slot::Key;

/// Slots of the bypass cache. 1,024 pairs take 40 KiB of each CPU, about the size of a first-level cache.
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

/// Slots of the cache of masqueraded pairs: 256 take 14 KiB of each CPU.
const MASQUERADED: u32 = 256;

/// A pod and a peer; flows of the pod to that peer are masqueraded.
#[repr(C)]
#[derive(Clone, Copy)]
struct Masqueraded {
    pod: Addr,
    peer: Addr,
    /// The key of the pod.
    key: Key,
    epoch: u32,
    /// The index of the interface by which its packets come, behind which it is; 0 if the slot is
    /// not in use.
    came_by: u32,
}

#[btf_map]
static MASQUERADE_CACHE: PerCpuArray<Masqueraded, { MASQUERADED as usize }> = PerCpuArray::new();

/// Returns the key of the pod if this pair was cached in `epoch`, for packets that come by this
/// interface.
#[inline(always)]
pub fn lookup_masqueraded(pod: &Addr, peer: &Addr, epoch: u32, came_by: u32) -> Option<Key> {
    let pair = MASQUERADE_CACHE.get_ptr(pair_slot(pod, peer, MASQUERADED.ilog2()))?;
    // SAFETY: this CPU's own entry.
    let pair = unsafe { &*pair };
    let is_same = came_by != 0
        && pair.came_by == came_by
        && pair.epoch == epoch
        && pair.peer.is_same(peer)
        && pair.pod.is_same(pod);
    is_same.then_some(pair.key)
}

/// Adds a pair that was found masqueraded in `epoch`.
#[inline(always)]
pub fn insert_masqueraded(pod: &Addr, peer: &Addr, epoch: u32, came_by: u32, key: Key) {
    if let Some(pair) = MASQUERADE_CACHE.get_ptr_mut(pair_slot(pod, peer, MASQUERADED.ilog2())) {
        let found = Masqueraded {
            pod: *pod,
            peer: *peer,
            key,
            epoch,
            came_by,
        };
        // SAFETY: this CPU's own entry.
        unsafe { pair.write(found) };
    }
}
