//! The model's random walks through the programs: packets, reloads, clock steps and restarts of the
//! agent.
//!
//! Every run takes the same walks; `NETDP_MODEL_SEED=NUMBER` selects others. A failing walk is
//! printed in its shrunk form.

use crate::build::Build;
use crate::model::{Halves, NETS, Outcome, RANGE, Subject, World, steps};
use crate::node::{Node, Seen, frame};
use netdp_common::layout::{DropReason, PortRange};
use netdp_user::datapath::Hook;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use std::net::{IpAddr, SocketAddr};

const CASES: u32 = 6;
const LONGEST: usize = 260;
const SEED: u64 = 4_787;

struct Kernel {
    node: Node,
    seconds: u64,
    uplinks: [u32; 2],
    /// The uplink of egress and ingress packets.
    ifindex: u32,
}

impl Kernel {
    fn new(reserved: bool) -> Self {
        let mut node = Node::with(|setup| {
            setup.to_ports = vec![PortRange::new(RANGE[0], RANGE[2])];
            setup.reserved_ports.extend(reserved.then_some(RANGE[1]));
        });
        let [v4, v6] = NETS
            .each_ref()
            .map(|net| net.nodes[1].trim_matches(['[', ']']));
        let (v4, v6) = (v4.parse().unwrap(), v6.parse().unwrap());
        let second = node.second_uplink(v4, v6);
        let uplinks = [1, second];
        Self {
            node,
            seconds: 0,
            uplinks,
            ifindex: 1,
        }
    }

    /// Runs the packet through a program and returns the verdict on the endpoint that the program
    /// may rewrite; all other bytes, checksums included, must be as if the packet had been sent
    /// with it.
    fn run(&mut self, hook: Hook, packet: &Build, end: SocketAddr, at: [usize; 2]) -> Outcome {
        let before = self.node.counters().drops;
        match self.node.run_on(hook, &frame(packet), self.ifindex) {
            Seen::Shot => {
                let after = self.node.counters().drops;
                let grown = |reason: &&DropReason| after.get(**reason) > before.get(**reason);
                let mut reasons = DropReason::ALL.iter().filter(grown);
                Outcome::Drop(*reasons.next().expect("a counted reason"))
            }
            // The pod of a refused flow gets an ICMP error; the reason is counted, too.
            Seen::Redirected(_) => panic!("nobody lives behind the loopback"),
            Seen::Next(bytes) if bytes == frame(packet) => Outcome::Pass,
            Seen::Next(bytes) => {
                let became = SocketAddr::new(address(&bytes, end, at[0]), id(&bytes, end, at[1]));
                let changed = match hook {
                    Hook::Egress => packet.from(&became.to_string()),
                    _ => packet.to(&became.to_string()),
                };
                assert_eq!(bytes, frame(&changed), "{packet:?} became {became}");
                Outcome::As(became)
            }
        }
    }
}

/// Returns the address at an offset in the IP header: IPv4's offset, or its IPv6 equivalent.
fn address(frame: &[u8], like: SocketAddr, place: usize) -> IpAddr {
    if like.is_ipv4() {
        let at = 14 + 12 + 4 * place;
        let octets: [u8; 4] = frame[at..at + 4].try_into().unwrap();
        octets.into()
    } else {
        let at = 14 + 8 + 16 * place;
        let octets: [u8; 16] = frame[at..at + 16].try_into().unwrap();
        octets.into()
    }
}

/// Returns the port or ICMP identifier at an offset in the L4 header.
fn id(frame: &[u8], like: SocketAddr, at: usize) -> u16 {
    let (header, protocol) = if like.is_ipv4() { (20, 23) } else { (40, 20) };
    let icmp = matches!(frame[protocol], 1 | 58);
    let at = 14 + header + if icmp { 4 } else { at };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

impl Subject for Kernel {
    fn out(&mut self, packet: &Build) -> Outcome {
        self.run(Hook::Egress, packet, packet.src, [0, 0])
    }

    fn back(&mut self, packet: &Build) -> Outcome {
        self.run(Hook::Ingress, packet, packet.dst, [1, 2])
    }

    fn policy(&mut self, bypass: &[&'static str]) {
        self.node.policy(bypass);
    }

    fn forget_policies(&mut self) {
        let done = self.node.datapath().expire_history();
        done.expect("the policy");
    }

    /// In test runs the packets have a socket.
    fn node_has_socket(&mut self, _: bool) -> bool {
        true
    }

    fn lead(&mut self, uplink: usize) {
        self.ifindex = self.uplinks[uplink];
    }

    fn advance(&mut self, seconds: u64) {
        self.seconds += seconds;
        self.node.at(self.seconds);
    }

    fn sweep(&mut self) {
        let local = self.node.local_addresses();
        self.node.sweep(&local);
    }

    fn restart(&mut self) {
        self.node.stop();
        self.node.start().expect("the next agent");
    }

    fn halves(&self) -> Halves {
        self.node.halves()
    }

    fn is_reserved(&self, port: u16) -> bool {
        self.node.setup.reserved_ports.contains(&port)
    }
}

#[test]
fn random_walks_keep_to_the_model() {
    let seed = std::env::var("NETDP_MODEL_SEED").map_or(SEED, |seed| {
        seed.parse().expect("NETDP_MODEL_SEED is a number")
    });
    let config = Config {
        cases: CASES,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: 15_000,
        ..Config::default()
    };
    let walks = (steps(LONGEST), proptest::bool::ANY, 0..NETS.len());
    let result = TestRunner::new(config).run(&walks, |(steps, reserved, net)| {
        let mut world = World::new(Kernel::new(reserved), &NETS[net]);
        for step in steps {
            world.take(step);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("NETDP_MODEL_SEED={seed}: {failure}");
    }
}
