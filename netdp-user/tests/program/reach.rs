//! Which bypassed networks answer, as the programs count it.

use crate::build::{ACK, Build, Kind, RST, SYN};
use crate::node::{Node, becomes};
use aya::maps::{HashMap, Map, MapData};
use netdp_common::layout::{Addr, Reach, network_of, pins};
use std::net::{IpAddr, SocketAddr};

/// Pod, node and server.
const ENDS: [[&str; 3]; 2] = [
    ["172.16.0.2:4000", "192.0.2.10:5000", "198.51.100.7:443"],
    ["[fd00:1::2]:4000", "[fd00::10]:5000", "[2001:db8::7]:443"],
];

/// Returns a node that bypasses the servers. `cached`: the bypass cache may be used.
fn bypassing(cached: bool) -> Node {
    let mut node = Node::new();
    node.policy(&["198.51.100.0/24", "2001:db8::/64"]);
    if cached {
        node.sweep(&Node::local());
    }
    node
}

/// Returns what is counted for the network of an endpoint.
fn reach(node: &Node, of: &str) -> Option<Reach> {
    let map = MapData::from_pin(node.bpffs().join(pins::REACH)).expect("a pinned map");
    let map: HashMap<_, Addr, Reach> = Map::LruHashMap(map).try_into().expect("a hash map");
    let of: IpAddr = of.parse::<SocketAddr>().expect("an endpoint").ip();
    map.get(&network_of(&of.into()), 0).ok()
}

/// Returns pods' and the node's attempts and answers.
fn counts(node: &Node, of: &str) -> [u32; 4] {
    let reach = reach(node, of).unwrap_or_default();
    [
        reach.pod_new,
        reach.pod_answered,
        reach.node_new,
        reach.node_answered,
    ]
}

/// Returns what is added while the packet runs, as the number of its runs.
fn added(node: &mut Node, of: &str, run: impl FnOnce(&mut Node)) -> [bool; 4] {
    let before = counts(node, of);
    run(node);
    let after = counts(node, of);
    std::array::from_fn(|at| after[at] > before[at])
}

/// Returns an answer to a SYN; a reset is one if its sequence number is 0.
fn answer_of(from: &str, to: &str, flags: u8, seq: u32) -> Build {
    Build::new(from, to, Kind::Tcp { flags, seq, ack: 8 })
}

const NOTHING: [bool; 4] = [false; 4];

#[test]
fn attempts_and_answers_are_counted_whatever_is_cached() {
    for cached in [false, true] {
        let mut node = bypassing(cached);
        for [pod, own, server] in ENDS {
            let out = |packet: Build| {
                move |node: &mut Node| assert_eq!(node.out(&packet), becomes(&packet))
            };
            let back = |packet: Build| {
                move |node: &mut Node| assert_eq!(node.back(&packet), becomes(&packet))
            };
            let stray = back(Build::tcp(server, pod, SYN | ACK));
            assert_eq!(added(&mut node, server, stray), NOTHING, "nothing began");
            assert_eq!(reach(&node, server), None);
            // The second time the pair is known, if it may be.
            for _ in 0..2 {
                let syn = out(Build::tcp(pod, server, SYN));
                assert_eq!(added(&mut node, server, syn), [true, false, false, false]);
            }
            for flags in [SYN | ACK, RST | ACK] {
                let answer = back(answer_of(server, pod, flags, 0));
                let found = added(&mut node, server, answer);
                assert_eq!(found, [false, true, false, false], "{flags}");
            }
            for other in [
                Build::tcp(pod, server, ACK),
                Build::udp(pod, server),
                Build::tcp(pod, server, RST),
            ] {
                assert_eq!(added(&mut node, server, out(other)), NOTHING);
            }
            let late = back(answer_of(server, pod, RST | ACK, 9));
            assert_eq!(added(&mut node, server, late), NOTHING, "of a later packet");
            let syn = out(Build::tcp(own, server, SYN));
            assert_eq!(added(&mut node, server, syn), [false, false, true, false]);
            let answer = back(Build::tcp(server, own, SYN | ACK));
            assert_eq!(
                added(&mut node, server, answer),
                [false, false, false, true]
            );
        }
    }
}

#[test]
fn what_is_masqueraded_is_not_counted() {
    let mut node = Node::new();
    node.policy(&[]);
    for [pod, own, server] in ENDS {
        node.out(&Build::tcp(pod, server, SYN));
        node.out(&Build::tcp(own, server, SYN));
        node.back(&Build::tcp(server, own, SYN | ACK));
        assert_eq!(reach(&node, server), None);
    }
}
