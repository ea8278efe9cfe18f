//! Per-CPU cache: the time, the uplink, and pairs of addresses between which packets are bypassed.
//! Valid for one epoch of the settings only, the time for one jiffy.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use netdp_common::abi::{SETTING_NONE_STICKY, Settings, Uplink};
use netdp_common::addr::Addr;
use netdp_common::tuple::pair_slot;

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

/// The state cached for the last packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Last {
    pub uplink: Uplink,
    ifindex: u32,
    pub epoch: u32,
    jiffies: u64,
    ns: u64,
}

#[btf_map]
static KNOWN_PAIRS: PerCpuArray<Pair, { PAIRS as usize }> = PerCpuArray::new();

/// Reports whether this pair is in the bypass cache.
#[inline(always)]
pub fn is_bypassed(settings: &Settings, epoch: u32, pod: &Addr, peer: &Addr) -> bool {
    if settings.flags & SETTING_NONE_STICKY == 0 {
        return false;
    }
    let Some(pair) = KNOWN_PAIRS.get_ptr(pair_slot(pod, peer, PAIRS.ilog2())) else {
        return false;
    };
    // SAFETY: this CPU's own entry.
    let pair = unsafe { &*pair };
    pair.valid != 0 && pair.epoch == epoch && same(&pair.peer, peer) && same(&pair.pod, pod)
}

/// Adds a pair that was found bypassed in `epoch`.
#[inline(always)]
pub fn set_bypassed(settings: &Settings, epoch: u32, pod: &Addr, peer: &Addr) {
    if settings.flags & SETTING_NONE_STICKY == 0 {
        return;
    }
    if let Some(pair) = KNOWN_PAIRS.get_ptr_mut(pair_slot(pod, peer, PAIRS.ilog2())) {
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

/// Reports whether the addresses are equal. Compares words: a comparison of arrays would call
/// memcmp.
#[inline(always)]
fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Refreshes the uplink in `last`, by a lookup with `find`, if the interface or the epoch has
/// changed. `epoch` was read before.
///
/// # Safety
/// `last` must be this CPU's.
#[inline(always)]
pub unsafe fn see_uplink<'a>(
    last: *mut Last,
    epoch: u32,
    ifindex: u32,
    find: impl FnOnce() -> Option<&'a Uplink>,
) -> Option<()> {
    // SAFETY: this CPU's own entry, which nothing else writes during the run.
    unsafe {
        if (*last).ifindex != ifindex || (*last).epoch != epoch {
            (*last).uplink = *find()?;
            (*last).ifindex = ifindex;
            (*last).epoch = epoch;
        }
        Some(())
    }
}

/// Returns nanoseconds of `CLOCK_MONOTONIC`, at most a jiffy late. The verifier inlines
/// `bpf_jiffies64`; the clock is a call.
///
/// # Safety
/// `last` must be this CPU's.
#[inline(always)]
pub unsafe fn now(last: *mut Last) -> u64 {
    // SAFETY: helpers without arguments; this CPU's own entry.
    unsafe {
        let jiffies = bpf_jiffies64();
        if (*last).jiffies != jiffies {
            (*last).ns = bpf_ktime_get_coarse_ns();
            (*last).jiffies = jiffies;
        }
        (*last).ns
    }
}
