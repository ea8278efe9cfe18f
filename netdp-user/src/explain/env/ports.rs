//! The ports of mappings, the traffic of the node itself, and fragments.

use super::LiveEnv;
use crate::explain::question::{NotAsked, Question};
use netdp_common::direction::Direction;
use netdp_common::env::{Clock as _, Fragments, Node, Ports};
use netdp_common::layout::{
    Endpoint, Fragment, NodeFlow, NodeProtocol, PortMapBits, PortMapOwner, Tuple, node_port_bit,
};
use netdp_common::slot::PortMapSlot;

impl Node for LiveEnv<'_> {
    fn lookup_node_flow(&self, wire: &Tuple) -> Option<NodeFlow> {
        let read = || self.found(self.maps.node_flows.get(wire, 0), "node_flows");
        let found = self.node_flows.get(wire, read);
        self.note(Question::NodeFlow { wire: *wire, found });
        found
    }

    fn insert_node_flow(&self, wire: &Tuple, flow: &NodeFlow) {
        self.node_flows.set(wire, *flow);
    }

    fn node_flow_stamp(&self, port: u16) -> u8 {
        let read = || {
            let all = match self.all_stamps.get() {
                Some(all) => all,
                None => {
                    let all = self.entry(&self.maps.node_flow_ports, 0, "node_flow_ports")?;
                    self.all_stamps.get_or_init(|| Box::new(all))
                }
            };
            all.0.get(usize::from(port)).copied()
        };
        self.stamps.get(&port, read).unwrap_or(u8::MAX)
    }

    fn set_node_flow_stamp(&self, port: u16, stamp: u8) {
        self.stamps.set(&port, stamp);
    }

    fn is_node_port(&self, protocol: u32, port: u16) -> bool {
        let bits = self.entry(&self.maps.node_ports, port.into(), "node_ports");
        let yes = bits.is_some_and(|bits| bits & node_port_bit(protocol) != 0);
        self.note(Question::NodePort {
            protocol,
            port,
            yes,
        });
        yes
    }

    fn is_node_protocol(&self, key: &NodeProtocol) -> bool {
        let found = self.found(self.maps.node_protocols.get(key, 0), "node_protocols");
        let yes = found.is_some();
        self.note(Question::NodeProtocol {
            peer: key.peer,
            protocol: key.proto,
            yes,
        });
        yes
    }

    fn has_socket(&self, wire: &Tuple) -> bool {
        let mut kernel = self.kernel.borrow_mut();
        let sockets = kernel.sockets.as_mut().ok();
        let Some(sockets) = sockets.filter(|it| it.has(wire.proto)) else {
            let protocol = wire.proto;
            self.note_not_asked(NotAsked::Sockets { protocol });
            return false;
        };
        match sockets.receives(wire, self.at.ifindex) {
            Ok(yes) => {
                self.note(Question::Socket { wire: *wire, yes });
                yes
            }
            Err(err) => {
                self.fail(err);
                false
            }
        }
    }
}

impl Ports for LiveEnv<'_> {
    fn lookup_port_map(&self, index: u32) -> Option<PortMapSlot> {
        let owner = self.port_map_owners.slot(&index, || {
            self.entry::<PortMapOwner>(&self.maps.port_map_owners, index, "port_map_owners")
        })?;
        let bits = self.port_maps.slot(&index, || {
            self.entry::<PortMapBits>(&self.maps.port_maps, index, "port_maps")
        })?;
        // SAFETY: both are valid for as long as the environment.
        Some(unsafe { PortMapSlot::new(owner, bits) })
    }

    fn is_port_reserved(&self, port: u16) -> bool {
        let yes = self.reserved_ports(u32::from(port) / 64) >> (port % 64) & 1 != 0;
        self.note(Question::Reserved { port, yes });
        yes
    }

    fn reserved_ports(&self, word: u32) -> u64 {
        self.entry(&self.maps.reserved_ports, word, "reserved_ports")
            .unwrap_or(0)
    }

    /// Looks up when the ports were found taken. Without the map, more candidates are tried than a
    /// program would try for half a second after a refusal.
    fn lookup_exhausted(&self, wire: &Tuple) -> Option<u32> {
        let map = self.maps.unpinned.exhausted.as_ref();
        let read = || map.and_then(|map| self.found(map.get(wire, 0), "EXHAUSTED"));
        let since = self.exhausted.get(wire, read);
        self.note(Question::Exhausted { wire: *wire, since });
        since
    }

    fn insert_exhausted(&self, wire: &Tuple, now: u32) {
        self.exhausted.set(wire, now);
    }

    /// Looks up the endpoint's port. Without the map, the pod's own port is tried first.
    fn lookup_endpoint_port(&self, endpoint: &Tuple) -> Option<u16> {
        let map = self.maps.unpinned.endpoints.as_ref();
        let read = || map.and_then(|map| self.found(map.get(endpoint, 0), "ENDPOINTS"));
        let port = self.endpoints.get(endpoint, read);
        let port = port.and_then(|port| u16::try_from(port & 0xffff).ok());
        self.note(Question::EndpointPort {
            endpoint: *endpoint,
            port,
        });
        port
    }

    fn insert_endpoint_port(&self, endpoint: &Tuple, port: u16) {
        self.endpoints.set(endpoint, port.into());
    }

    fn lookup_wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint> {
        let map = self.maps.unpinned.wire_endpoints.as_ref();
        let read = || map.and_then(|map| self.found(map.get(endpoint, 0), "WIRE_ENDPOINTS"));
        self.wire_endpoints.get(endpoint, read)
    }

    fn insert_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint) {
        self.wire_endpoints.set(endpoint, *far);
    }
}

impl Fragments for LiveEnv<'_> {
    fn lookup_fragment(&self, key: &Tuple, direction: Direction) -> Option<Fragment> {
        let [egress, ingress] = &self.fragments;
        let found = match direction {
            Direction::Egress => egress.get(key, || {
                self.found(self.maps.fragments.get(key, 0), "fragments")
            }),
            Direction::Ingress => ingress.get(key, || {
                self.found(self.maps.fragments_in.get(key, 0), "fragments_in")
            }),
        };
        self.note(Question::Fragment {
            key: *key,
            direction,
            found,
        });
        found
    }

    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, direction: Direction) {
        let [egress, ingress] = &self.fragments;
        match direction {
            Direction::Egress => egress.set(key, *fragment),
            Direction::Ingress => ingress.set(key, *fragment),
        }
    }

    /// Returns a random identification: the last one is in a map that no decision depends on.
    fn next_ip_id(&self, _: u32) -> u32 {
        self.random()
    }
}
