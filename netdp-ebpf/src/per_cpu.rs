//! Per-CPU state: what is cached for the last packet, and the scratch.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use netdp_common::layout::Uplink;
use netdp_common::nat::scratch::Scratch;

/// The state cached for the last packet: the uplink, valid for one epoch of the settings, and the
/// time, valid for one jiffy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Last {
    pub uplink: Uplink,
    ifindex: u32,
    pub epoch: u32,
    /// The number of the uplink, the index of its counters.
    pub number: u32,
    /// Bytes before the IP header of packets there.
    pub l2_len: u32,
    jiffies: u64,
    ns: u64,
}

/// Per-CPU state, in one map value because every map lookup costs.
#[repr(C)]
struct PerCpu {
    last: Last,
    scratch: Scratch,
}

#[btf_map]
static PER_CPU: PerCpuArray<PerCpu, 2> = PerCpuArray::new();

/// The programs that do not share their state.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Side {
    /// Those at an uplink.
    Uplink = 0,
    /// Those at an interface towards pods, which has no addresses to masquerade with.
    Pods = 1,
}

/// Returns this CPU's cached state and its scratch.
///
/// # Safety
/// At most one call in a run of a program.
#[inline(always)]
pub unsafe fn per_cpu<'a>(side: Side) -> Option<(*mut Last, &'a mut Scratch)> {
    let state = PER_CPU.get_ptr_mut(side as u32)?;
    // SAFETY: each CPU has its own value and runs one TC program at a time, with bottom halves off,
    // which calls this once; the two are fields of one value that do not overlap, and zeroes are a
    // valid `Scratch`.
    unsafe { Some((&raw mut (*state).last, &mut (*state).scratch)) }
}

/// Refreshes the uplink in `last`, by a lookup with `find`, if the interface or the epoch has
/// changed. `epoch` was read before.
///
/// # Safety
/// `last` must be this CPU's.
#[inline(always)]
pub unsafe fn refresh_uplink<'a>(
    last: *mut Last,
    epoch: u32,
    ifindex: u32,
    find: impl FnOnce() -> Option<&'a Uplink>,
) -> Option<()> {
    // SAFETY: this CPU's own entry, which nothing else writes during the run.
    unsafe {
        if (*last).ifindex != ifindex || (*last).epoch != epoch {
            (*last).uplink = *find()?;
            (*last).number = (*last).uplink.number();
            (*last).l2_len = (*last).uplink.l2_len;
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
