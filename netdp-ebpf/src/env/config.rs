//! The clock, the counters, the configuration and the interface of a packet.

use super::TcEnv;
use crate::maps::{COUNTERS, LIMITS, MACS, PORT_SEARCHES, REFUSALS, UPLINKS};
use crate::per_cpu::{self, Last};
use crate::{bounded_loop, events, fib, skb};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::programs::TcContext;
use netdp_common::env::{BoundedLoop, Clock, Config, Counting, Events, Interface};
use netdp_common::flow::TICK_SHIFT;
use netdp_common::layout::{
    Counters, DropReason, Family, Limits, MacKey, Settings, Traffic, Tuple, UPLINK_OBSERVED, Uplink,
};

impl Clock for TcEnv<'_> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap by design")]
    fn now(&self) -> u32 {
        // SAFETY: this run's `last`.
        let ns = unsafe { per_cpu::now(self.last) };
        ((ns >> TICK_SHIFT) as u32).wrapping_add(self.settings.clock_offset)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl Counting for TcEnv<'_> {
    #[inline(always)]
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        if let Some(counters) = COUNTERS.get_ptr_mut(self.number()) {
            // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same
            // CPU, and a lost count would be harmless.
            let count = counter(unsafe { &mut *counters });
            *count += 1;
        }
    }

    #[inline(always)]
    fn count_traffic(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic, more: &Traffic) {
        if let Some(counters) = COUNTERS.get_ptr_mut(self.number()) {
            // SAFETY: as above.
            counter(unsafe { &mut *counters }).add(more);
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        let reason = reason as u32;
        // SAFETY: a local. Volatile, so that LLVM does not assume that an enum is in bounds and
        // keeps the check that the verifier needs.
        let index = unsafe { (&raw const reason).read_volatile() } as usize;
        if let Some(counters) = COUNTERS.get_ptr_mut(self.number())
            && index < DropReason::ALL.len()
        {
            // SAFETY: `Drops` is repr(C) with one u64 for each reason, in order.
            unsafe { *(&raw mut (*counters).drops).cast::<u64>().add(index) += 1 };
        }
    }

    #[inline(always)]
    fn count_refusal(&self, bucket: u32) {
        if let Some(refusals) = REFUSALS.get_ptr_mut(bucket) {
            // SAFETY: a map value; an addition by another CPU at the same time may be lost.
            unsafe { *refusals += 1 };
        }
    }

    #[inline(always)]
    fn count_search(&self, candidates: u32) {
        if let Some(counted) = PORT_SEARCHES.get_ptr_mut(0) {
            // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same CPU.
            unsafe { (*counted).count_search(candidates) };
        }
    }

    #[inline(always)]
    fn count_protocol(&self, protocol: u32) {
        if let Some(counted) = PORT_SEARCHES.get_ptr_mut(0) {
            // SAFETY: as above.
            unsafe { (*counted).count_protocol(protocol) };
        }
    }
}

impl Events for TcEnv<'_> {
    #[inline(always)]
    fn report_begin(&self, tuple: &Tuple, wire: &Tuple, rule: u32) -> bool {
        events::begin(self, tuple, wire, rule)
    }
}

impl Config for TcEnv<'_> {
    #[inline(always)]
    fn settings(&self) -> &Settings {
        self.settings
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        // SAFETY: this run's `last`.
        unsafe { (*self.last).epoch }
    }

    #[inline(always)]
    fn uplink(&self) -> &Uplink {
        // SAFETY: this run's `last`, whose uplink does not change during the run.
        unsafe { &(*self.last).uplink }
    }

    #[inline(always)]
    fn is_uplink(&self, ifindex: u32) -> bool {
        // SAFETY: a reference; entries are replaced, not freed under a running program.
        let uplink = unsafe { UPLINKS.get(ifindex) };
        uplink.is_some_and(|uplink| uplink.flags & UPLINK_OBSERVED == 0)
    }

    #[inline(always)]
    fn limits(&self) -> &Limits {
        // The entry always exists; the verifier requires the check.
        LIMITS.get(0).unwrap_or(&UNLIMITED)
    }
}

impl TcEnv<'_> {
    /// Returns the index of the interface's counters.
    #[inline(always)]
    fn number(&self) -> u32 {
        // SAFETY: this run's `last`.
        unsafe { (*self.last).number }
    }
}

impl Interface for TcEnv<'_> {
    #[inline(always)]
    fn l3_len(&self) -> u32 {
        // SAFETY: this run's `last`.
        self.ctx.len().wrapping_sub(unsafe { (*self.last).l2_len })
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.ctx.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool {
        self.uplink().l2_len != 0 && bridged(self.ctx, self.last, tuple, family)
    }

    #[inline(always)]
    fn has_foreign_mac(&self) -> bool {
        self.uplink().l2_len != 0 && has_foreign_mac(self.ctx, self.last)
    }

    #[inline(always)]
    fn is_sent_by_socket(&self) -> bool {
        // SAFETY: readable in the context of a TC program; a null check only.
        unsafe { !(*self.ctx.skb.skb).__bindgen_anon_2.sk.is_null() }
    }
}

impl BoundedLoop for TcEnv<'_> {
    #[inline(always)]
    fn bounded_loop<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool,
    {
        bounded_loop::run(self, n, state, step);
    }
}

/// Reports whether the source hardware address of the packet is none of those by which the node
/// sends. If the agent does not know an address yet, the kernel's routes decide.
#[inline(never)]
fn bridged(ctx: &TcContext, last: *mut Last, tuple: &Tuple, family: Family) -> bool {
    foreign_mac(ctx, last).is_some_and(|mac| !fib::sends_as(ctx, tuple, family, &mac))
}

/// Reports what [`bridged`] does, by the addresses that the agent knows alone.
#[inline(never)]
fn has_foreign_mac(ctx: &TcContext, last: *mut Last) -> bool {
    foreign_mac(ctx, last).is_some()
}

/// Returns the source hardware address of the packet if the agent has recorded those by which the
/// node sends at this interface, and it is none of them.
#[inline(always)]
fn foreign_mac(ctx: &TcContext, last: *mut Last) -> Option<[u8; 6]> {
    // SAFETY: a TC program's context is readable for the program's run.
    let link = unsafe { (*ctx.skb.skb).ifindex };
    let mac = skb::read::source_mac(ctx)?;
    let [a, b, c, d, e, f] = mac;
    let words = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
    // SAFETY: this CPU's own entry; nearly all packets have the same address.
    let [g, h, i] = unsafe { (*last).mac };
    if (words[0] ^ g) | (words[1] ^ h) | (words[2] ^ i) == 0 {
        return None;
    }
    let mut key = MacKey { link, mac, pad: 0 };
    if MACS.get_ptr(key).is_some() {
        // SAFETY: as above.
        unsafe { (*last).mac = words };
        return None;
    }
    key.mac = [0; 6];
    MACS.get_ptr(key).is_some().then_some(mac)
}

/// Replaces an entry that always exists.
static UNLIMITED: Limits = Limits::UNLIMITED;
