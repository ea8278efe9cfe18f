//! The cache of masqueraded pairs, on each CPU: a table without chains, in which the last pair
//! replaces the earlier one, and each pair is valid for one epoch of the settings.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use netdp_common::env::Masqueraded;
use netdp_common::layout::Addr;
use netdp_common::packet::pair_slot;

/// Slots of the cache of masqueraded pairs: 256 take 14 KiB of each CPU.
const MASQUERADED: u32 = 256;

/// A pod and a peer; flows of the pod to that peer are masqueraded.
#[repr(C)]
#[derive(Clone, Copy)]
struct MasqueradedPair {
    pod: Addr,
    peer: Addr,
    known: Masqueraded,
    epoch: u32,
    /// The index of the interface by which the pod's packets come and behind which the pod is; 0 if
    /// the slot is not in use.
    came_by: u32,
}

#[btf_map]
static MASQUERADE_CACHE: PerCpuArray<MasqueradedPair, { MASQUERADED as usize }> =
    PerCpuArray::new();

/// Returns what is known of this pair, if that was cached in `epoch`, for packets that come by this
/// interface.
#[inline(always)]
pub fn lookup_masqueraded(
    pod: &Addr,
    peer: &Addr,
    epoch: u32,
    came_by: u32,
) -> Option<Masqueraded> {
    let pair = MASQUERADE_CACHE.get_ptr(pair_slot(pod, peer, MASQUERADED.ilog2()))?;
    // SAFETY: this CPU's own entry.
    let pair = unsafe { &*pair };
    let is_same = came_by != 0
        && pair.came_by == came_by
        && pair.epoch == epoch
        && pair.peer.is_same(peer)
        && pair.pod.is_same(pod);
    is_same.then_some(pair.known)
}

/// Adds a pair that was found masqueraded in `epoch`.
#[inline(always)]
pub fn insert_masqueraded(pod: &Addr, peer: &Addr, epoch: u32, came_by: u32, known: Masqueraded) {
    if let Some(pair) = MASQUERADE_CACHE.get_ptr_mut(pair_slot(pod, peer, MASQUERADED.ilog2())) {
        let found = MasqueradedPair {
            pod: *pod,
            peer: *peer,
            known,
            epoch,
            came_by,
        };
        // SAFETY: this CPU's own entry.
        unsafe { pair.write(found) };
    }
}
