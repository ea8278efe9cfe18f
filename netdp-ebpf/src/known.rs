//! What this CPU has found out lately, so that it need not look it up for each
//! packet: the time, the uplink, and pairs of addresses between which packets are bypassed.
//! It counts for one epoch of the settings only, the time for one
//! jiffy.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use netdp_common::abi::{SETTING_NONE_STICKY, Settings, Uplink};
use netdp_common::addr::Addr;
use netdp_common::tuple::pair_slot;

/// Pairs that are remembered: a table without chains, where the last one stays.
/// 1,024 of them take 40 KiB of each CPU, about a cache of the first level.
const PAIRS: u32 = 1024;

/// Packets between these two are bypassed.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pair {
    pod: Addr,
    peer: Addr,
    epoch: u32,
    /// 1 if it is one.
    valid: u32,
}

/// What the last packet needed.
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

/// Whether this pair was found to be bypassed.
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

/// Remembers what was found in `epoch`.
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

/// By words: a comparison of arrays would call memcmp.
#[inline(always)]
fn same(a: &Addr, b: &Addr) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Has `last` hold the uplink and the epoch: looked up with `find` where they are
/// others. `epoch` was read before.
///
/// # Safety
/// `last` is this CPU's.
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

/// Nanoseconds of `CLOCK_MONOTONIC`, at most a jiffy late. The verifier puts
/// `bpf_jiffies64` in line; the clock is a call.
///
/// # Safety
/// `last` is this CPU's.
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
