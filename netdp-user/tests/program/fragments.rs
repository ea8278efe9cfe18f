//! Fragments, byte for byte.

use crate::build::{Build, Kind, SYN};
use crate::node::{Node, Seen, becomes, frame};
use netdp_user::datapath::Hook;

const V4: [&str; 3] = ["172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"];
const V6: [&str; 3] = ["[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"];

fn datagrams(pod: &str, server: &str) -> Vec<Build> {
    [
        Build::udp(pod, server),
        Build::tcp(pod, server, SYN),
        Build::echo(pod, &server.replace(":443", ":0")),
        Build::new(pod, server, Kind::Other(47)),
    ]
    .into()
}

/// Returns the identification on egress: one of the node's in IPv4.
fn given(packet: &Build, seen: &Seen) -> u32 {
    match seen {
        Seen::Next(bytes) if packet.src.is_ipv4() => {
            u16::from_be_bytes([bytes[18], bytes[19]]).into()
        }
        Seen::Next(_) => packet.ip_id,
        other => panic!("{other:02x?} for {packet:?}"),
    }
}

#[test]
fn fragments_leave_with_one_identification_and_come_back() {
    let mut node = Node::new();
    let mut ids = Vec::new();
    for [pod, server, wire] in [V4, V6] {
        for (packet, late) in datagrams(pod, server)
            .iter()
            .zip([false, true, false, true])
        {
            let packet = if packet.src.is_ipv6() {
                let mut extended = packet.clone();
                extended.extensions = vec![60];
                extended
            } else {
                packet.clone()
            };
            let mut parts = [packet.first(), packet.last()];
            if late {
                parts.reverse();
            }
            let seen = node.out(&parts[0]);
            let id = given(&packet, &seen);
            assert_eq!(seen, becomes(&parts[0].from(wire).with_ip_id(id)));
            let seen = node.out(&parts[1]);
            assert_eq!(
                seen,
                becomes(&parts[1].from(wire).with_ip_id(id)),
                "late: {late}"
            );
            if packet.src.is_ipv4() {
                assert!(!ids.contains(&id), "{id} twice");
                ids.push(id);
            }
            let reply = packet.from(wire).answer();
            let back = packet.answer();
            assert_eq!(node.back(&reply.first()), becomes(&back.first()));
            assert_eq!(node.back(&reply.last()), becomes(&back.last()));
        }
    }
    assert_eq!(node.counters().fragments_held, 0);
}

/// The device reinjects them; here it has no wire.
#[test]
fn fragments_that_come_in_too_early_are_held_back() {
    let mut node = Node::new();
    for [pod, server, wire] in [V4, V6] {
        let packet = Build::udp(pod, server);
        node.out(&packet);
        let reply = packet.from(wire).answer();
        for n in 0..2 {
            let reply = reply.with_ip_id(n);
            let mut early = reply.last();
            early.data = vec![0x5a; 1_448];
            assert_eq!(node.run_once(Hook::Ingress, &frame(&early)), Seen::Shot);
            let wanted = packet.answer().with_ip_id(n);
            // The first fragment is unchanged, although it carried the others.
            let seen = node.run_once(Hook::Ingress, &frame(&reply.first()));
            assert_eq!(seen, becomes(&wanted.first()));
            let seen = node.run_once(Hook::Ingress, &frame(&reply.last()));
            assert_eq!(seen, becomes(&wanted.last()));
        }
    }
    assert_eq!(node.counters().fragments_held, 4);
    assert_eq!(
        node.counters().drops,
        netdp_common::layout::Drops::default()
    );
}

#[test]
fn no_more_is_held_back_than_there_is_room_for() {
    let mut node = Node::new();
    let [_, server, wire] = V4;
    let early = Build::udp(server, wire).last();
    for n in 0..60 {
        let seen = node.run_once(Hook::Ingress, &frame(&early));
        let wanted = if n < 48 { Seen::Shot } else { becomes(&early) };
        assert_eq!(seen, wanted, "fragment {n}");
    }
    assert_eq!(node.counters().fragments_held, 48);
}

#[test]
fn fragments_of_a_dropped_datagram_are_dropped() {
    let mut node = Node::new();
    node.uplink(None, None);
    for [pod, server, _] in [V4, V6] {
        let packet = Build::udp(pod, server);
        for part in [packet.first(), packet.last()] {
            assert_eq!(node.run_once(Hook::Egress, &frame(&part)), Seen::Shot);
        }
    }
    let drops = node.counters().drops;
    assert_eq!(drops.no_source_address, 2);
    assert_eq!(drops.fragment_of_dropped, 2);
}
