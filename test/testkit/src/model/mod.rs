//! Random walks (packets in both directions, policy changes, time and restarts), checked against a
//! model that has no notion of halves, claims or port searches.
//!
//! One model checks the decisions on the host and the eBPF programs in the kernel.

mod flow;
mod kept;
mod outside;
mod world;

use super::build::{ACK, Build, FIN, Kind, RST, SYN};
use netdp_common::layout::{DropReason, Mapping, Tuple};
use proptest::prelude::*;
use std::net::SocketAddr;
pub use world::World;

/// Source ports of the pods. Two lie outside the range of mappings; a ping with identifier 0 has
/// the same tuple as the reverse of its reply.
const PORTS: [u16; 4] = [4000, 4001, 5000, 0];
/// Ports available to TCP and UDP mappings; the second may be reserved.
pub const RANGE: [u16; 3] = [4000, 4001, 4002];

/// Addresses of one family, as written before `:port`.
#[derive(Debug)]
pub struct Net {
    pods: [&'static str; 3],
    servers: [&'static str; 2],
    /// The servers' addresses as prefixes.
    pub prefixes: [&'static str; 2],
    /// The node's address on each of its uplinks.
    pub nodes: [&'static str; 2],
}

pub const NETS: [Net; 2] = [
    Net {
        pods: ["172.16.0.2", "172.16.0.3", "172.16.0.4"],
        servers: ["198.51.100.7", "198.51.100.8"],
        prefixes: ["198.51.100.7/32", "198.51.100.8/32"],
        nodes: ["192.0.2.10", "203.0.113.10"],
    },
    Net {
        pods: ["[fd00:1::2]", "[fd00:1::3]", "[fd00:1::4]"],
        servers: ["[2001:db8::7]", "[2001:db8::8]"],
        prefixes: ["2001:db8::7/128", "2001:db8::8/128"],
        nodes: ["[fd00::10]", "[fd01::10]"],
    },
];

/// Verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    /// Rewritten: the new source (egress) or destination (ingress).
    As(SocketAddr),
    Drop(DropReason),
}

/// All entries of both mapping tables: SNAT, rev-SNAT.
pub type Halves = [Vec<(Tuple, Mapping)>; 2];

/// A datapath that masquerades everything, with the addresses of [`Net::nodes`], and with [`RANGE`]
/// as the only ports for TCP and UDP.
pub trait Subject {
    /// Passes an egress packet through the datapath.
    fn out(&mut self, packet: &Build) -> Outcome;
    /// Passes an ingress packet through the datapath.
    fn back(&mut self, packet: &Build) -> Outcome;
    /// Bypasses these prefixes and no others.
    fn policy(&mut self, bypass: &[&'static str]);
    /// Discards the record of destinations that earlier policies bypassed.
    fn forget_policies(&mut self);
    /// Sets whether sockets send the node's own packets from now on. Returns the setting in effect.
    fn node_has_socket(&mut self, has: bool) -> bool;
    /// Routes egress packets through this uplink from now on.
    fn lead(&mut self, uplink: usize);
    /// Advances the datapath's clock.
    fn advance(&mut self, seconds: u64);
    /// Runs a sweep with the default timeouts.
    fn sweep(&mut self);
    /// Replaces the agent by a new one, which adopts the maps.
    fn restart(&mut self);
    /// Returns all mappings, reservations included.
    fn halves(&self) -> Halves;
    /// Reports whether the port is reserved.
    fn is_reserved(&self, port: u16) -> bool;
}

/// Payload of a packet; for TCP, its flags.
#[derive(Clone, Copy, Debug)]
pub enum Carries {
    Tcp(u8),
    Udp,
    Echo,
    EchoReply,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A pod sends, or the node if `pod` is past the last pod.
    Out {
        pod: usize,
        server: usize,
        port: usize,
        carries: Carries,
        from_socket: bool,
    },
    /// A server sends to the wire source of a live mapping.
    Reply {
        flow: usize,
        flags: u8,
        in_sequence: bool,
    },
    /// A pod closes a connection, then its server does.
    Close {
        flow: usize,
        in_sequence: bool,
    },
    /// A server sends to a pod's own address.
    Direct {
        server: usize,
        pod: usize,
        port: usize,
        carries: Carries,
    },
    /// A server sends to the node, solicited or not.
    Stray {
        server: usize,
        port: u16,
        carries: Carries,
    },
    /// Toggles the bypass of one server.
    Policy {
        server: usize,
        bypass: bool,
    },
    ForgetPolicies,
    /// The routes change to another uplink.
    Lead {
        uplink: usize,
    },
    /// Time passes, followed by a sweep.
    Wait {
        seconds: u64,
    },
    Restart,
}

/// Returns a strategy for the steps of a walk.
pub fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..longest)
}

fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![SYN, SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0])
}

fn carries() -> impl Strategy<Value = Carries> {
    prop_oneof![
        4 => flags().prop_map(Carries::Tcp),
        2 => Just(Carries::Udp),
        1 => Just(Carries::Echo),
        1 => Just(Carries::EchoReply),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (pods, servers, ports) = (0..3usize, 0..2usize, 0..PORTS.len());
    // Values around each timeout, and never equal to a sum of some of them.
    let seconds = prop::sample::select(vec![7u64, 45, 77, 135, 251, 313, 617, 7_507, 432_101]);
    let strays = prop::sample::select(vec![0u16, 3999, 4000, 4001, 4002, 5000]);
    prop_oneof![
        24 => (0..=3usize, servers.clone(), ports.clone(), carries(), any::<bool>()).prop_map(
            |(pod, server, port, carries, from_socket)| Step::Out { pod, server, port, carries, from_socket }
        ),
        12 => (any::<usize>(), flags(), any::<bool>()).prop_map(
            |(flow, flags, in_sequence)| Step::Reply { flow, flags, in_sequence }
        ),
        4 => (any::<usize>(), any::<bool>()).prop_map(
            |(flow, in_sequence)| Step::Close { flow, in_sequence }
        ),
        6 => (servers.clone(), pods, ports, carries()).prop_map(
            |(server, pod, port, carries)| Step::Direct { server, pod, port, carries }
        ),
        4 => (servers.clone(), strays, carries()).prop_map(
            |(server, port, carries)| Step::Stray { server, port, carries }
        ),
        3 => (servers, any::<bool>()).prop_map(|(server, bypass)| Step::Policy { server, bypass }),
        1 => Just(Step::ForgetPolicies),
        2 => (0..2usize).prop_map(|uplink| Step::Lead { uplink }),
        3 => seconds.prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Restart),
    ]
}

/// Builds a packet between the `near` side's port `port` and a server.
fn packet(near: &str, server: &str, port: u16, carries: Carries, inwards: bool) -> Build {
    let echo = matches!(carries, Carries::Echo | Carries::EchoReply);
    let server_port = if echo { 0 } else { 443 };
    let (mut src, mut dst) = (format!("{near}:{port}"), format!("{server}:{server_port}"));
    // The identifier is in the source of a request and in the destination of a reply.
    if echo && inwards != matches!(carries, Carries::EchoReply) {
        src = format!("{near}:0");
        dst = format!("{server}:{port}");
    }
    if inwards {
        (src, dst) = (dst, src);
    }
    match carries {
        Carries::Tcp(flags) => Build::tcp(&src, &dst, flags),
        Carries::Udp => Build::udp(&src, &dst),
        Carries::Echo => Build::echo(&src, &dst),
        Carries::EchoReply => Build::new(&src, &dst, Kind::EchoReply),
    }
}

impl Carries {
    /// Reports whether such a packet from a pod may open a mapping.
    fn opens(self) -> bool {
        match self {
            Self::Udp | Self::Echo => true,
            Self::Tcp(flags) => flags == SYN || flags == ACK,
            Self::EchoReply => false,
        }
    }

    /// Reports whether such a packet from outside may open a flow.
    fn begins(self) -> bool {
        match self {
            Self::Udp | Self::Echo => true,
            Self::Tcp(flags) => flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK,
            Self::EchoReply => false,
        }
    }

    /// Reports whether it can only belong to an earlier connection.
    fn goes_on(self) -> bool {
        matches!(self, Self::Tcp(flags) if flags & (SYN | ACK | RST) == ACK)
    }
}
