//! The ports, protocols and flows of the node itself.

use super::addr::Addr;
use super::tuple::proto;

/// Words of the reserved-port bitmap: 65,536 ports.
pub const RESERVED_WORDS: usize = 1024;

/// `node_ports`: the node answers on this TCP port, although it may have no listening socket there
/// (a hostPort, a service).
pub const NODE_PORT_TCP: u32 = 1;

/// `node_ports`: the node answers on this UDP port, likewise.
pub const NODE_PORT_UDP: u32 = 2;

/// `node_ports`: a service or socket of the node has this SCTP port.
pub const NODE_PORT_SCTP: u32 = 4;

/// `node_ports`: a service or socket of the node has this UDP-Lite port.
pub const NODE_PORT_UDP_LITE: u32 = 8;

/// `node_ports`: a service or socket of the node has this DCCP port.
pub const NODE_PORT_DCCP: u32 = 16;

/// Returns the bit of a protocol in `node_ports`; 0 for one without ports.
#[inline(always)]
#[must_use]
pub const fn node_port_bit(protocol: u32) -> u32 {
    match protocol {
        proto::TCP => NODE_PORT_TCP,
        proto::UDP => NODE_PORT_UDP,
        proto::SCTP => NODE_PORT_SCTP,
        proto::UDP_LITE => NODE_PORT_UDP_LITE,
        proto::DCCP => NODE_PORT_DCCP,
        _ => 0,
    }
}

/// Key of `node_protocols`: the node itself uses this protocol, which has no ports, with this peer
/// (a tunnel, IPsec, a routing daemon).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeProtocol {
    /// The peer; the family's unspecified address stands for any.
    pub peer: Addr,
    /// IP protocol number.
    pub proto: u32,
    /// Padding, always zero.
    pub pad: u32,
}

impl NodeProtocol {
    /// Builds the key for `proto` with `peer`.
    #[inline(always)]
    #[must_use]
    pub const fn new(peer: Addr, proto: u32) -> Self {
        Self {
            peer,
            proto,
            pad: 0,
        }
    }
}

/// The single value of `node_flow_ports`: for each L4 id of the node, when a [`NodeFlow`] with it
/// was last recorded ([`crate::flow::stamp`]); 0 for never. Flows of other ids need no lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NodeFlowPorts(pub [u8; 65_536]);

/// Value of `node_flows`: a flow of the node itself that no socket lookup finds, such as the
/// replies of a hostPort. Key: the wire tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFlow {
    /// Last packet that left, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which the record expires.
    pub limit: u32,
}
