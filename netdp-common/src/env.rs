//! The environment of the decisions: maps, clock, sockets, routes.
//!
//! `netdp-ebpf` implements it over BPF maps and helpers, the tests over ordinary maps with the
//! kernel's semantics. Names: `lookup_` reads an entry, `insert_` and `remove_` change the map,
//! `is_` and `has_` answer a question. The decisions about an entry are in [`crate::nat`].

use crate::direction::Direction;
use crate::layout::{
    Addr, Counters, DropReason, Endpoint, Family, Fragment, Inbound, Limits, Live, Mapping,
    NodeFlow, NodeProtocol, PolicyValue, Reach, Secret, Settings, SourceKey, Traffic, Tuple,
    Uplink,
};
use crate::slot::{
    AskedSlot, Key, LiveSlot, PairSlot, Place, PortMapSlot, ReachSlot, ShareSlot, Slot,
};

/// The reason why an entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken (`BPF_NOEXIST`).
    Exists,
    /// The map is full or the kernel has no memory.
    Full,
}

/// The route of a packet, as far as it affects the source address. All-zero bytes are a valid
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EgressRoute {
    /// The index of the outgoing interface: the uplink, or a VLAN device above it.
    pub link: u32,
    /// 1 if the kernel was queried for a source and returned one.
    pub has_source: u32,
    /// The source that the kernel returned: the route's own, or one of the interface's addresses,
    /// or one of another interface if that has none.
    pub source: Addr,
    /// The next hop: the router, or the destination itself if it is on-link.
    pub next: Addr,
}

/// The route to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// The index of the outgoing interface.
    pub ifindex: u32,
    /// True if the route has no gateway.
    pub direct: bool,
    /// True if a neighbour entry exists for the address.
    pub resolved: bool,
}

/// Facts about the new flows of a pod to a peer, which are masqueraded and whose source is not forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masqueraded {
    /// The key of the pod.
    pub key: Key,
    /// The index in `rule_hits` of the rule that decides.
    pub rule: u32,
}

/// Time and randomness.
pub trait Clock {
    /// Returns the time in ticks, see [`crate::flow`].
    fn now(&self) -> u32;
    /// Returns 32 random bits.
    fn random(&self) -> u32;
}

/// The counters.
pub trait Counting {
    /// Increments one of the counters of the interface.
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64);
    /// Adds to one of them.
    fn count_traffic(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic, more: &Traffic);
    /// Counts a dropped packet.
    fn count_drop(&self, reason: DropReason);
    /// Counts a new flow that was refused, for its bucket.
    fn count_refusal(&self, bucket: u32);
    /// Counts a search for a port that tried this many candidates.
    fn count_search(&self, candidates: u32);
    /// Counts a new mapping of this protocol, which is not TCP: mappings of TCP are the others.
    fn count_protocol(&self, protocol: u32);
}

/// The configuration in force.
pub trait Config {
    /// Returns the settings in force.
    fn settings(&self) -> &Settings;
    /// Returns the epoch as it was before any lookup ([`Settings::epoch`]).
    fn epoch(&self) -> u32;
    /// Returns the uplink that the packet leaves or arrives by.
    fn uplink(&self) -> &Uplink;
    /// Reports whether the interface with this index is an uplink.
    fn is_uplink(&self, ifindex: u32) -> bool;
    /// Returns the limits of pods, and the node's secret.
    fn limits(&self) -> &Limits;
    /// Returns the node's secret.
    #[inline(always)]
    fn secret(&self) -> Secret {
        self.limits().secret
    }
}

/// The interface at which the program runs, and the way by which the packet came to it.
pub trait Interface {
    /// Returns the index of the interface at which the program runs.
    fn ifindex(&self) -> u32;
    /// Returns the bytes of the packet from its IP header on, see [`Traffic::bytes`].
    fn l3_len(&self) -> u32;
    /// Returns the index of the interface by which the packet came to the node; 0 if the node
    /// itself sends it.
    fn ingress_ifindex(&self) -> u32;
    /// Reports whether the leaving packet was not sent by the node: its source hardware address is
    /// none of those by which the node sends. The route of `tuple` decides where the agent does not
    /// know all of them yet.
    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool;
    /// Reports whether the source hardware address of the leaving packet is none of those by which
    /// the agent knows the node to send: all that can be said of a packet without a tuple.
    fn has_foreign_mac(&self) -> bool;
    /// Reports whether the packet was sent by a socket of the node.
    fn is_sent_by_socket(&self) -> bool;
}

/// The policy, the addresses of the node, and the caches of address pairs.
pub trait Policy {
    /// Reports whether `addr` is an address of the node.
    fn is_local(&self, addr: &Addr) -> bool;
    /// Reports whether the node receives packets to `addr` although it is not one of its addresses
    /// (`ip route add local`).
    fn is_any_ip(&self, addr: &Addr) -> bool;
    /// Returns the entry for new flows to `dst`; `None` if none covers it.
    fn lookup_policy(&self, dst: &Addr) -> Option<PolicyValue>;
    /// Returns the number of slots that the CPU has in the bypass cache, as a power of two.
    fn pair_bits(&self) -> u32;
    /// Returns the slot of the CPU at `index` in the bypass cache.
    fn lookup_pair(&self, index: u32) -> Option<PairSlot>;
    /// Returns what is known of new flows of `pod` to `peer` by the interface by which the packet
    /// came, as found in this epoch. `None` on a miss.
    fn lookup_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32) -> Option<Masqueraded>;
    /// Caches what is known of such flows; the entry may be lost at any time.
    fn cache_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32, known: Masqueraded);
}

/// The mapping tables, and the shares of their users.
pub trait Mappings {
    /// Returns the original half of a mapping, by its original tuple.
    fn lookup_snat(&self, tuple: &Tuple) -> Option<Slot>;
    /// Returns the reply half of a mapping, by its wire tuple.
    fn lookup_rev_snat(&self, tuple: &Tuple) -> Option<Slot>;
    /// Inserts an original half unless there is one.
    ///
    /// # Errors
    /// Returns [`InsertError::Exists`] if there is one already, [`InsertError::Full`] if the map is
    /// full or the kernel has no memory.
    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError>;
    /// Claims a wire tuple unless it is taken.
    ///
    /// # Errors
    /// Returns [`InsertError::Exists`] if it is taken, [`InsertError::Full`] if the map is full or
    /// the kernel has no memory.
    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError>;
    /// Removes an original half; returns `false` if there was none, or another CPU was faster.
    fn remove_snat(&self, tuple: &Tuple) -> bool;
    /// Reports, if a log or a listener wants that ([`crate::layout::Ended`]), that a mapping, by its original
    /// tuple and its wire tuple, is about to end for a reason (`ENDED_*`). Returns `false` if it is not
    /// reported: there is no such mapping, or no room, which is counted.
    fn report_end(&self, tuple: &Tuple, wire: &Tuple, why: u32) -> bool;
    /// Releases a claimed wire tuple.
    fn remove_rev_snat(&self, tuple: &Tuple);
    /// Queues the tuple of a mapping that has begun or closed; replaces the oldest if the queue is
    /// full.
    fn push_recent(&self, tuple: &Tuple);
    /// Dequeues the oldest queued tuple; returns `false` if there is none.
    fn pop_recent(&self, tuple: &mut Tuple) -> bool;
    /// Returns the share of a bucket, or the total for [`crate::layout::SHARE_TOTAL`].
    fn lookup_share(&self, bucket: u32) -> Option<ShareSlot>;
}

/// The traffic that was carried over from mappings, and the hits of rules.
pub trait Accounting {
    /// Adds traffic to the entry of a half, by [`crate::layout::Half::traffic_key`]; returns `false`
    /// if there is none.
    fn add_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool;
    /// Inserts the entry of a half, or replaces it; returns `false` if the map is full or the kernel
    /// has no memory.
    fn insert_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool;
    /// Removes the entry of a half.
    fn remove_traffic(&self, key: &Tuple);
    /// Adds to the hits of a rule, by [`crate::layout::rule_index`].
    fn add_rule_hits(&self, index: u32, bypassed: &Traffic, flows: u64);
}

/// The counts of connections to bypassed destinations.
pub trait Reaching {
    /// Returns what is counted for a network ([`crate::layout::network_of`]).
    fn lookup_reach(&self, network: &Addr) -> Option<ReachSlot>;
    /// Begins to count for a network; may replace the least recently used.
    fn insert_reach(&self, network: &Addr, reach: &Reach);
}

/// Flows that keep the pod's address.
pub trait InboundFlows {
    /// Returns a flow that keeps the pod's address and that the pod has answered, by the tuple of
    /// the pod's packets.
    fn lookup_live(&self, tuple: &Tuple) -> Option<LiveSlot>;
    /// Records such a flow; returns `false` if there is no room, or it exists already.
    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool;
    /// Removes such a flow; returns `false` if it did not exist.
    fn remove_live(&self, tuple: &Tuple) -> bool;
    /// Returns a flow that keeps the pod's address and that the pod has not answered, or that has
    /// closed.
    fn lookup_asked(&self, tuple: &Tuple) -> Option<AskedSlot>;
    /// Records such a flow; may replace the least recently used.
    fn insert_asked(&self, tuple: &Tuple, inbound: &Inbound);
    /// Removes such a flow.
    fn remove_asked(&self, tuple: &Tuple);
}

/// The traffic of the node itself.
pub trait Node {
    /// Returns a recorded flow of the node itself for which no socket is found, by its wire tuple.
    fn lookup_node_flow(&self, wire: &Tuple) -> Option<NodeFlow>;
    /// Records such a flow; the entry may be lost at any time.
    fn insert_node_flow(&self, wire: &Tuple, flow: &NodeFlow);
    /// Returns when a flow of the node with this L4 id was last recorded
    /// ([`crate::layout::NodeFlowPorts`]).
    fn node_flow_stamp(&self, port: u16) -> u8;
    /// Records that a flow of the node with this L4 id is recorded now.
    fn set_node_flow_stamp(&self, port: u16, stamp: u8);
    /// Reports whether a hostPort or service of the node answers on this port, or a socket that a
    /// lookup would not find.
    fn is_node_port(&self, protocol: u32, port: u16) -> bool;
    /// Reports whether the node itself uses this protocol, which has no ports, with this peer.
    fn is_node_protocol(&self, key: &NodeProtocol) -> bool;
    /// Reports whether a socket of the node, including a listener, would receive packets with the
    /// tuple `wire`.
    fn has_socket(&self, wire: &Tuple) -> bool;
}

/// The ports that mappings may get, and those that pods have.
pub trait Ports {
    /// Returns the map of taken ports at `index`, below [`crate::layout::PORT_MAPS`].
    fn lookup_port_map(&self, index: u32) -> Option<PortMapSlot>;
    /// Reports whether `port` is never given to mappings (NodePorts and similar).
    #[inline(always)]
    fn is_port_reserved(&self, port: u16) -> bool {
        self.reserved_ports(port as u32 / 64) >> (port % 64) & 1 != 0
    }
    /// Returns the bits of the 64 ports from `64 * word` on that are never given to mappings.
    fn reserved_ports(&self, word: u32) -> u64;
    /// Returns the tick at which all ports towards a destination were found taken. The `dst_id` of
    /// `wire` is the first of them.
    fn lookup_exhausted(&self, wire: &Tuple) -> Option<u32>;
    /// Records the tick at which all ports towards a destination were found taken.
    fn insert_exhausted(&self, wire: &Tuple, now: u32);
    /// Returns the wire port that an endpoint has towards other destinations. `endpoint` is the
    /// pod's side of a tuple, with the node's address as destination.
    fn lookup_endpoint_port(&self, endpoint: &Tuple) -> Option<u16>;
    /// Records the wire port of an endpoint.
    fn insert_endpoint_port(&self, endpoint: &Tuple, port: u16);
    /// Returns the remote endpoint of a mapping with this endpoint on the wire. `endpoint` is the
    /// wire side of a tuple.
    fn lookup_wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint>;
    /// Records the remote endpoint of a mapping with this endpoint on the wire.
    fn insert_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint);
}

/// The verdicts for fragments, and the identifications of datagrams.
pub trait Fragments {
    /// Returns the verdict for the fragments of a datagram of this direction, by the key of
    /// [`Fragment`].
    fn lookup_fragment(&self, key: &Tuple, direction: Direction) -> Option<Fragment>;
    /// Stores the verdict for the fragments of a datagram.
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, direction: Direction);
    /// Increments the sequence of IPv4 identifications chosen by `sequence`, and returns the next;
    /// only the lower 16 bits are used.
    fn next_ip_id(&self, sequence: u32) -> u32;
}

/// The kernel's routing tables.
pub trait Routes {
    /// Returns the route that a forwarded packet with this tuple takes by the uplink; `None` if it
    /// cannot be determined.
    fn lookup_route(&self, tuple: &Tuple, family: Family) -> Option<&EgressRoute>;
    /// Looks up the source that the agent has configured for `key`, and puts it into `addr` if it
    /// is valid at this uplink.
    fn lookup_source(&self, key: &SourceKey, addr: &mut Addr) -> bool;
    /// Returns the route to `addr`, a pod; `None` if there is none.
    fn lookup_pod_route(&self, addr: &Addr, family: Family) -> Option<PodRoute>;
}

/// Reports of events, made while somebody listens ([`Settings::events`]).
pub trait Events {
    /// Reports that a mapping has begun, by its original tuple, its wire tuple, and the index in
    /// `rule_hits` of its rule. Returns `false` if it was left out, which is counted.
    fn report_begin(&self, tuple: &Tuple, wire: &Tuple, rule: u32) -> bool;
}

/// A loop whose number of steps the verifier does not have to prove.
pub trait BoundedLoop {
    /// Calls `step` with 0, 1, 2 … until it returns false or `n` calls are made.
    ///
    /// `step` has a type of its own and captures nothing: the BPF target has no indirect calls.
    fn bounded_loop<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool;
}

/// The whole environment.
pub trait Env:
    Clock
    + Counting
    + Config
    + Interface
    + Policy
    + Mappings
    + Accounting
    + Reaching
    + InboundFlows
    + Node
    + Ports
    + Fragments
    + Routes
    + Events
    + BoundedLoop
{
    /// Returns the uplink and the epoch of a packet that leaves.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
    fn place(&self) -> Place {
        Place {
            uplink: self.ifindex() as u16,
            epoch: self.epoch() as u8,
        }
    }

    /// Counts the packet in one of the counters of outcomes.
    #[inline(always)]
    fn count_packet(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic) {
        self.count_traffic(counter, &Traffic::packet(self.l3_len()));
    }
}

impl<T> Env for T where
    T: Clock
        + Counting
        + Config
        + Interface
        + Policy
        + Mappings
        + Accounting
        + Reaching
        + InboundFlows
        + Node
        + Ports
        + Fragments
        + Routes
        + Events
        + BoundedLoop
{
}
