//! The ports of mappings, the traffic of the node itself, and fragments.

use super::TcEnv;
use crate::maps::{
    ENDPOINTS, EXHAUSTED, FRAGMENTS, FRAGMENTS_IN, IP_ID_SEQUENCES, IP_IDS, NODE_FLOW_PORTS,
    NODE_FLOWS, NODE_PORTS, NODE_PROTOCOLS, PORT_MAP_OWNERS, PORT_MAPS, RESERVED_PORTS,
    WIRE_ENDPOINTS,
};
use crate::sockets;
use netdp_common::direction::Direction;
use netdp_common::env::{Clock as _, Fragments, Node, Ports};
use netdp_common::layout::{Endpoint, Fragment, NodeFlow, NodeProtocol, Tuple, node_port_bit};
use netdp_common::slot::PortMapSlot;

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
    fn node_flow_stamp(&self, port: u16) -> u8 {
        let stamps = NODE_FLOW_PORTS.get_ptr(0);
        // SAFETY: a map value; one byte.
        stamps.map_or(u8::MAX, |stamps| unsafe { (*stamps).0[port as usize] })
    }

    #[inline(always)]
    fn set_node_flow_stamp(&self, port: u16, stamp: u8) {
        if let Some(stamps) = NODE_FLOW_PORTS.get_ptr_mut(0) {
            // SAFETY: a map value; one byte, which no other write touches.
            unsafe { (*stamps).0[port as usize] = stamp };
        }
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
