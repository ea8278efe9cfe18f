//! The datapath's environment as ordinary maps with the kernel's semantics: `BPF_NOEXIST`, a
//! maximum number of entries, and values that stay at their address while a program may hold a
//! pointer to them.

use super::half_map::HalfMap;
use netdp_common::direction::{Direction, End};
use netdp_common::env::{EgressRoute, Masqueraded};
use netdp_common::flow::ticks;
use netdp_common::layout::{
    Action, Addr, Counters, DropReason, Endpoint, Fragment, Half, Inbound, LAYOUT, Limits, Live,
    NO_LEAK_DROP, NewMappings, NodeFlow, NodeProtocol, PORT_RANGES, Pair, PortMapBits,
    PortMapOwner, PortRange, Reach, RuleHits, SETTING_IPV6, Settings, Share, ShareEnded, SourceKey,
    Traffic, Tuple, UPLINK_V4, UPLINK_V6, Uplink, network_of,
};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

/// Capacity of the history of recent mappings: small, so that tests wrap around it.
pub(super) const RECENT: usize = 64;

pub type Hook = Box<dyn FnOnce(&Fake)>;

/// Map values with a stable address, by key.
pub type Cells<K, V> = RefCell<HashMap<K, Box<UnsafeCell<V>>>>;

/// The location of a source by the routing table, relative to the interface by which its packet
/// came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There is no route.
    Unknown,
    /// Its network is on-link at that interface, and a neighbour there is known by this address.
    Link,
    /// Its network is on-link at that interface, but no neighbour is known by this address.
    Unresolved,
    /// It is reached via a gateway behind that interface.
    Routed,
    /// Its network is on-link at another interface.
    Elsewhere,
    /// Its network is on-link at the uplink.
    Uplink,
}

/// A node with one uplink, 192.0.2.10 and fd00::10. Everything is masqueraded until a test adds a
/// rule.
pub struct Fake {
    pub settings: Settings,
    pub uplink: Uplink,
    /// Interface index of the uplink.
    pub ifindex: u32,
    pub local: HashSet<Addr>,
    /// Further addresses for which the node accepts packets.
    pub any_ip: HashSet<Addr>,
    pub snat: HalfMap,
    pub rev_snat: HalfMap,
    /// Reported ends: original tuple, wire tuple, reason.
    pub reported_ends: RefCell<Vec<(Tuple, Tuple, u32)>>,
    /// Inbound flows that the pods have not answered.
    pub(super) asked: Cells<Tuple, Inbound>,
    /// Tuples of the unanswered inbound flows, the least recently used first.
    pub(super) asked_order: RefCell<Vec<Tuple>>,
    pub asked_capacity: usize,
    pub(super) live: Cells<Tuple, Live>,
    pub limits: Limits,
    pub(super) shares: Cells<u32, (Share, ShareEnded)>,
    pub(super) port_maps: Cells<u32, (PortMapOwner, PortMapBits)>,
    /// The most recent mappings, the oldest first.
    pub(super) recent: RefCell<VecDeque<Tuple>>,
    pub node_flows: RefCell<HashMap<Tuple, NodeFlow>>,
    /// Times at which a flow of the node was last recorded, by L4 id.
    pub node_flow_stamps: RefCell<HashMap<u16, u8>>,
    /// Ingress interface of packets that the node forwards.
    pub ingress_ifindex: Cell<u32>,
    /// Packets with the node's source address are the node's own.
    pub own: Cell<bool>,
    /// The location of each source address; [`Origin::Link`] if absent.
    pub origins: RefCell<HashMap<Addr, Origin>>,
    /// Decisions for fragments on egress and on ingress, the oldest first.
    pub(super) fragments: [RefCell<Vec<(Tuple, Fragment)>>; 2],
    pub fragments_capacity: usize,
    /// The IPv4 identifications assigned last.
    pub ip_ids: RefCell<HashMap<u32, u32>>,
    /// The IPv4 identification assigned to the last packet.
    pub written_ip_id: Cell<u32>,
    /// Destinations without a free port, and the tick at which they ran out.
    pub exhausted: RefCell<HashMap<Tuple, u32>>,
    pub endpoints: RefCell<HashMap<Tuple, u16>>,
    pub wire_endpoints: RefCell<HashMap<Tuple, Endpoint>>,
    /// The agent does not know the source hardware address of egress packets: they were bridged,
    /// and the node did not send them.
    pub bridged: Cell<bool>,
    /// Sources whose packets the node sends with that hardware address nevertheless, by its routes.
    pub routed: RefCell<HashSet<Addr>>,
    /// Result of a route lookup.
    pub route: Option<EgressRoute>,
    /// The agent's entries about sources, with the number of key bits that are compared.
    pub sources: Vec<(SourceKey, u32, Addr)>,
    pub reserved: BTreeSet<u16>,
    /// Protocols and ports on which the node answers without a socket.
    pub node_ports: HashSet<(u32, u16)>,
    /// Protocols without ports that the node itself uses, and their peers.
    pub node_protocols: HashSet<NodeProtocol>,
    /// Wire tuples that a connected or bound socket of the node receives.
    pub sockets: HashSet<Tuple>,
    /// Ports that a socket of the node listens on.
    pub listeners: HashSet<u16>,
    pub sent_by_socket: bool,
    pub clock: Cell<u32>,
    /// Prefix, prefix length on the 128-bit scale, action; in any order.
    pub policy: Vec<(Addr, u32, Action)>,
    /// Destinations that an earlier policy bypassed.
    pub bypassed_before: HashSet<Addr>,
    /// The slots of the bypass cache that were looked up.
    pub(super) pairs: Cells<u32, Pair>,
    pub(super) reach: Cells<Addr, Reach>,
    /// The traffic that was carried over from halves.
    pub traffic: RefCell<HashMap<Tuple, Traffic>>,
    pub traffic_capacity: usize,
    pub rule_hits: RefCell<BTreeMap<u32, RuleHits>>,
    /// Refusals by bucket.
    pub refusals: RefCell<BTreeMap<u32, u64>>,
    pub new_mappings: RefCell<NewMappings>,
    /// Length of packets that are larger than their bytes: the kernel has not segmented them yet.
    pub unsegmented: Cell<Option<u32>>,
    /// Length of the current packet from its IP header on.
    pub(super) l3_len: Cell<u32>,
    /// Cached masqueraded pairs: pod, peer, the epoch of the decision and the interface by which the
    /// packet came.
    pub known_masqueraded: RefCell<HashMap<(Addr, Addr, u32, u32), Masqueraded>>,
    /// Every candidate port, in the order of the attempts.
    pub candidates: RefCell<Vec<u16>>,
    /// Runs once, just before a rev-SNAT half is inserted: simulates another CPU.
    pub before_claim: RefCell<Option<Hook>>,
    /// Runs once, just before a SNAT half is inserted: simulates another CPU.
    pub before_original: RefCell<Option<Hook>>,
    /// Runs once, just before a SNAT half is removed: simulates another CPU.
    pub before_end: RefCell<Option<Hook>>,
    /// Runs once, just before a fragment is queued: simulates another CPU.
    pub before_queue: RefCell<Option<Hook>>,
    /// Runs once, just before a socket lookup: simulates another CPU.
    pub before_sockets: RefCell<Option<Hook>>,
    /// Runs once, just before a route lookup: simulates another CPU.
    pub before_route: RefCell<Option<Hook>>,
    /// The checksums of packets are partial: they cannot be rewritten in place.
    pub partial_checksums: Cell<bool>,
    /// The end of packets that the kernel fails to rewrite.
    pub fail_rewrite: Cell<Option<End>>,
    /// The kernel fails to restore a packet whose fragments it has released.
    pub fail_release: Cell<bool>,
    /// There is no route by which packets could be sent to pods.
    pub fail_delivery: Cell<bool>,
    /// Fragments that are queued, by datagram.
    pub(super) queue: RefCell<Vec<(Tuple, Vec<u8>)>>,
    pub queue_capacity: usize,
    /// Queued fragments that were reinjected.
    pub reinjected: RefCell<Vec<Vec<u8>>>,
    /// Dropped packets that were reported to those who listen.
    pub reported: RefCell<Vec<(DropReason, Direction)>>,
    /// Mappings whose begin was reported: original tuple, wire tuple, rule.
    pub begun: RefCell<Vec<(Tuple, Tuple, u32)>>,
    /// Refused packets that were logged, with the reason.
    pub logged: RefCell<Vec<(Tuple, DropReason)>>,
    /// Number of refusals that were answered with an ICMP error.
    pub answered: Cell<u32>,
    /// The reason for which the current packet is dropped.
    pub(super) dropped: Cell<Option<DropReason>>,
    /// The CPU's scratch, with the remains of the last packet.
    pub(super) scratch: Cell<Option<Box<Scratch>>>,
    pub(super) counters: RefCell<Counters>,
    pub(super) random: Cell<u32>,
}

pub fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    pub fn new() -> Self {
        let settings = Settings {
            layout: LAYOUT,
            active_policy: 0,
            flags: SETTING_IPV6,
            no_leak: NO_LEAK_DROP,
            ports: [PortRange::EMPTY; PORT_RANGES],
            clock_offset: 0,
            generation: 1,
            epoch: 1,
            events: 0,
        };
        let uplink = Uplink {
            v4: addr("192.0.2.10"),
            v6: addr("fd00::10"),
            l2_len: 14,
            flags: UPLINK_V4 | UPLINK_V6,
        };
        Self {
            settings,
            uplink,
            ifindex: 2,
            local: [uplink.v4, uplink.v6].into(),
            any_ip: HashSet::new(),
            snat: HalfMap::new(1_000_000),
            rev_snat: HalfMap::new(1_000_000),
            reported_ends: RefCell::default(),
            asked: RefCell::default(),
            asked_order: RefCell::default(),
            asked_capacity: 1_000,
            live: RefCell::default(),
            limits: Limits {
                secret: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
                capacity: 1_000_000,
                inbound_capacity: 1_000,
                flows: 0,
                rate: 0,
                burst: 0,
                pad: 0,
            },
            shares: RefCell::default(),
            port_maps: RefCell::default(),
            recent: RefCell::default(),
            node_flows: RefCell::default(),
            node_flow_stamps: RefCell::default(),
            ingress_ifindex: Cell::new(7),
            own: Cell::new(true),
            origins: RefCell::default(),
            fragments: Default::default(),
            fragments_capacity: 1_000,
            ip_ids: RefCell::default(),
            written_ip_id: Cell::new(packet::KEEP_IP_ID),
            exhausted: RefCell::default(),
            endpoints: RefCell::default(),
            wire_endpoints: RefCell::default(),
            bridged: Cell::new(false),
            routed: RefCell::default(),
            route: None,
            sources: Vec::new(),
            reserved: BTreeSet::new(),
            node_ports: HashSet::new(),
            node_protocols: HashSet::new(),
            sockets: HashSet::new(),
            listeners: HashSet::new(),
            sent_by_socket: true,
            clock: Cell::new(u32::MAX - 50),
            policy: Vec::new(),
            bypassed_before: HashSet::new(),
            pairs: RefCell::default(),
            reach: RefCell::default(),
            traffic: RefCell::default(),
            traffic_capacity: 1_000,
            rule_hits: RefCell::default(),
            refusals: RefCell::default(),
            new_mappings: RefCell::default(),
            unsegmented: Cell::new(None),
            l3_len: Cell::new(0),
            known_masqueraded: RefCell::default(),
            candidates: RefCell::default(),
            before_claim: RefCell::default(),
            before_original: RefCell::default(),
            before_end: RefCell::default(),
            before_queue: RefCell::default(),
            before_sockets: RefCell::default(),
            before_route: RefCell::default(),
            partial_checksums: Cell::new(false),
            fail_rewrite: Cell::new(None),
            fail_release: Cell::new(false),
            fail_delivery: Cell::new(false),
            queue: RefCell::default(),
            queue_capacity: 1_000,
            reinjected: RefCell::default(),
            reported: RefCell::default(),
            begun: RefCell::default(),
            logged: RefCell::default(),
            answered: Cell::new(0),
            dropped: Cell::new(None),
            scratch: Cell::new(None),
            counters: RefCell::default(),
            random: Cell::new(0x9e37_79b9),
        }
    }

    /// Adds a rule; the prefix is text such as "10.0.0.0/8".
    pub fn rule(&mut self, prefix: &str, action: Action) {
        let (net, len) = prefix.split_once('/').expect("a prefix");
        let net = addr(net);
        let len: u32 = len.parse().expect("a prefix length");
        let len = if net.is_v4() { len + 96 } else { len };
        self.policy.push((net, len, action));
    }

    pub fn asked_len(&self) -> usize {
        self.asked.borrow().len()
    }

    pub fn live_len(&self) -> usize {
        self.live.borrow().len()
    }

    pub fn fragments_len(&self) -> usize {
        self.fragments.iter().map(|side| side.borrow().len()).sum()
    }

    /// Returns what is counted for the network of a destination.
    pub fn reach(&self, destination: &Addr) -> Option<Reach> {
        let counted = self.reach.borrow();
        let cell = counted.get(&network_of(destination))?;
        // SAFETY: nothing writes at the same time.
        Some(unsafe { *cell.get() })
    }

    /// Returns the pairs in the bypass cache.
    pub fn pairs(&self) -> Vec<Pair> {
        let pairs = self.pairs.borrow();
        // SAFETY: there is one thread, and slots access the value only within a call.
        let pairs = pairs.values().map(|cell| unsafe { *cell.get() });
        let now = self.settings.epoch;
        // Those that only count have an epoch that never comes.
        pairs
            .filter(|pair| pair.rule != 0 && pair.epoch <= now)
            .collect()
    }

    /// Returns all that a half has counted.
    pub fn counted(&self, half: Half, tuple: &Tuple) -> Traffic {
        let map = match half {
            Half::Original => &self.snat,
            Half::Reply => &self.rev_snat,
        };
        let mut sum = map.get(tuple).expect("a half").uncarried(half);
        if let Some(carried) = self.traffic.borrow().get(&half.traffic_key(tuple)) {
            sum.add(carried);
        }
        sum
    }

    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    pub fn advance(&self, seconds: u64) {
        let step = u32::try_from(ticks(seconds)).expect("a time within the clock");
        self.clock.set(self.clock.get().wrapping_add(step));
    }
}
