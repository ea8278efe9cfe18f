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
    /// Is it an address of the node?
    Local { addr: Addr, yes: bool },
    /// Does the node receive packets to it, although it is none of its addresses?
    AnyIp { addr: Addr, yes: bool },
    /// What does the policy say of new flows to it? `None`: no entry covers it.
    Policy {
        dst: Addr,
        value: Option<PolicyValue>,
    },
    /// Is there a mapping of this tuple?
    Mapping {
        tuple: Tuple,
        found: Option<Mapping>,
    },
    /// Whose is this wire tuple?
    Owner { wire: Tuple, found: Option<Mapping> },
    /// Can this wire tuple be claimed?
    Claim {
        wire: Tuple,
        result: Result<(), InsertError>,
    },
    /// A mapping of this tuple would begin.
    Begins {
        tuple: Tuple,
        result: Result<(), InsertError>,
    },
    /// The mapping of this tuple would end.
    Ends { tuple: Tuple },
    /// How many mappings and inbound flows has this bucket?
    Share {
        bucket: u32,
        mappings: u32,
        inbound: u32,
    },
    /// Is it a flow that keeps the pod's address, and that the pod has answered?
    InboundLive { tuple: Tuple, found: Option<Live> },
    /// Is it a flow that keeps the pod's address, and that the pod has not answered?
    InboundAsked {
        tuple: Tuple,
        found: Option<Inbound>,
    },
    /// Is the port kept from mappings?
    Reserved { port: u16, yes: bool },
    /// Does a hostPort or service of the node answer on the port?
    NodePort { protocol: u32, port: u16, yes: bool },
    /// Does the node itself use the protocol with this peer?
    NodeProtocol {
        peer: Addr,
        protocol: u32,
        yes: bool,
    },
    /// Is it a flow of the node itself?
    NodeFlow {
        wire: Tuple,
        found: Option<NodeFlow>,
    },
    /// Would a socket of the node receive packets of this wire tuple?
    Socket { wire: Tuple, yes: bool },
    /// Since when are all ports towards this destination taken?
    Exhausted { wire: Tuple, since: Option<u32> },
    /// Which port has the endpoint towards other destinations?
    EndpointPort { endpoint: Tuple, port: Option<u16> },
    /// What was decided about the datagram of a fragment?
    Fragment {
        key: Tuple,
        direction: Direction,
        found: Option<Fragment>,
    },
    /// Which route does the packet take by the uplink?
    Route {
        tuple: Tuple,
        found: Option<EgressRoute>,
    },
    /// Has the agent configured a source here for this route?
    Source { key: SourceKey, found: Option<Addr> },
    /// Where is the pod?
    PodRoute { addr: Addr, found: Option<PodRoute> },
    /// Is it an uplink?
    Uplink { ifindex: u32, yes: bool },
    /// Did the node send the packet, by its source hardware address?
    Bridged { yes: bool },
    /// This could not be asked from here; the decision went on as if the answer were no.
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
