//! What the decisions need from the world: maps, clock, sockets.

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

/// Why an entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken (`BPF_NOEXIST`).
    Exists,
    /// The map is full or the kernel has no memory.
    Full,
}

/// Where a source is, as the routing table has it, beside where its packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing speaks against it: no route, a default route, a route by a gateway that
    /// leads elsewhere, or the packet came by no interface.
    Unknown,
    /// Its network begins behind the interface by which the packet came, and a neighbour
    /// there is known by this address.
    Link,
    /// The same, but no neighbour is known by it.
    Unresolved,
    /// A gateway behind the interface by which the packet came leads there.
    Routed,
    /// Its network begins behind another interface: the packet is forged.
    Elsewhere,
}

/// The datapath's maps and helpers. `netdp-ebpf` implements it over BPF maps,
/// the tests over ordinary ones with the kernel's semantics.
pub trait Tables {
    /// Time in ticks, see [`crate::conntrack`].
    fn now(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// The settings in force.
    fn settings(&self) -> &Settings;
    /// The uplink that the packet leaves or comes in by.
    fn uplink(&self) -> &Uplink;
    /// The index of the interface at which the program runs.
    fn ifindex(&self) -> u32;
    /// Where a packet that leaves does so.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
    fn place(&self) -> Place {
        Place {
            uplink: self.ifindex() as u16,
            epoch: self.epoch() as u8,
        }
    }
    /// The epoch, as it was before anything was looked up ([`Settings::epoch`]).
    fn epoch(&self) -> u32;
    /// Counts.
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64);
    /// Whether `addr` is an address of the node.
    fn is_local(&self, addr: &Addr) -> bool;
    /// Whether the node receives what is sent to `addr` although it is no address of the node
    /// (`ip route add local`).
    fn is_any_ip(&self, addr: &Addr) -> bool;
    /// The policy for new flows to `dst`.
    fn action(&self, dst: &Addr) -> Action;
    /// Whether packets between `pod` and `peer` were found to be bypassed, and
    /// still are: `pod` is no address of the node, the policy bypasses `peer`, and
    /// no mapping lives that says otherwise. `false` where nothing is known.
    fn is_known_bypass(&self, pod: &Addr, peer: &Addr) -> bool;
    /// Remembers that they are; may forget it any time.
    fn set_known_bypass(&self, pod: &Addr, peer: &Addr);
    /// Whether a policy before the one in force bypassed `dst`, which is
    /// masqueraded now.
    fn was_bypassed(&self, dst: &Addr) -> bool;
    /// The original half of a mapping, by the tuple that the pod sends.
    fn snat(&self, tuple: &Tuple) -> Option<Slot>;
    /// The reply half of a mapping, by the tuple that comes in.
    fn rev_snat(&self, tuple: &Tuple) -> Option<Slot>;
    /// Inserts an original half unless there is one.
    ///
    /// # Errors
    /// [`InsertError`] where it can't be.
    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError>;
    /// Claims a wire tuple unless it is taken.
    ///
    /// # Errors
    /// [`InsertError`] where it can't be.
    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError>;
    /// Gives a wire tuple back.
    fn remove_rev_snat(&self, tuple: &Tuple);
    /// Removes an original half; `false` if there was none, or another CPU was faster.
    fn remove_snat(&self, tuple: &Tuple) -> bool;
    /// What pods may take, and the secret of the node.
    fn limits(&self) -> &Limits;
    /// The secret of the node.
    #[inline(always)]
    fn secret(&self) -> siphash::Key {
        self.limits().secret
    }
    /// What the pods of a bucket have, or all of them for [`crate::share::TOTAL`].
    fn share(&self, bucket: u32) -> Option<ShareSlot>;
    /// The index of the interface by which the packet came to the node; 0 if the node
    /// itself sends it.
    fn ingress_ifindex(&self) -> u32;
    /// Where `addr` is, beside where the packet came from.
    fn origin(&self, addr: &Addr, family: Family) -> Origin;
    /// Remembers the tuple of a mapping that has begun or closed, in the place of the oldest if
    /// need be.
    fn push_recent(&self, tuple: &Tuple);
    /// Takes out the one that was remembered longest ago; `false` if there is none.
    fn pop_recent(&self, tuple: &mut Tuple) -> bool;
    /// The map of taken ports in this place, below [`crate::port_map::PORT_MAPS`].
    fn port_map(&self, index: u32) -> Option<PortMapSlot>;
    /// A flow of the node's own that no socket is found for, by the tuple that comes in.
    fn node_flow(&self, wire: &Tuple) -> Option<NodeFlow>;
    /// Remembers one; may forget it any time.
    fn set_node_flow(&self, wire: &Tuple, flow: &NodeFlow);
    /// A flow that keeps the pod's address and that the pod has answered, by the tuple
    /// that the pod sends.
    fn live(&self, tuple: &Tuple) -> Option<LiveSlot>;
    /// Remembers one; `false` if there is no room, or it is there already.
    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool;
    /// Forgets it; `false` if it was gone.
    fn remove_live(&self, tuple: &Tuple) -> bool;
    /// Such a flow that the pod has not answered, or that has closed.
    fn asked(&self, tuple: &Tuple) -> Option<AskedSlot>;
    /// Remembers one, in the place of the least recently used. `limit`: silence in ticks
    /// after which it no longer counts, see [`crate::abi::Inbound`].
    fn insert_asked(&self, tuple: &Tuple, limit: u32);
    /// Forgets it.
    fn remove_asked(&self, tuple: &Tuple);
    /// Whether the packet that leaves was not sent by the node: it has another hardware address for
    /// source than those by which the node sends.
    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool;
    /// The route that a forwarded packet with this tuple takes by the uplink; `None` where that
    /// can't be told.
    fn way(&self, tuple: &Tuple, family: Family) -> Option<&Way>;
    /// Puts the source that the agent has put down for a key into `addr`, if it counts at this
    /// uplink.
    fn source(&self, key: &SourceKey, addr: &mut Addr) -> bool;
    /// What becomes of the fragments of a datagram that leaves, or comes in, by
    /// [`Fragment`]'s key.
    fn fragment(&self, key: &Tuple, leaving: bool) -> Option<Fragment>;
    /// Remembers what becomes of them.
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, leaving: bool);
    /// Counts the IPv4 identifications of a sequence, chosen by `sequence`; the lower 16
    /// bits count.
    fn next_ip_id(&self, sequence: u32) -> u32;
    /// Whether all ports towards a destination were taken a moment ago. `wire`'s
    /// `dst_id` is the first of them.
    fn is_exhausted(&self, wire: &Tuple) -> bool;
    /// Remembers that they are.
    fn set_exhausted(&self, wire: &Tuple);
    /// The wire port that an endpoint has towards other destinations. `endpoint`
    /// is the pod's side of a tuple, with the node's address for destination.
    fn endpoint_port(&self, endpoint: &Tuple) -> Option<u16>;
    /// Remembers it.
    fn set_endpoint_port(&self, endpoint: &Tuple, port: u16);
    /// The far end of a mapping with this endpoint on the wire. `endpoint` is the
    /// wire's side of a tuple.
    fn wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint>;
    /// Remembers it.
    fn set_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint);
    /// Whether `port` must not be given away (NodePorts and the like).
    #[inline(always)]
    fn port_reserved(&self, port: u16) -> bool {
        self.ports_reserved(port as u32 / 64) >> (port % 64) & 1 != 0
    }
    /// Which of the 64 ports from `64 * word` on must not be given away.
    fn ports_reserved(&self, word: u32) -> u64;
    /// Whether a hostPort or service of the node answers on this port, or a socket
    /// that a lookup would not find.
    fn node_answers(&self, protocol: u32, port: u16) -> bool;
    /// Whether the node itself speaks this protocol without ports with this peer.
    fn node_speaks(&self, key: &NodeProtocol) -> bool;
    /// Whether the packet was sent by a socket of the node.
    fn sent_by_socket(&self) -> bool;
    /// Whether a socket of the node would receive packets with the tuple `wire`, a
    /// listener included.
    fn socket_receives(&self, wire: &Tuple) -> bool;
    /// Calls `step` with 0, 1, 2 … until it returns false or `n` calls are made.
    ///
    /// `step` is a type of its own and captures nothing: the BPF target has no
    /// indirect calls.
    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool;
}
