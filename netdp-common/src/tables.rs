//! What the decisions need from the world: maps, clock, sockets.

use crate::abi::{Action, Counters, Fragment, Mapping, NodeProtocol, Settings, Uplink};
use crate::addr::{Addr, Family};
use crate::packet::Endpoint;
use crate::slot::Slot;
use crate::tuple::Tuple;

/// Why an entry could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken (`BPF_NOEXIST`).
    Exists,
    /// The map is full or the kernel has no memory.
    Full,
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
    /// Counts.
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64);
    /// Whether `addr` is an address of the node.
    fn is_local(&self, addr: &Addr) -> bool;
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
    /// Whether what a pod sends with this tuple keeps its address: a reply of a
    /// flow from outside, or of a flow that was bypassed. If so the record is
    /// refreshed.
    fn refresh_inbound(&self, tuple: &Tuple) -> bool;
    /// Remembers such a flow by the tuple that the pod sends. `limit`: silence in
    /// ticks after which it no longer counts, see [`crate::abi::Inbound`].
    fn insert_inbound(&self, tuple: &Tuple, limit: u32);
    /// Forgets it.
    fn remove_inbound(&self, tuple: &Tuple);
    /// The address that the kernel would choose for a packet of the node's own
    /// to `dst` by this uplink; `None` where it can't be asked.
    fn route_source(&self, dst: &Addr, family: Family) -> Option<Addr>;
    /// What becomes of the fragments of a datagram, by [`Fragment`]'s key.
    fn fragment(&self, key: &Tuple) -> Option<Fragment>;
    /// Remembers what becomes of them.
    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment);
    /// An IPv4 identification that the node has not used lately.
    fn next_ip_id(&self) -> u32;
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
    fn port_reserved(&self, port: u16) -> bool;
    /// Whether a hostPort or service of the node answers on this port, or a socket
    /// that a lookup would not find.
    fn node_answers(&self, protocol: u32, port: u16) -> bool;
    /// Whether the node itself speaks this protocol without ports with this peer.
    fn node_speaks(&self, key: &NodeProtocol) -> bool;
    /// Whether the packet was sent by a socket of the node.
    fn sent_by_socket(&self) -> bool;
    /// Whether a socket of the node would receive packets with the tuple `wire`.
    fn socket_receives(&self, wire: &Tuple) -> bool;
    /// The same, or a listener that would.
    fn socket_listens(&self, wire: &Tuple) -> bool;
    /// Calls `step` with 0, 1, 2 … until it returns false or `n` calls are made.
    ///
    /// `step` is a type of its own and captures nothing: the BPF target has no
    /// indirect calls.
    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool;
}
