//! The environment of the decisions: maps, clock, sockets.

use crate::abi::{
    Action, Counters, Fragment, Limits, Live, Mapping, NodeFlow, NodeProtocol, Settings, SourceKey,
    Uplink,
};
use crate::addr::{Addr, Family};
use crate::nat::Way;
use crate::packet::Endpoint;
use crate::port_map::PortMapSlot;
use crate::share::ShareSlot;
use crate::siphash;
use crate::slot::{AskedSlot, LiveSlot, Place, Slot};
use crate::tuple::Tuple;

/// The reason why an entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken (`BPF_NOEXIST`).
    Exists,
    /// The map is full or the kernel has no memory.
    Full,
}

/// The location of a source by the routing table, relative to the interface by which its packet
/// came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No contradiction: no route, a default route, a route via a gateway that leads elsewhere, or
    /// the packet came by no interface.
    Unknown,
    /// Its network is on-link at the interface by which the packet came, and a neighbour there is
    /// known by this address.
    Link,
    /// Its network is on-link at that interface, but no neighbour is known by this address.
    Unresolved,
    /// It is reached via a gateway behind the interface by which the packet came.
    Routed,
    /// Its network is on-link at another interface: the packet is forged.
    Elsewhere,
}

/// The datapath's maps and helpers. `netdp-ebpf` implements it over BPF maps,
/// the tests over ordinary ones with the kernel's semantics.
pub trait Tables {
    /// Returns the time in ticks, see [`crate::conntrack`].
    fn now(&self) -> u32;
    /// Returns 32 random bits.
    fn random(&self) -> u32;
    /// Returns the settings in force.
    fn settings(&self) -> &Settings;
    /// Returns the uplink that the packet leaves or arrives by.
    fn uplink(&self) -> &Uplink;
    /// Returns the index of the interface at which the program runs.
    fn ifindex(&self) -> u32;
    /// Returns the uplink and epoch of a leaving packet.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
    fn place(&self) -> Place {
        Place {
            uplink: self.ifindex() as u16,
            epoch: self.epoch() as u8,
        }
    }
    /// Returns the epoch as it was before any lookup ([`Settings::epoch`]).
    fn epoch(&self) -> u32;
    /// Increments one of the counters.
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64);
    /// Reports whether `addr` is an address of the node.
    fn is_local(&self, addr: &Addr) -> bool;
    /// Reports whether the node receives packets to `addr` although it is not one of its addresses
    /// (`ip route add local`).
    fn is_any_ip(&self, addr: &Addr) -> bool;
    /// Returns the policy's action for new flows to `dst`.
    fn action(&self, dst: &Addr) -> Action;
    /// Reports whether packets between `pod` and `peer` were found to be bypassed, and still are:
    /// `pod` is not an address of the node, the policy bypasses `peer`, and no live mapping
    /// overrides it. `false` on a miss.
    fn is_known_bypass(&self, pod: &Addr, peer: &Addr) -> bool;
    /// Caches that packets between `pod` and `peer` are bypassed; the entry may be lost at any
    /// time.
    fn set_known_bypass(&self, pod: &Addr, peer: &Addr);
    /// Reports whether an earlier policy bypassed `dst`, which is now masqueraded.
    fn was_bypassed(&self, dst: &Addr) -> bool;
    /// Returns the original half of a mapping, by its original tuple.
    fn snat(&self, tuple: &Tuple) -> Option<Slot>;
    /// Returns the reply half of a mapping, by its wire tuple.
    fn rev_snat(&self, tuple: &Tuple) -> Option<Slot>;
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
    /// Releases a claimed wire tuple.
    fn remove_rev_snat(&self, tuple: &Tuple);
    /// Removes an original half; returns `false` if there was none, or another CPU was faster.
    fn remove_snat(&self, tuple: &Tuple) -> bool;
    /// Returns the limits of pods, and the node's secret.
    fn limits(&self) -> &Limits;
    /// Returns the node's secret.
    #[inline(always)]
    fn secret(&self) -> siphash::Key {
        self.limits().secret
    }
    /// Returns the share of a bucket, or the total for [`crate::share::TOTAL`].
    fn share(&self, bucket: u32) -> Option<ShareSlot>;
    /// Returns the index of the interface by which the packet came to the node; 0 if the node
    /// itself sends it.
    fn ingress_ifindex(&self) -> u32;
    /// Returns the location of `addr`, relative to the interface by which the packet came.
    fn origin(&self, addr: &Addr, family: Family) -> Origin;
    /// Queues the tuple of a mapping that has begun or closed; replaces the oldest if the queue is
    /// full.
    fn push_recent(&self, tuple: &Tuple);
    /// Dequeues the oldest queued tuple; returns `false` if there is none.
    fn pop_recent(&self, tuple: &mut Tuple) -> bool;
    /// Returns the map of taken ports at `index`, below [`crate::port_map::PORT_MAPS`].
    fn port_map(&self, index: u32) -> Option<PortMapSlot>;
    /// Returns a recorded flow of the node itself for which no socket is found, by its wire tuple.
    fn node_flow(&self, wire: &Tuple) -> Option<NodeFlow>;
    /// Records such a flow; the entry may be lost at any time.
    fn set_node_flow(&self, wire: &Tuple, flow: &NodeFlow);
    /// Returns a flow that keeps the pod's address and that the pod has answered, by the tuple of
    /// the pod's packets.
    fn live(&self, tuple: &Tuple) -> Option<LiveSlot>;
    /// Records such a flow; returns `false` if there is no room, or it exists already.
    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool;
    /// Removes such a flow; returns `false` if it did not exist.
    fn remove_live(&self, tuple: &Tuple) -> bool;
    /// Returns a flow that keeps the pod's address and that the pod has not answered, or that has
    /// closed.
    fn asked(&self, tuple: &Tuple) -> Option<AskedSlot>;
    /// Records such a flow; may replace the least recently used. `limit`: silence in ticks after
    /// which it expires, see [`crate::abi::Inbound`].
    fn insert_asked(&self, tuple: &Tuple, limit: u32);
    /// Removes such a flow.
    fn remove_asked(&self, tuple: &Tuple);
    /// Reports whether the leaving packet was not sent by the node: its source hardware address is
    /// none of those by which the node sends.
    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool;
    /// Returns the route that a forwarded packet with this tuple takes by the uplink; `None` if it
    /// cannot be determined.
    fn way(&self, tuple: &Tuple, family: Family) -> Option<&Way>;
    /// Looks up the source that the agent has configured for `key`, and puts it into `addr` if it
    /// is valid at this uplink.
    fn source(&self, key: &SourceKey, addr: &mut Addr) -> bool;
    /// Returns the verdict for the fragments of a datagram that leaves, or arrives, by the key of
    /// [`Fragment`].
    fn fragment(&self, key: &Tuple, leaving: bool) -> Option<Fragment>;
    /// Stores the verdict for the fragments of a datagram.
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, leaving: bool);
    /// Increments the sequence of IPv4 identifications chosen by `sequence`, and returns the next;
    /// only the lower 16 bits are used.
    fn next_ip_id(&self, sequence: u32) -> u32;
    /// Reports whether all ports towards a destination were recently found taken. The `dst_id` of
    /// `wire` is the first of them.
    fn is_exhausted(&self, wire: &Tuple) -> bool;
    /// Records that all ports towards a destination are taken.
    fn set_exhausted(&self, wire: &Tuple);
    /// Returns the wire port that an endpoint has towards other destinations. `endpoint` is the
    /// pod's side of a tuple, with the node's address as destination.
    fn endpoint_port(&self, endpoint: &Tuple) -> Option<u16>;
    /// Records the wire port of an endpoint.
    fn set_endpoint_port(&self, endpoint: &Tuple, port: u16);
    /// Returns the remote endpoint of a mapping with this endpoint on the wire. `endpoint` is the
    /// wire side of a tuple.
    fn wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint>;
    /// Records the remote endpoint of a mapping with this endpoint on the wire.
    fn set_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint);
    /// Reports whether `port` is never given to mappings (NodePorts and similar).
    #[inline(always)]
    fn port_reserved(&self, port: u16) -> bool {
        self.ports_reserved(port as u32 / 64) >> (port % 64) & 1 != 0
    }
    /// Returns the bits of the 64 ports from `64 * word` on that are never given to mappings.
    fn ports_reserved(&self, word: u32) -> u64;
    /// Reports whether a hostPort or service of the node answers on this port, or a socket that a
    /// lookup would not find.
    fn node_answers(&self, protocol: u32, port: u16) -> bool;
    /// Reports whether the node itself uses this protocol, which has no ports, with this peer.
    fn node_speaks(&self, key: &NodeProtocol) -> bool;
    /// Reports whether the packet was sent by a socket of the node.
    fn sent_by_socket(&self) -> bool;
    /// Reports whether a socket of the node, including a listener, would receive packets with the
    /// tuple `wire`.
    fn socket_receives(&self, wire: &Tuple) -> bool;
    /// Calls `step` with 0, 1, 2 … until it returns false or `n` calls are made.
    ///
    /// `step` has a type of its own and captures nothing: the BPF target has no indirect calls.
    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool;
}
