//! The questions that a decision asks of its environment, each with the answer.

use netdp_common::direction::Direction;
use netdp_common::env::{EgressRoute, InsertError, PodRoute};
use netdp_common::flow::age;
use netdp_common::layout::{
    Addr, Fragment, Inbound, Live, Mapping, NodeFlow, PolicyValue, SourceKey, Tuple,
};

/// A question with its answer. Ids are in host byte order, times in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the sentence of each variant says what its fields are"
)]
pub enum Question {
    /// An address, and whether it is one of the node's.
    Local { addr: Addr, yes: bool },
    /// An address, and whether the node receives packets to it although it is none of its own.
    AnyIp { addr: Addr, yes: bool },
    /// The policy's entry for new flows to a destination; `None`: no entry covers it.
    Policy {
        dst: Addr,
        value: Option<PolicyValue>,
    },
    /// The mapping of a tuple.
    Mapping {
        tuple: Tuple,
        found: Option<Mapping>,
    },
    /// The owner of a wire tuple.
    Owner { wire: Tuple, found: Option<Mapping> },
    /// The result of claiming a wire tuple.
    Claim {
        wire: Tuple,
        result: Result<(), InsertError>,
    },
    /// The mapping of a tuple that would begin.
    Begins {
        tuple: Tuple,
        result: Result<(), InsertError>,
    },
    /// The mapping of a tuple that would end.
    Ends { tuple: Tuple },
    /// Numbers of mappings and inbound flows of a bucket.
    Share {
        bucket: u32,
        mappings: u32,
        inbound: u32,
    },
    /// A flow that keeps the pod's address and that the pod has answered.
    InboundLive { tuple: Tuple, found: Option<Live> },
    /// A flow that keeps the pod's address and that the pod has not answered.
    InboundAsked {
        tuple: Tuple,
        found: Option<Inbound>,
    },
    /// A port, and whether it is kept from mappings.
    Reserved { port: u16, yes: bool },
    /// A port, and whether a hostPort or service of the node answers on it.
    NodePort { protocol: u32, port: u16, yes: bool },
    /// A protocol, and whether the node itself uses it with a peer.
    NodeProtocol {
        peer: Addr,
        protocol: u32,
        yes: bool,
    },
    /// A flow of the node itself.
    NodeFlow {
        wire: Tuple,
        found: Option<NodeFlow>,
    },
    /// A wire tuple, and whether a socket of the node would receive its packets.
    Socket { wire: Tuple, yes: bool },
    /// The time since which all ports towards a destination are taken.
    Exhausted { wire: Tuple, since: Option<u32> },
    /// The port of an endpoint towards other destinations.
    EndpointPort { endpoint: Tuple, port: Option<u16> },
    /// The decision about the datagram of a fragment.
    Fragment {
        key: Tuple,
        direction: Direction,
        found: Option<Fragment>,
    },
    /// The route that the packet takes by the uplink.
    Route {
        tuple: Tuple,
        found: Option<EgressRoute>,
    },
    /// The source that the agent has configured for a route.
    Source { key: SourceKey, found: Option<Addr> },
    /// The route to a pod.
    PodRoute { addr: Addr, found: Option<PodRoute> },
    /// An interface, and whether it is an uplink.
    Uplink { ifindex: u32, yes: bool },
    /// The sender of the packet, by its source hardware address; `yes`: not the node.
    Bridged { yes: bool },
    /// A question that could not be asked from here; the decision went on as if the answer were no.
    NotAsked(NotAsked),
}

/// A question that could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as above")]
pub enum NotAsked {
    /// The kernel does not report sockets of this protocol to user space.
    Sockets { protocol: u32 },
    /// The kernel does not answer questions about routes.
    Routes,
    /// The map of sources by route: no program is loaded, or this process may not read its maps.
    Sources,
    /// The map of hardware addresses, likewise.
    HardwareAddresses,
}

/// A port that was tried for a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortTried {
    /// The port, or the L4 id.
    pub port: u16,
    /// The result.
    pub result: Tried,
}

/// The result of trying a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It is free.
    Free,
    /// `--reserved-ports`, or another reason for which no mapping gets it.
    Reserved,
    /// A hostPort or service of the node answers on it.
    NodePort,
    /// A mapping has it towards this destination.
    Mapping(Mapping),
    /// A socket of the node has it.
    Socket,
    /// A flow of the node has it.
    NodeFlow,
    /// There is no room in the table.
    Full,
}

/// Returns the ports that were tried for a mapping, in order, each with its last result.
#[must_use]
pub fn ports_tried(questions: &[Question], now: u32) -> Vec<PortTried> {
    let mut tried: Vec<PortTried> = Vec::new();
    for question in questions {
        let (port, result) = match *question {
            Question::Reserved { port, yes: true } => (port, Tried::Reserved),
            Question::NodePort {
                port, yes: true, ..
            } => (port, Tried::NodePort),
            Question::Socket { wire, yes: true } => (wire.dst_id, Tried::Socket),
            Question::NodeFlow {
                wire,
                found: Some(flow),
            } if age(now, flow.last_seen) < flow.limit => (wire.dst_id, Tried::NodeFlow),
            Question::Owner {
                wire,
                found: Some(owner),
            } => (wire.dst_id, Tried::Mapping(owner)),
            Question::Claim { wire, result } => match result {
                Ok(()) => (wire.dst_id, Tried::Free),
                Err(InsertError::Full) => (wire.dst_id, Tried::Full),
                // The next question is for its owner.
                Err(InsertError::Exists) => continue,
            },
            _ => continue,
        };
        tried.retain(|other| other.port != port);
        tried.push(PortTried { port, result });
    }
    tried
}

#[cfg(test)]
mod tests {
    use super::{PortTried, Question, Tried, ports_tried};
    use netdp_common::layout::{Addr, Tuple, proto};

    #[test]
    fn each_port_has_its_last_result() {
        let addr = Addr::from_v4([192, 0, 2, 10]);
        let wire = Tuple::new(addr, addr, 443, 4000, proto::TCP);
        let questions = [
            Question::Local { addr, yes: true },
            Question::Reserved {
                port: 3999,
                yes: true,
            },
            Question::Reserved {
                port: 4000,
                yes: false,
            },
            Question::Socket { wire, yes: true },
            Question::Claim {
                wire,
                result: Ok(()),
            },
        ];
        let tried = [(3999, Tried::Reserved), (4000, Tried::Free)];
        assert_eq!(
            ports_tried(&questions, 0),
            tried.map(|(port, result)| PortTried { port, result })
        );
    }
}
