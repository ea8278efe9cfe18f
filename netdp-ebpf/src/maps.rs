//! The map statics, and the environment of the decisions in the datapath.
//!
//! Sizes are defaults; the loader overrides them before the maps are created.

use crate::fib::{self, Route};
use crate::{known, skb, sockets};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use core::ffi::{c_long, c_void};
use netdp_common::abi::{
    self, Action, Counters, Fragment, Inbound, Limits, Live, MacKey, Mapping, NodeFlow,
    NodeProtocol, POLICY_WAS_BYPASSED, PolicyValue, RESERVED_WORDS, RecentAt, SOURCE_ANY_IP,
    Settings, Source, SourceKey, UPLINK_OBSERVED, Uplink, node_port_bit,
};
use netdp_common::addr::{Addr, Family};
use netdp_common::conntrack::{TICK_SHIFT, age};
use netdp_common::nat::{Way, Work};
use netdp_common::packet::Endpoint;
use netdp_common::port_map::{Bits, Owner, PORT_MAPS as PORT_MAPS_LEN, PortMapSlot};
use netdp_common::share::{self, Ended, Share, ShareSlot};
use netdp_common::slot::{AskedSlot, LiveSlot, Slot};
use netdp_common::tables::{InsertError, Origin, Tables};
use netdp_common::tuple::Tuple;
use netdp_common::verdict::DropReason;

#[btf_map]
static SNAT: HashMap<Tuple, Mapping, 262_144> = HashMap::new();
#[btf_map]
static REV_SNAT: HashMap<Tuple, Mapping, 262_144> = HashMap::new();
#[btf_map]
static POLICY_0: LpmTrie<Addr, PolicyValue, 1_048_576> = LpmTrie::new();
#[btf_map]
static POLICY_1: LpmTrie<Addr, PolicyValue, 1_048_576> = LpmTrie::new();
#[btf_map]
static UPLINKS: HashMap<u32, Uplink, 1024> = HashMap::new();
#[btf_map]
static LOCAL_ADDRS: HashMap<Addr, u32, 131_072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static INBOUND: LruHashMap<Tuple, Inbound, 131_072> = LruHashMap::new();
#[btf_map]
static FRAGMENTS: LruHashMap<Tuple, Fragment, 16_384> = LruHashMap::new();
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();
#[btf_map]
static RESERVED_PORTS: Array<u64, RESERVED_WORDS> = Array::new();
#[btf_map]
static NODE_PORTS: Array<u32, 65_536> = Array::new();
#[btf_map]
static NODE_PROTOCOLS: HashMap<NodeProtocol, u32, 4096> = HashMap::new();

/// 131,072 answered inbound flows; memory is allocated per entry.
#[btf_map]
static INBOUND_LIVE: HashMap<Tuple, Live, 131_072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// 1 once anything has been written to [`INBOUND`] or [`INBOUND_LIVE`]: on most nodes never.
#[btf_map]
static INBOUND_USED: Array<u32, 1> = Array::new();
#[btf_map]
static FRAGMENTS_IN: LruHashMap<Tuple, Fragment, 16_384> = LruHashMap::new();
#[btf_map]
static NODE_FLOWS: LruHashMap<Tuple, NodeFlow, 65_536> = LruHashMap::new();
#[btf_map]
static LIMITS: Array<Limits, 1> = Array::new();
#[btf_map]
static SHARES: Array<Share, { share::ENTRIES }> = Array::new();
#[btf_map]
static SHARES_ENDED: Array<Ended, { share::ENTRIES }> = Array::new();
#[btf_map]
static RECENT: Array<Tuple, { abi::RECENT as usize }> = Array::new();
#[btf_map]
static PORT_MAP_OWNERS: Array<Owner, { PORT_MAPS_LEN as usize }> = Array::new();
#[btf_map]
static PORT_MAPS: Array<Bits, { PORT_MAPS_LEN as usize }> = Array::new();

#[btf_map]
static RECENT_AT: Array<RecentAt, 1> = Array::new();

/// Wire tuples with the first of their ports → the tick at which all of these were taken.
#[btf_map]
static EXHAUSTED: LruHashMap<Tuple, u32, 4096> = LruHashMap::new();
/// Endpoints of pods → their port on the wire.
#[btf_map]
static ENDPOINTS: LruHashMap<Tuple, u32, 65_536> = LruHashMap::new();
/// Endpoints on the wire → the remote endpoint of a mapping with it. Only used with `--hairpin`;
/// the loader makes it small otherwise.
#[btf_map]
static WIRE_ENDPOINTS: LruHashMap<Tuple, Endpoint, 65_536> = LruHashMap::new();
/// The last IPv4 identifications of each sequence.
#[btf_map]
static IP_IDS: Array<u32, { IP_ID_SEQUENCES as usize }> = Array::new();
/// A power of two. Address pairs that share a sequence only skip more numbers.
const IP_ID_SEQUENCES: u32 = 4096;

/// The hardware addresses by which the node sends at each uplink; recreated by each agent, which
/// fills it before programs are attached.
#[btf_map]
static MACS: HashMap<MacKey, u32, 4096> = HashMap::new();
/// The sources with which packets may leave, by interface; recreated by each agent, which fills it
/// before programs are attached.
#[btf_map]
static SOURCES: LpmTrie<SourceKey, Source, 65_536> = LpmTrie::new();
/// Length of a complete [`SourceKey`], in bits.
const SOURCE_BITS: u32 = 160;
/// The route of the current packet.
#[btf_map]
static WAY: PerCpuArray<Way, 1> = PerCpuArray::new();

/// Reports whether the source hardware address of the packet is none of those by which the node
/// sends. If the agent does not know an address yet, the kernel's routes decide.
#[inline(never)]
fn bridged(ctx: &TcContext, tuple: &Tuple, family: Family) -> bool {
    // SAFETY: a TC program's context is readable for the program's run.
    let link = unsafe { (*ctx.skb.skb).ifindex };
    let Some(mac) = skb::source_mac(ctx) else {
        return false;
    };
    let mut key = MacKey { link, mac, pad: 0 };
    if MACS.get_ptr(key).is_some() {
        return false;
    }
    key.mac = [0; 6];
    MACS.get_ptr(key).is_some() && !fib::sends_as(ctx, tuple, family, &mac)
}

#[inline(always)]
fn is_uplink(ifindex: u32) -> bool {
    // SAFETY: a reference; entries are replaced, not freed under a running program.
    let uplink = unsafe { UPLINKS.get(ifindex) };
    uplink.is_some_and(|uplink| uplink.flags & UPLINK_OBSERVED == 0)
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

/// Reports whether a route leads to the interface with this index: to that itself, or to a VLAN
/// device that the agent knows to be stacked on it.
#[inline(never)]
pub fn leads_here(way: &Way, here: u32) -> bool {
    if way.link == here {
        return true;
    }
    let key = SourceKey {
        link: way.link,
        addr: way.next,
    };
    (SOURCES.get(&Key::new(SOURCE_BITS, key))).is_some_and(|source| source.via == here)
}

/// Ticks for which a destination without free ports is not searched: 0.5 s.
const EXHAUSTED_TICKS: u32 = 8;

/// Per-CPU state, in one map value because every map lookup costs.
#[repr(C)]
struct Own {
    last: known::Last,
    work: Work,
}

#[btf_map]
static OWN: PerCpuArray<Own, 2> = PerCpuArray::new();
/// [`OWN`]: the index for packets at an uplink.
const UPLINK: u32 = 0;
/// [`OWN`]: the index for packets from pods, at interfaces without addresses to masquerade with.
const PODS: u32 = 1;

/// Returns this CPU's cached state and its scratch.
#[inline(always)]
fn own<'a>(kind: u32) -> Option<(*mut known::Last, &'a mut Work)> {
    let own = OWN.get_ptr_mut(kind)?;
    // SAFETY: each CPU has its own value and runs one TC program at a time, with bottom halves off,
    // which calls this once; the two are fields of one value that do not overlap, and zeroes are a
    // valid `Work`.
    unsafe { Some((&raw mut (*own).last, &mut (*own).work)) }
}

/// The maps and helpers for one packet.
pub struct World<'a> {
    ctx: &'a TcContext,
    settings: &'a Settings,
    /// Holds the uplink, and the epoch as it was before any lookup.
    last: *mut known::Last,
}

impl<'a> World<'a> {
    /// Returns the environment and the scratch, at an uplink. `None` if the agent has not set up
    /// the interface: then there is nothing to decide.
    #[inline(always)]
    pub fn new<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Work)> {
        let settings = SETTINGS.get(0)?;
        let epoch = epoch(settings);
        let (last, work) = own(UPLINK)?;
        // SAFETY: a TC program's context is readable for the program's run.
        let ifindex = unsafe { (*ctx.skb.skb).ifindex };
        // SAFETY: entries are replaced, not freed under a running program
        // (the map's memory is reclaimed after a grace period only); fields
        // change all together by replacement.
        unsafe { known::see_uplink(last, epoch, ifindex, || UPLINKS.get(ifindex)) }?;
        let world = Self {
            ctx,
            settings,
            last,
        };
        Some((world, work))
    }

    /// Returns the environment and the scratch, at an interface towards pods.
    #[inline(always)]
    pub fn of_pods<'w>(ctx: &'a TcContext) -> Option<(Self, &'w mut Work)> {
        let settings = SETTINGS.get(0)?;
        let (last, work) = own(PODS)?;
        let world = Self {
            ctx,
            settings,
            last,
        };
        Some((world, work))
    }
}

/// Reads the epoch, before any other lookup.
#[inline(always)]
fn epoch(settings: &Settings) -> u32 {
    // SAFETY: a reference. Volatile, so that the read is not deferred.
    unsafe { (&raw const settings.epoch).read_volatile() }
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

#[inline(always)]
fn slot(map: &HashMap<Tuple, Mapping, 262_144>, tuple: &Tuple) -> Option<Slot> {
    // SAFETY: a map value is readable and writable for the program's run.
    map.get_ptr_mut(tuple).map(|p| unsafe { Slot::new(p) })
}

impl World<'_> {
    /// Returns [`PolicyValue::action`] for a destination.
    #[inline(always)]
    fn policy(&self, dst: &Addr) -> u32 {
        let key = Key::new(128, *dst);
        let value = if self.settings.active_policy == 0 {
            POLICY_0.get(&key)
        } else {
            POLICY_1.get(&key)
        };
        value.map_or(Action::Masquerade as u32, |v| v.action)
    }

    /// Counts a dropped packet.
    #[inline(always)]
    pub fn count_drop(&self, reason: DropReason) {
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

impl Tables for World<'_> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap by design")]
    fn now(&self) -> u32 {
        // SAFETY: this run's `last`.
        let ns = unsafe { known::now(self.last) };
        ((ns >> TICK_SHIFT) as u32).wrapping_add(self.settings.clock_offset)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn settings(&self) -> &Settings {
        self.settings
    }

    #[inline(always)]
    fn uplink(&self) -> &Uplink {
        // SAFETY: this run's `last`, whose uplink does not change during the run.
        unsafe { &(*self.last).uplink }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        // SAFETY: this run's `last`.
        unsafe { (*self.last).epoch }
    }

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
    fn is_local(&self, addr: &Addr) -> bool {
        LOCAL_ADDRS.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn is_any_ip(&self, addr: &Addr) -> bool {
        any_ip(addr)
    }

    #[inline(always)]
    fn action(&self, dst: &Addr) -> Action {
        Action::from_raw(self.policy(dst))
    }

    #[inline(always)]
    fn is_known_bypass(&self, pod: &Addr, peer: &Addr) -> bool {
        known::is_bypassed(self.settings, self.epoch(), pod, peer)
    }

    #[inline(always)]
    fn set_known_bypass(&self, pod: &Addr, peer: &Addr) {
        known::set_bypassed(self.settings, self.epoch(), pod, peer);
    }

    #[inline(always)]
    fn was_bypassed(&self, dst: &Addr) -> bool {
        self.policy(dst) & POLICY_WAS_BYPASSED != 0
    }

    #[inline(always)]
    fn snat(&self, tuple: &Tuple) -> Option<Slot> {
        slot(&SNAT, tuple)
    }

    #[inline(always)]
    fn rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
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
    fn remove_rev_snat(&self, tuple: &Tuple) {
        // If it is already removed, the result is the same.
        let _ = REV_SNAT.remove(tuple);
    }

    #[inline(always)]
    fn remove_snat(&self, tuple: &Tuple) -> bool {
        SNAT.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn limits(&self) -> &Limits {
        // The entry always exists; the verifier requires the check.
        LIMITS.get(0).unwrap_or(&UNLIMITED)
    }

    #[inline(always)]
    fn share(&self, bucket: u32) -> Option<ShareSlot> {
        let share = SHARES.get_ptr_mut(bucket)?;
        let ended = SHARES_ENDED.get_ptr(bucket)?;
        // SAFETY: map values, readable and writable for the program's run.
        Some(unsafe { ShareSlot::new(share, ended) })
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.ctx.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn origin(&self, addr: &Addr, family: Family) -> Origin {
        let came_by = self.ingress_ifindex();
        let mut route = Route {
            ifindex: 0,
            direct: false,
            resolved: false,
        };
        if came_by == 0 || !fib::route(self.ctx, addr, family, &mut route) {
            return Origin::Unknown;
        }
        match (route.direct, route.ifindex == came_by) {
            (true, true) if route.resolved => Origin::Link,
            (true, true) => Origin::Unresolved,
            // An address behind an uplink is not a pod of this node.
            (true, false) if !is_uplink(route.ifindex) => Origin::Elsewhere,
            (false, true) => Origin::Routed,
            _ => Origin::Unknown,
        }
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
            if let Some(place) = RECENT.get_ptr_mut(put & (abi::RECENT - 1)) {
                place.write(*tuple);
            }
            (*at).put = put.wrapping_add(1);
            if put.wrapping_sub((*at).taken) >= abi::RECENT {
                (*at).taken = put.wrapping_sub(abi::RECENT - 1);
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
            match RECENT.get(taken & (abi::RECENT - 1)) {
                Some(oldest) => *tuple = *oldest,
                None => return false,
            }
        }
        true
    }

    #[inline(always)]
    fn port_map(&self, index: u32) -> Option<PortMapSlot> {
        let owner = PORT_MAP_OWNERS.get_ptr_mut(index)?;
        let bits = PORT_MAPS.get_ptr_mut(index)?;
        // SAFETY: map values, readable and writable for the program's run.
        Some(unsafe { PortMapSlot::new(owner, bits) })
    }

    #[inline(always)]
    fn node_flow(&self, wire: &Tuple) -> Option<NodeFlow> {
        // SAFETY: copied at once, and each word is valid on its own.
        unsafe { NODE_FLOWS.get(wire).copied() }
    }

    #[inline(always)]
    fn set_node_flow(&self, wire: &Tuple, flow: &NodeFlow) {
        // The map evicts its least recently used entry.
        let _ = NODE_FLOWS.insert(wire, flow, 0);
    }

    #[inline(always)]
    fn live(&self, tuple: &Tuple) -> Option<LiveSlot> {
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
    fn asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        if !inbound_is_used() {
            return None;
        }
        // SAFETY: as above; each field is one word, and any racing value is a recent time.
        INBOUND
            .get_ptr_mut(tuple)
            .map(|p| unsafe { AskedSlot::new(p) })
    }

    #[inline(always)]
    fn insert_asked(&self, tuple: &Tuple, limit: u32) {
        let inbound = Inbound {
            last_seen: self.now(),
            limit,
        };
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

    #[inline(always)]
    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool {
        self.uplink().l2_len != 0 && bridged(self.ctx, tuple, family)
    }

    #[inline(always)]
    fn way(&self, tuple: &Tuple, family: Family) -> Option<&Way> {
        let way = WAY.get_ptr_mut(0)?;
        // SAFETY: each CPU has its own value, and a TC program uses one at a time; zeroes are a
        // valid `Way`.
        let way = unsafe { &mut *way };
        fib::way(self.ctx, tuple, family, way).then_some(way)
    }

    #[inline(always)]
    fn source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
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
    fn fragment(&self, key: &Tuple, leaving: bool) -> Option<Fragment> {
        // SAFETY: copied at once; a concurrent replacement of the entry belongs to the same
        // datagram.
        unsafe {
            if leaving {
                FRAGMENTS.get(key).copied()
            } else {
                FRAGMENTS_IN.get(key).copied()
            }
        }
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, leaving: bool) {
        // A failure costs this datagram only.
        let _ = if leaving {
            FRAGMENTS.insert(key, fragment, 0)
        } else {
            FRAGMENTS_IN.insert(key, fragment, 0)
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

    #[inline(always)]
    fn is_exhausted(&self, wire: &Tuple) -> bool {
        // SAFETY: copied at once, one word.
        let since = unsafe { EXHAUSTED.get(wire).copied() };
        since.is_some_and(|since| age(self.now(), since) < EXHAUSTED_TICKS)
    }

    #[inline(always)]
    fn set_exhausted(&self, wire: &Tuple) {
        let _ = EXHAUSTED.insert(wire, self.now(), 0);
    }

    #[inline(always)]
    fn endpoint_port(&self, endpoint: &Tuple) -> Option<u16> {
        // SAFETY: copied at once, one word.
        unsafe { ENDPOINTS.get(endpoint).map(|port| *port as u16) }
    }

    #[inline(always)]
    fn set_endpoint_port(&self, endpoint: &Tuple, port: u16) {
        let _ = ENDPOINTS.insert(endpoint, u32::from(port), 0);
    }

    #[inline(always)]
    fn wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint> {
        // SAFETY: copied at once; a concurrent replacement refers to another mapping of the same
        // endpoint.
        unsafe { WIRE_ENDPOINTS.get(endpoint).copied() }
    }

    #[inline(always)]
    fn set_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint) {
        let _ = WIRE_ENDPOINTS.insert(endpoint, far, 0);
    }

    #[inline(always)]
    fn ports_reserved(&self, word: u32) -> u64 {
        RESERVED_PORTS.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn node_answers(&self, protocol: u32, port: u16) -> bool {
        NODE_PORTS
            .get(u32::from(port))
            .is_some_and(|bits| bits & node_port_bit(protocol) != 0)
    }

    #[inline(always)]
    fn node_speaks(&self, key: &NodeProtocol) -> bool {
        NODE_PROTOCOLS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn sent_by_socket(&self) -> bool {
        // SAFETY: readable in the context of a TC program; a null check only.
        unsafe { !(*self.ctx.skb.skb).__bindgen_anon_2.sk.is_null() }
    }

    #[inline(always)]
    fn socket_receives(&self, wire: &Tuple) -> bool {
        sockets::receives(self.ctx, wire)
    }

    #[inline(always)]
    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool,
    {
        let mut frame = Frame {
            tables: self,
            state,
            step,
        };
        // SAFETY: the callback gets `frame`, alive for the whole call.
        unsafe {
            bpf_loop(
                n,
                call::<Self, S, F> as *mut c_void,
                (&raw mut frame).cast(),
                0,
            );
        }
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

struct Frame<'a, T, S, F> {
    tables: &'a T,
    state: &'a mut S,
    step: F,
}

unsafe extern "C" fn call<T, S, F>(n: u32, frame: *mut c_void) -> c_long
where
    F: Fn(&T, u32, &mut S) -> bool,
{
    // SAFETY: `repeat` passes a `Frame` of exactly these types.
    let frame = unsafe { &mut *frame.cast::<Frame<'_, T, S, F>>() };
    c_long::from(!(frame.step)(frame.tables, n, frame.state))
}
