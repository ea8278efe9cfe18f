//! The packets and bytes that the programs count: by mapping, by interface, by rule.

use crate::build::{ACK, Build, RST, SYN};
use crate::node::{Node, V4, V6, becomes, frame, tuple_of};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use netdp_common::flow::SEEN_CARRIED_OVER;
use netdp_common::layout::{
    Half, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping, Pair, RuleHits, Traffic, Tuple,
    pins,
};
use netdp_user::datapath::Hook;
use netdp_user::reconcile::Change;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Pod, server, and the pod's external endpoint.
const NETS: [(&str, &str, &str); 2] = [
    ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"),
    ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"),
];

fn length(packet: &Build) -> u64 {
    u64::try_from(packet.bytes().len()).expect("a length")
}

fn times(packets: u64, packet: &Build) -> Traffic {
    Traffic {
        packets,
        bytes: packets * length(packet),
    }
}

fn sum(a: Traffic, b: Traffic) -> Traffic {
    let mut sum = a;
    sum.add(&b);
    sum
}

fn map<V: aya::Pod>(node: &Node, pin: &str) -> HashMap<MapData, Tuple, V> {
    let map = MapData::from_pin(node.bpffs().join(pin)).expect("a pinned map");
    Map::HashMap(map).try_into().expect("a hash map")
}

/// Returns what was carried over, by key.
fn carried(node: &Node) -> Vec<(Tuple, Traffic)> {
    let entries = map(node, pins::TRAFFIC);
    entries
        .iter()
        .map(|entry| entry.expect("an entry"))
        .collect()
}

/// Changes a half behind the programs' back.
fn change(node: &Node, half: Half, key: &Tuple, change: impl FnOnce(&mut Mapping)) {
    let pin = match half {
        Half::Original => pins::SNAT,
        Half::Reply => pins::REV_SNAT,
    };
    let mut map = map::<Mapping>(node, pin);
    let mut mapping = map.get(key, 0).expect("a half");
    change(&mut mapping);
    map.insert(key, mapping, 0).expect("the half");
}

/// Returns packets and bytes of the only mapping, out and in.
fn listed(node: &mut Node) -> [(u64, Option<u64>); 2] {
    let flows = node.flows();
    assert_eq!(flows.len(), 1);
    [
        (flows[0].packets_out, flows[0].bytes_out),
        (flows[0].packets_in, flows[0].bytes_in),
    ]
}

fn known(traffic: Traffic) -> (u64, Option<u64>) {
    (traffic.packets, Some(traffic.bytes))
}

#[test]
fn both_directions_are_carried_over_after_512_packets() {
    for (pod, server, wire) in NETS {
        let mut node = Node::new();
        let out = Build::udp(pod, server);
        let back = out.from(wire).answer();
        for _ in 0..512 {
            node.run_once(Hook::Egress, &frame(&out));
            node.run_once(Hook::Ingress, &frame(&back));
        }
        assert!(carried(&node).is_empty());
        for n in [513, 514] {
            node.run_once(Hook::Egress, &frame(&out));
            node.run_once(Hook::Ingress, &frame(&back));
            let mut entries = BTreeMap::new();
            for (key, traffic) in carried(&node) {
                entries.insert(key.proto, (key, traffic));
            }
            let (tuple, reply) = (tuple_of(&out), tuple_of(&back));
            assert_eq!(
                entries.into_values().collect::<Vec<_>>(),
                [
                    (tuple, times(512, &out)),
                    (Half::Reply.traffic_key(&reply), times(512, &back))
                ]
            );
            assert_eq!(
                listed(&mut node),
                [known(times(n, &out)), known(times(n, &back))]
            );
        }
        let counters = node.counters();
        assert_eq!(counters.egress_masqueraded, times(514, &out));
        assert_eq!(counters.ingress_translated, times(514, &back));
    }
}

#[test]
fn a_half_is_carried_over_after_2_mib() {
    for (pod, server, wire) in NETS {
        let mut node = Node::new();
        let mut out = Build::udp(pod, server);
        // As large as a test run can be.
        out.data = vec![7; 2_800];
        let back = out.from(wire).answer();
        node.run_once(Hook::Egress, &frame(&out));
        for (half, packet) in [(Half::Original, &out), (Half::Reply, &back)] {
            let key = tuple_of(packet);
            let hook = match half {
                Half::Original => Hook::Egress,
                Half::Reply => Hook::Ingress,
            };
            let (full, one) = (1 << 21, 1);
            change(&node, half, &key, |half| {
                half.traffic = (full - 1) << 10 | one;
            });
            node.run_once(hook, &frame(packet));
            let entry = half.traffic_key(&key);
            assert!(carried(&node).iter().all(|(key, _)| *key != entry));
            node.run_once(hook, &frame(packet));
            let wanted = Traffic {
                packets: 2,
                bytes: u64::from(full) - 1 + length(packet),
            };
            assert!(carried(&node).contains(&(entry, wanted)), "{half:?}");
        }
    }
}

/// Both kinds of programs use the same entries while one replaces the other.
#[test]
fn halves_of_layout_1_go_on() {
    for (pod, server, wire) in NETS {
        for packets in [3, 5_000] {
            let mut node = Node::new();
            let out = Build::udp(pod, server);
            let back = out.from(wire).answer();
            node.run_once(Hook::Egress, &frame(&out));
            let (tuple, reply) = (tuple_of(&out), tuple_of(&back));
            change(&node, Half::Original, &tuple, |half| {
                half.flags &= !MAPPING_COUNTED_ORIGINAL;
                half.traffic = packets;
            });
            change(&node, Half::Reply, &reply, |half| {
                half.flags &= !MAPPING_COUNTED_REPLY;
                half.traffic = packets;
            });
            let earlier = u64::from(packets);
            assert_eq!(listed(&mut node), [(earlier, None); 2]);
            let mut settings = node.datapath().maps().settings().expect("settings");
            settings.layout = 1;
            node.write_settings(&settings);
            node.stop();
            node.start().expect("an agent over maps of layout 1");
            assert_eq!(node.out(&out), becomes(&out.from(wire)));
            node.run_once(Hook::Ingress, &frame(&back));
            assert_eq!(
                listed(&mut node),
                [
                    (earlier + 2, Some(2 * length(&out))),
                    (earlier + 1, Some(length(&back)))
                ]
            );
            let entries = if packets > 511 { 2 } else { 0 };
            assert_eq!(carried(&node).len(), entries);
        }
    }
}

/// Makes a mapping from both of whose halves traffic was carried over.
fn carry(node: &mut Node, out: &Build, wire: &str) {
    let back = out.from(wire).answer();
    node.run_once(Hook::Egress, &frame(out));
    node.run_once(Hook::Ingress, &frame(&back));
    for (half, packet) in [(Half::Original, out), (Half::Reply, &back)] {
        change(node, half, &tuple_of(packet), |half| {
            half.traffic |= 1 << 31;
        });
    }
    node.run_once(Hook::Egress, &frame(out));
    node.run_once(Hook::Ingress, &frame(&back));
}

#[test]
fn entries_end_with_the_mapping_that_a_program_ends() {
    for (pod, server, wire) in NETS {
        let mut node = Node::new();
        node.out(&Build::tcp(pod, server, SYN));
        node.run_once(Hook::Ingress, &frame(&Build::tcp(server, wire, SYN | ACK)));
        carry(&mut node, &Build::tcp(pod, server, ACK), wire);
        assert_eq!(carried(&node).len(), 2);
        node.out(&Build::tcp(pod, server, RST));
        // A connection from outside to the port of one that is over is the node's.
        let from_outside = Build::tcp(server, wire, SYN);
        node.run_once(Hook::Ingress, &frame(&from_outside));
        assert!(node.flows().is_empty());
        assert!(carried(&node).is_empty());
    }
}

#[test]
fn entries_end_with_the_mapping_that_the_sweep_ends() {
    for (pod, server, wire) in NETS {
        let mut node = Node::new();
        carry(&mut node, &Build::udp(pod, server), wire);
        node.sweep(&Node::local());
        assert_eq!(carried(&node).len(), 2, "it lives");
        node.at(1_000);
        assert_eq!(node.sweep(&Node::local()).expired, 1);
        assert!(carried(&node).is_empty());
    }
}

/// An agent was killed after it had removed the halves.
#[test]
fn entries_whose_half_is_gone_end_with_the_next_sweep() {
    for (pod, server, wire) in NETS {
        let mut node = Node::new();
        let (gone, lives) = (Build::udp(pod, server), Build::tcp(pod, server, ACK));
        carry(&mut node, &gone, wire);
        carry(&mut node, &lives, wire);
        node.forget(&gone, wire);
        assert_eq!(carried(&node).len(), 4);
        node.sweep(&Node::local());
        let mut left: Vec<_> = carried(&node).into_iter().map(|entry| entry.0).collect();
        left.sort_by_key(|key| key.proto);
        let back = tuple_of(&lives.from(wire).answer());
        assert_eq!(left, [tuple_of(&lives), Half::Reply.traffic_key(&back)]);
        // That of a new mapping with the tuple is not its own either.
        carry(&mut node, &gone, wire);
        change(&node, Half::Original, &tuple_of(&gone), |half| {
            half.tcp_seen &= !u8::try_from(SEEN_CARRIED_OVER).expect("a bit");
        });
        node.sweep(&Node::local());
        assert_eq!(carried(&node).len(), 3);
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let (pod, server, wire) = NETS[0];
    let mut node = Node::new();
    let out = Build::udp(pod, server);
    node.run_once(Hook::Egress, &frame(&out));
    let mut entries = map::<Traffic>(&node, pins::TRAFFIC);
    for n in 0..1024 {
        let mut key = tuple_of(&out);
        (key.src_id, key.proto) = (n, 250);
        let inserted = entries.insert(key, Traffic::default(), 0);
        inserted.expect("room for a quarter of the mappings, and 1,024");
    }
    carry(&mut node, &out, wire);
    let lost = node.counters().traffic_unattributed;
    // The bit for 2 MiB, in each half.
    assert_eq!((lost.packets, lost.bytes >> 21), (3, 2));
    let [out_now, _] = listed(&mut node);
    assert_eq!(out_now, (1, Some(length(&out))));
}

#[test]
fn counters_are_kept_by_interface_and_none_is_lost_with_it() {
    let (pod, server, _) = NETS[0];
    let mut node = Node::new();
    let packet = Build::udp(pod, server);
    let (v4, v6) = (
        Ipv4Addr::new(203, 0, 113, 10),
        Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x10),
    );
    let second = node.second_uplink(v4, v6);
    node.run_on(Hook::Egress, &frame(&packet), 1);
    for _ in 0..3 {
        node.run_on(Hook::Egress, &frame(&packet), second);
    }
    let of = |node: &mut Node, number| {
        let maps = node.datapath().maps();
        let counters = maps.counters_of(number).expect("the counters");
        counters.egress_masqueraded
    };
    let number = |node: &mut Node, ifindex| {
        let uplink = node.datapath().maps().uplink(ifindex);
        uplink.expect("the entry").number()
    };
    assert_eq!((number(&mut node, 1), number(&mut node, second)), (1, 2));
    assert_eq!(of(&mut node, 1), times(1, &packet));
    assert_eq!(of(&mut node, 2), times(3, &packet));
    assert_eq!(of(&mut node, 0), Traffic::default());
    // An interface keeps its number while it has an entry, also with another agent.
    node.stop();
    node.start().expect("the next agent");
    node.uplink(None, Some(V6));
    node.uplink(Some(V4), Some(V6));
    assert_eq!((number(&mut node, 1), number(&mut node, second)), (1, 2));
    // The number of one that is gone goes to the next.
    let up1 = "up1".into();
    node.apply(&Change::Detach {
        ifindex: second,
        name: up1,
    });
    let up2 = node.another_uplink("up2", v4, v6);
    assert_eq!(number(&mut node, up2), 2);
    assert_eq!(of(&mut node, 2), Traffic::default());
    assert_eq!(of(&mut node, 0), times(3, &packet));
    node.run_on(Hook::Egress, &frame(&packet), up2);
    assert_eq!(of(&mut node, 2), times(1, &packet));
    assert_eq!(node.counters().egress_masqueraded, times(5, &packet));
    // There are 15 numbers; what has none counts as others.
    let mut last = up2;
    for n in 3..=16 {
        last = node.another_uplink(&format!("up{n}"), v4, v6);
    }
    assert_eq!(number(&mut node, last), 0);
    node.run_on(Hook::Egress, &frame(&packet), last);
    assert_eq!(of(&mut node, 0), times(4, &packet));
}

/// Returns the bypassed packets of all rules, in their entries and in pairs of any CPU, and the
/// mappings of all.
fn hits(node: &Node) -> (Traffic, u64) {
    let pinned = |pin| MapData::from_pin(node.bpffs().join(pin)).expect("a pinned map");
    let rules: Array<_, RuleHits> = Map::Array(pinned(pins::RULE_HITS))
        .try_into()
        .expect("the hits");
    let (mut bypassed, mut flows) = (Traffic::default(), 0);
    for rule in rules.iter().map(|hits| hits.expect("hits")) {
        bypassed.add(&rule.bypassed);
        flows += rule.flows;
    }
    let pairs: PerCpuArray<_, Pair> = Map::PerCpuArray(pinned(pins::BYPASS_CACHE))
        .try_into()
        .expect("the pairs");
    for pair in pairs.iter().map(|pairs| pairs.expect("pairs")) {
        for pair in pair.iter() {
            bypassed.add(&pair.hits);
        }
    }
    (bypassed, flows)
}

#[test]
fn hits_of_rules_are_exact_over_pairs_epochs_and_agents() {
    let mut node = Node::new();
    node.policy(&["198.51.100.0/24", "2001:db8::/64"]);
    node.sweep(&Node::local());
    let mut wanted = Traffic::default();
    let mut epoch = 0;
    for round in 0..3 {
        for n in 0..1_500 {
            let packets = [
                Build::udp(
                    &format!("172.16.{}.{}:4000", n / 250, n % 250 + 1),
                    NETS[0].1,
                ),
                Build::tcp(&format!("[fd00:1::{n:x}]:4000"), NETS[1].1, ACK),
            ];
            for packet in &packets {
                for _ in 0..=n % 2 {
                    let seen = node.run_once(Hook::Egress, &frame(packet));
                    assert_eq!(seen, becomes(packet));
                    wanted = sum(wanted, times(1, packet));
                }
            }
        }
        assert_eq!(hits(&node), (wanted, 0), "{round}");
        assert_eq!(node.counters().egress_bypassed, wanted);
        node.stop();
        node.start().expect("the next agent");
        let settings = node.datapath().maps().settings().expect("settings");
        assert_ne!(settings.epoch, epoch);
        epoch = settings.epoch;
        assert_eq!(hits(&node), (wanted, 0), "nothing is lost by a restart");
        node.sweep(&Node::local());
    }
    let flow = Build::udp(NETS[0].0, "203.0.113.1:443");
    node.out(&flow);
    assert_eq!(hits(&node), (wanted, 1));
}
