//! The environment of the decisions in the datapath: the maps and helpers for one packet.

use crate::maps::{
    COUNTERS, ENDPOINTS, EXHAUSTED, FRAGMENTS, FRAGMENTS_IN, INBOUND, INBOUND_LIVE, INBOUND_USED,
    IP_ID_SEQUENCES, IP_IDS, LIMITS, LOCAL_ADDRS, MACS, NODE_FLOWS, NODE_PORTS, NODE_PROTOCOLS,
    POLICY_0, POLICY_1, PORT_MAP_OWNERS, PORT_MAPS, RECENT, RECENT_AT, RESERVED_PORTS, REV_SNAT,
    SETTINGS, SHARES, SHARES_ENDED, SNAT, SOURCE_BITS, SOURCES, UPLINKS, WIRE_ENDPOINTS,
};
use crate::per_cpu::{self, Last, Side, per_cpu};
use crate::{bounded_loop, cache, fib, skb, sockets};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use netdp_common::direction::Direction;
use netdp_common::env::{
    BoundedLoop, Clock, Config, Counting, EgressRoute, Fragments, InboundFlows, InsertError,
    Interface, Mappings, Node, PodRoute, Policy, Ports, Routes,
};
use netdp_common::flow::TICK_SHIFT;
use netdp_common::layout::{
    Addr, Counters, DropReason, Endpoint, Family, Fragment, Inbound, Limits, Live, MacKey, Mapping,
    NodeFlow, NodeProtocol, RECENT as RECENT_LEN, SOURCE_ANY_IP, Settings, SourceKey, Tuple,
    UPLINK_OBSERVED, Uplink, node_port_bit,
};
use netdp_common::nat::scratch::Scratch;
use netdp_common::slot::{AskedSlot, LiveSlot, PortMapSlot, ShareSlot, Slot};

/// The route of the current packet.
#[btf_map]
static ROUTE: PerCpuArray<EgressRoute, 1> = PerCpuArray::new();

/// The maps and helpers for one packet.
pub struct TcEnv<'a> {
    ctx: &'a TcContext,
    settings: &'a Settings,
    /// Holds the uplink, and the epoch as it was before any lookup.
    last: *mut Last,
}

impl<'a> TcEnv<'a> {
    /// Returns the environment and the scratch, at an uplink. `None` if the agent has not set up
    /// the interface: then there is nothing to decide.
    ///
    /// # Safety
    /// At most one environment in a run of a program.
    #[inline(always)]
    pub unsafe fn uplink<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Scratch)> {
        let settings = SETTINGS.get(0)?;
        let epoch = epoch(settings);
        // SAFETY: by the contract.
        let (last, scratch) = unsafe { per_cpu(Side::Uplink) }?;
        // SAFETY: a TC program's context is readable for the program's run.
        let ifindex = unsafe { (*ctx.skb.skb).ifindex };
        // SAFETY: entries are replaced, not freed under a running program
        // (the map's memory is reclaimed after a grace period only); fields
        // change all together by replacement.
        unsafe { per_cpu::refresh_uplink(last, epoch, ifindex, || UPLINKS.get(ifindex)) }?;
        let env = Self {
            ctx,
            settings,
            last,
        };
        Some((env, scratch))
    }

    /// Returns the environment and the scratch, at an interface towards pods.
    ///
    /// # Safety
    /// As for [`Self::uplink`].
    #[inline(always)]
    pub unsafe fn pod_side<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Scratch)> {
        let settings = SETTINGS.get(0)?;
        // SAFETY: by the contract.
        let (last, scratch) = unsafe { per_cpu(Side::Pods) }?;
        let env = Self {
            ctx,
            settings,
            last,
        };
        Some((env, scratch))
    }
}

/// Reads the epoch, before any other lookup.
#[inline(always)]
fn epoch(settings: &Settings) -> u32 {
    // SAFETY: a reference. Volatile, so that the read is not deferred.
    unsafe { (&raw const settings.epoch).read_volatile() }
}

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
        if let Some(counters) = COUNTERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same
            // CPU, and a lost count would be harmless.
            let count = counter(unsafe { &mut *counters });
            *count += 1;
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        let reason = reason as u32;
        // SAFETY: a local. Volatile, so that LLVM does not assume that an enum is in bounds and
        // keeps the check that the verifier needs.
        let index = unsafe { (&raw const reason).read_volatile() } as usize;
        if let Some(counters) = COUNTERS.get_ptr_mut(0)
            && index < DropReason::ALL.len()
        {
            // SAFETY: `Drops` is repr(C) with one u64 for each reason, in order.
            unsafe { *(&raw mut (*counters).drops).cast::<u64>().add(index) += 1 };
        }
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

impl Interface for TcEnv<'_> {
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
        self.uplink().l2_len != 0 && bridged(self.ctx, tuple, family)
    }

    #[inline(always)]
    fn is_sent_by_socket(&self) -> bool {
        // SAFETY: readable in the context of a TC program; a null check only.
        unsafe { !(*self.ctx.skb.skb).__bindgen_anon_2.sk.is_null() }
    }
}

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
    fn lookup_policy(&self, dst: &Addr) -> Option<u32> {
        let key = Key::new(128, *dst);
        let value = if self.settings.active_policy == 0 {
            POLICY_0.get(&key)
        } else {
            POLICY_1.get(&key)
        };
        value.map(|value| value.action)
    }

    #[inline(always)]
    fn is_bypass_cached(&self, pod: &Addr, peer: &Addr, epoch: u32) -> bool {
        cache::contains(pod, peer, epoch)
    }

    #[inline(always)]
    fn cache_bypass(&self, pod: &Addr, peer: &Addr, epoch: u32) {
        cache::insert(pod, peer, epoch);
    }
}

impl Mappings for TcEnv<'_> {
    #[inline(always)]
    fn lookup_snat(&self, tuple: &Tuple) -> Option<Slot> {
        slot(&SNAT, tuple)
    }

    #[inline(always)]
    fn lookup_rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
        slot(&REV_SNAT, tuple)
    }

    #[inline(always)]
    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        insert(&SNAT, tuple, mapping)
    }

    #[inline(always)]
    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        insert(&REV_SNAT, tuple, mapping)
    }

    #[inline(always)]
    fn remove_snat(&self, tuple: &Tuple) -> bool {
        SNAT.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn remove_rev_snat(&self, tuple: &Tuple) {
        // If it is already removed, the result is the same.
        let _ = REV_SNAT.remove(tuple);
    }

    #[inline(always)]
    fn push_recent(&self, tuple: &Tuple) {
        let Some(at) = RECENT_AT.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: map values. Two CPUs may write to one slot at the same time: one mapping is lost,
        // or if their words mix, none is found by them.
        unsafe {
            let put = (*at).put;
            if let Some(place) = RECENT.get_ptr_mut(put & (RECENT_LEN - 1)) {
                place.write(*tuple);
            }
            (*at).put = put.wrapping_add(1);
            if put.wrapping_sub((*at).taken) >= RECENT_LEN {
                (*at).taken = put.wrapping_sub(RECENT_LEN - 1);
            }
        }
    }

    #[inline(always)]
    fn pop_recent(&self, tuple: &mut Tuple) -> bool {
        let Some(at) = RECENT_AT.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: as above.
        unsafe {
            let taken = (*at).taken;
            if taken == (*at).put {
                return false;
            }
            (*at).taken = taken.wrapping_add(1);
            match RECENT.get(taken & (RECENT_LEN - 1)) {
                Some(oldest) => *tuple = *oldest,
                None => return false,
            }
        }
        true
    }

    #[inline(always)]
    fn lookup_share(&self, bucket: u32) -> Option<ShareSlot> {
        let share = SHARES.get_ptr_mut(bucket)?;
        let ended = SHARES_ENDED.get_ptr(bucket)?;
        // SAFETY: map values, readable and writable for the program's run.
        Some(unsafe { ShareSlot::new(share, ended) })
    }
}

impl InboundFlows for TcEnv<'_> {
    #[inline(always)]
    fn lookup_live(&self, tuple: &Tuple) -> Option<LiveSlot> {
        if !inbound_is_used() {
            return None;
        }
        // SAFETY: a map value is readable and writable for the program's run.
        INBOUND_LIVE
            .get_ptr_mut(tuple)
            .map(|p| unsafe { LiveSlot::new(p) })
    }

    #[inline(always)]
    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool {
        use_inbound();
        INBOUND_LIVE.insert(tuple, live, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(always)]
    fn remove_live(&self, tuple: &Tuple) -> bool {
        INBOUND_LIVE.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn lookup_asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        if !inbound_is_used() {
            return None;
        }
        // SAFETY: as above; each field is one word, and any racing value is a recent time.
        INBOUND
            .get_ptr_mut(tuple)
            .map(|p| unsafe { AskedSlot::new(p) })
    }

    #[inline(always)]
    fn insert_asked(&self, tuple: &Tuple, inbound: &Inbound) {
        use_inbound();
        // The map evicts its least recently used entry; a failed insertion costs the flow its
        // direct replies, which are counted where they are dropped.
        let _ = INBOUND.insert(tuple, inbound, 0);
    }

    #[inline(always)]
    fn remove_asked(&self, tuple: &Tuple) {
        if inbound_is_used() {
            let _ = INBOUND.remove(tuple);
        }
    }
}

impl Node for TcEnv<'_> {
    #[inline(always)]
    fn lookup_node_flow(&self, wire: &Tuple) -> Option<NodeFlow> {
        // SAFETY: copied at once, and each word is valid on its own.
        unsafe { NODE_FLOWS.get(wire).copied() }
    }

    #[inline(always)]
    fn insert_node_flow(&self, wire: &Tuple, flow: &NodeFlow) {
        // The map evicts its least recently used entry.
        let _ = NODE_FLOWS.insert(wire, flow, 0);
    }

    #[inline(always)]
    fn is_node_port(&self, protocol: u32, port: u16) -> bool {
        NODE_PORTS
            .get(u32::from(port))
            .is_some_and(|bits| bits & node_port_bit(protocol) != 0)
    }

    #[inline(always)]
    fn is_node_protocol(&self, key: &NodeProtocol) -> bool {
        NODE_PROTOCOLS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn has_socket(&self, wire: &Tuple) -> bool {
        sockets::receives(self.ctx, wire)
    }
}

impl Ports for TcEnv<'_> {
    #[inline(always)]
    fn lookup_port_map(&self, index: u32) -> Option<PortMapSlot> {
        let owner = PORT_MAP_OWNERS.get_ptr_mut(index)?;
        let bits = PORT_MAPS.get_ptr_mut(index)?;
        // SAFETY: map values, readable and writable for the program's run.
        Some(unsafe { PortMapSlot::new(owner, bits) })
    }

    #[inline(always)]
    fn reserved_ports(&self, word: u32) -> u64 {
        RESERVED_PORTS.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn lookup_exhausted(&self, wire: &Tuple) -> Option<u32> {
        // SAFETY: copied at once, one word.
        unsafe { EXHAUSTED.get(wire).copied() }
    }

    #[inline(always)]
    fn insert_exhausted(&self, wire: &Tuple, now: u32) {
        let _ = EXHAUSTED.insert(wire, now, 0);
    }

    #[inline(always)]
    fn lookup_endpoint_port(&self, endpoint: &Tuple) -> Option<u16> {
        // SAFETY: copied at once, one word.
        unsafe { ENDPOINTS.get(endpoint).map(|port| *port as u16) }
    }

    #[inline(always)]
    fn insert_endpoint_port(&self, endpoint: &Tuple, port: u16) {
        let _ = ENDPOINTS.insert(endpoint, u32::from(port), 0);
    }

    #[inline(always)]
    fn lookup_wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint> {
        // SAFETY: copied at once; a concurrent replacement refers to another mapping of the same
        // endpoint.
        unsafe { WIRE_ENDPOINTS.get(endpoint).copied() }
    }

    #[inline(always)]
    fn insert_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint) {
        let _ = WIRE_ENDPOINTS.insert(endpoint, far, 0);
    }
}

impl Fragments for TcEnv<'_> {
    #[inline(always)]
    fn lookup_fragment(&self, key: &Tuple, direction: Direction) -> Option<Fragment> {
        // SAFETY: copied at once; a concurrent replacement of the entry belongs to the same
        // datagram.
        unsafe {
            match direction {
                Direction::Egress => FRAGMENTS.get(key).copied(),
                Direction::Ingress => FRAGMENTS_IN.get(key).copied(),
            }
        }
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, direction: Direction) {
        // A failure costs this datagram only.
        let _ = match direction {
            Direction::Egress => FRAGMENTS.insert(key, fragment, 0),
            Direction::Ingress => FRAGMENTS_IN.insert(key, fragment, 0),
        };
    }

    /// Counts over all CPUs without a lock: two datagrams may get the same number, which then
    /// matters only if both go to one host at the same time.
    #[inline(always)]
    fn next_ip_id(&self, sequence: u32) -> u32 {
        match IP_IDS.get_ptr_mut(sequence & (IP_ID_SEQUENCES - 1)) {
            // SAFETY: a map value, one word.
            Some(id) => unsafe {
                *id = (*id).wrapping_add(1);
                *id
            },
            None => self.random(),
        }
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
        match SOURCES.get(&Key::new(SOURCE_BITS, *key)) {
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
fn bridged(ctx: &TcContext, tuple: &Tuple, family: Family) -> bool {
    // SAFETY: a TC program's context is readable for the program's run.
    let link = unsafe { (*ctx.skb.skb).ifindex };
    let Some(mac) = skb::read::source_mac(ctx) else {
        return false;
    };
    let mut key = MacKey { link, mac, pad: 0 };
    if MACS.get_ptr(key).is_some() {
        return false;
    }
    key.mac = [0; 6];
    MACS.get_ptr(key).is_some() && !fib::sends_as(ctx, tuple, family, &mac)
}

/// Reports whether the node receives packets to an address that it does not have.
#[inline(never)]
fn any_ip(addr: &Addr) -> bool {
    let key = SourceKey {
        link: SOURCE_ANY_IP,
        addr: *addr,
    };
    SOURCES.get(&Key::new(SOURCE_BITS, key)).is_some()
}

#[inline(always)]
fn insert(
    map: &HashMap<Tuple, Mapping, 262_144>,
    tuple: &Tuple,
    mapping: &Mapping,
) -> Result<(), InsertError> {
    const EEXIST: i32 = -17;
    match map.insert(tuple, mapping, BPF_NOEXIST.into()) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Full),
    }
}

#[inline(always)]
fn slot(map: &HashMap<Tuple, Mapping, 262_144>, tuple: &Tuple) -> Option<Slot> {
    // SAFETY: a map value is readable and writable for the program's run.
    map.get_ptr_mut(tuple).map(|p| unsafe { Slot::new(p) })
}

/// Reports whether any flow that keeps the pod's address was ever recorded.
#[inline(always)]
fn inbound_is_used() -> bool {
    INBOUND_USED.get(0).is_some_and(|used| *used != 0)
}

/// Enables lookups of such flows. Must be called before the first one is recorded.
#[inline(always)]
fn use_inbound() {
    if !inbound_is_used()
        && let Some(used) = INBOUND_USED.get_ptr_mut(0)
    {
        // SAFETY: a map value, one word.
        unsafe { used.write(1) };
    }
}

/// Replaces an entry that always exists.
static UNLIMITED: Limits = Limits {
    secret: [0; 2],
    capacity: u32::MAX,
    inbound_capacity: u32::MAX,
    flows: 0,
    rate: 0,
    burst: 0,
    pad: 0,
};
