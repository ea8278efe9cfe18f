//! The policy, and the kernel's routing tables.

use super::TcEnv;
use crate::maps::{
    BYPASS_PAIR_BITS, BYPASS_PAIRS, LOCAL_ADDRS, POLICY_0, POLICY_1, REACH, SOURCE_BITS, SOURCES,
};
use crate::{cache, fib};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::btf_maps::lpm_trie::Key as TrieKey;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::btf_map;
use netdp_common::env::{
    EgressRoute, Interface as _, Masqueraded, PodRoute, Policy, Reaching, Routes,
};
use netdp_common::layout::{
    Addr, Family, PolicyValue, Reach, SOURCE_ANY_IP, SourceKey, Tuple, pair_index,
};
use netdp_common::slot::{PairSlot, ReachSlot};

/// The route of the current packet.
#[btf_map]
static ROUTE: PerCpuArray<EgressRoute, 1> = PerCpuArray::new();

impl Policy for TcEnv<'_> {
    #[inline(always)]
    fn is_local(&self, addr: &Addr) -> bool {
        LOCAL_ADDRS.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn is_any_ip(&self, addr: &Addr) -> bool {
        any_ip(addr)
    }

    #[inline(always)]
    fn lookup_policy(&self, dst: &Addr) -> Option<PolicyValue> {
        let key = TrieKey::new(128, *dst);
        let value = if self.settings.active_policy == 0 {
            POLICY_0.get(&key)
        } else {
            POLICY_1.get(&key)
        };
        value.copied()
    }

    #[inline(always)]
    fn pair_bits(&self) -> u32 {
        // SAFETY: a static. Volatile, because the loader replaces its value.
        unsafe { (&raw const BYPASS_PAIR_BITS).read_volatile() }
    }

    #[inline(always)]
    fn lookup_pair(&self, index: u32) -> Option<PairSlot> {
        // SAFETY: a helper without arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same CPU.
        BYPASS_PAIRS
            .get_ptr_mut(pair_index(cpu, self.pair_bits(), index))
            .map(|pair| unsafe { PairSlot::new(pair) })
    }

    #[inline(always)]
    fn lookup_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32) -> Option<Masqueraded> {
        cache::lookup_masqueraded(pod, peer, epoch, self.ingress_ifindex())
    }

    #[inline(always)]
    fn cache_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32, known: Masqueraded) {
        cache::insert_masqueraded(pod, peer, epoch, self.ingress_ifindex(), known);
    }
}

impl Reaching for TcEnv<'_> {
    #[inline(always)]
    fn lookup_reach(&self, network: &Addr) -> Option<ReachSlot> {
        let reach = REACH.get_ptr_mut(network)?;
        // SAFETY: a map value, which stays readable and writable while the program runs.
        Some(unsafe { ReachSlot::new(reach) })
    }

    #[inline(always)]
    fn insert_reach(&self, network: &Addr, reach: &Reach) {
        // The map evicts its least recently used entry.
        let _ = REACH.insert(network, reach, 0);
    }
}

impl Routes for TcEnv<'_> {
    #[inline(always)]
    fn lookup_route(&self, tuple: &Tuple, family: Family) -> Option<&EgressRoute> {
        let route = ROUTE.get_ptr_mut(0)?;
        // SAFETY: each CPU has its own value, and a TC program uses one at a time; zeroes are a
        // valid `EgressRoute`.
        let route = unsafe { &mut *route };
        fib::egress_route(self.ctx, tuple, family, route).then_some(route)
    }

    #[inline(always)]
    fn lookup_source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
        // SAFETY: a TC program's context is readable for the program's run.
        let here = unsafe { (*self.ctx.skb.skb).ifindex };
        match SOURCES.get(&TrieKey::new(SOURCE_BITS, *key)) {
            Some(source) if source.via == here => {
                *addr = source.addr;
                true
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn lookup_pod_route(&self, addr: &Addr, family: Family) -> Option<PodRoute> {
        let mut route = PodRoute {
            ifindex: 0,
            direct: false,
            resolved: false,
        };
        fib::pod_route(self.ctx, addr, family, &mut route).then_some(route)
    }
}

/// Reports whether the node receives packets to an address that it does not have.
#[inline(never)]
fn any_ip(addr: &Addr) -> bool {
    let key = SourceKey {
        link: SOURCE_ANY_IP,
        addr: *addr,
    };
    SOURCES.get(&TrieKey::new(SOURCE_BITS, key)).is_some()
}
