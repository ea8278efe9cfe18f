//! Random walks: packets both ways, policy changes and time, against a model
//! that knows nothing of halves, claims or searches.

mod world;

use crate::abi::Action;
use crate::fake::build::{ACK, Build, FIN, Kind, RST, SYN};
use proptest::prelude::*;
use world::World;

const PODS: [&str; 3] = ["172.16.0.2", "172.16.0.3", "172.16.0.4"];
const SERVERS: [&str; 2] = ["198.51.100.7", "198.51.100.8"];
const NODE: &str = "192.0.2.10";
/// Two outside of the range that mappings may use; a ping whose identifier is 0
/// has the same tuple as its reply's reverse.
const PORTS: [u16; 4] = [4000, 4001, 5000, 0];
const RANGE: [u16; 3] = [4000, 4001, 4002];

#[derive(Clone, Copy, Debug)]
enum Carries {
    Tcp(u8),
    Udp,
    Echo,
    EchoReply,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A pod, or the node where `pod` is past the last one, sends.
    Out {
        pod: usize,
        server: usize,
        port: usize,
        carries: Carries,
        from_socket: bool,
    },
    /// A server answers to the wire source of a live mapping.
    Reply {
        flow: usize,
        flags: u8,
    },
    /// A server sends to a pod's own address.
    Direct {
        server: usize,
        pod: usize,
        port: usize,
        carries: Carries,
    },
    /// A server sends to the node, asked or not.
    Stray {
        server: usize,
        port: u16,
        carries: Carries,
    },
    Policy {
        server: usize,
        action: Action,
    },
    /// Time passes; what is idle for five minutes is swept.
    Wait {
        seconds: u64,
    },
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
    let (pods, servers, ports) = (PODS.len(), SERVERS.len(), PORTS.len());
    let actions = prop::sample::select(vec![Action::Bypass, Action::Masquerade]);
    prop_oneof![
        12 => (0..=pods, 0..servers, 0..ports, carries(), any::<bool>()).prop_map(
            |(pod, server, port, carries, from_socket)| Step::Out { pod, server, port, carries, from_socket }
        ),
        6 => (any::<usize>(), flags()).prop_map(|(flow, flags)| Step::Reply { flow, flags }),
        3 => (0..servers, 0..pods, 0..ports, carries()).prop_map(
            |(server, pod, port, carries)| Step::Direct { server, pod, port, carries }
        ),
        2 => (0..servers, prop::sample::select(vec![0u16, 3999, 4000, 4001, 4002, 5000]), carries()).prop_map(
            |(server, port, carries)| Step::Stray { server, port, carries }
        ),
        1 => (0..servers, actions).prop_map(|(server, action)| Step::Policy { server, action }),
        1 => (0u64..400).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// A packet of the `near` side's port `port` with a server.
fn packet(near: &str, server: usize, port: u16, carries: Carries, inwards: bool) -> Build {
    let server_port = if matches!(carries, Carries::Echo | Carries::EchoReply) {
        0
    } else {
        443
    };
    let (mut src, mut dst) = (
        format!("{near}:{port}"),
        format!("{}:{server_port}", SERVERS[server]),
    );
    // The identifier is the source's in a request, the destination's in a reply.
    if inwards != matches!(carries, Carries::EchoReply) && server_port == 0 {
        src = format!("{near}:0");
        dst = format!("{}:{port}", SERVERS[server]);
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

fn opens(carries: Carries) -> bool {
    match carries {
        Carries::Udp | Carries::Echo => true,
        Carries::Tcp(flags) => flags == SYN || flags == ACK,
        Carries::EchoReply => false,
    }
}

/// Whether a packet from outside may be more than an answer.
fn begins(carries: Carries) -> bool {
    match carries {
        Carries::Udp | Carries::Echo => true,
        Carries::Tcp(flags) => flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK,
        Carries::EchoReply => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_walks_keep_to_the_model(
        steps in prop::collection::vec(step(), 1..120),
        capacity in prop::sample::select(vec![4usize, 9, 100]),
        reserved: bool,
    ) {
        let mut world = World::new(capacity, reserved);
        for step in steps {
            world.take(step);
        }
    }
}
