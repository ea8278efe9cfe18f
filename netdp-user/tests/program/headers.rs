//! VLAN tags, options, extension headers, and L4 headers other than TCP's and UDP's.

use crate::build::{Build, Kind, RST, SYN};
use crate::node::{Node, Seen, becomes, frame};
use netdp_user::datapath::{Hook, NoLeak, PortMode};

const V4: [&str; 4] = [
    "172.16.0.2:4000",
    "172.16.0.3:4000",
    "198.51.100.7:443",
    "192.0.2.10:4000",
];
const V6: [&str; 4] = [
    "[fd00:1::2]:4000",
    "[fd00:1::3]:4000",
    "[2001:db8::7]:443",
    "[fd00::10]:4000",
];

/// Returns the frame with these tags in its bytes.
fn tagged(packet: &Build, tags: &[u16]) -> Vec<u8> {
    let plain = frame(packet);
    let mut out = plain[..12].to_vec();
    for tag in tags {
        out.extend(tag.to_be_bytes());
        out.extend([0x20, 0x64]);
    }
    out.extend(&plain[12..]);
    out
}

#[test]
fn vlan_tags_are_stepped_over() {
    let mut node = Node::new();
    for [pod, _, server, wire] in [V4, V6] {
        for packet in [Build::tcp(pod, server, SYN), Build::udp(pod, server)] {
            let sent = packet.from(wire);
            for tags in [&[0x8100][..], &[0x88a8, 0x8100]] {
                let seen = node.run_once(Hook::Egress, &tagged(&packet, tags));
                assert_eq!(seen, Seen::Next(tagged(&sent, tags)), "{tags:x?}");
                let seen = node.run_once(Hook::Ingress, &tagged(&sent.answer(), tags));
                assert_eq!(
                    seen,
                    Seen::Next(tagged(&packet.answer(), tags)),
                    "{tags:x?}"
                );
            }
            // With three tags it is not parsed as IP.
            let three = tagged(&packet, &[0x8100; 3]);
            assert_eq!(
                node.run_once(Hook::Egress, &three),
                Seen::Next(three.clone())
            );
        }
    }
}

/// The VLAN device has translated them already, or will.
#[test]
fn tagged_packets_of_another_uplink_are_left_alone() {
    let mut node = Node::new();
    node.uplink_below_a_vlan();
    for [pod, _, server, wire] in [V4, V6] {
        let packet = Build::udp(pod, server);
        let sent = packet.from(wire);
        let seen = node.run_once(Hook::Egress, &frame(&packet));
        assert_eq!(seen, Seen::Next(frame(&sent)), "without a tag");
        for tags in [&[0x8100][..], &[0x88a8, 0x8100]] {
            for (hook, packet) in [(Hook::Egress, &packet), (Hook::Ingress, &sent.answer())] {
                let packet = tagged(packet, tags);
                assert_eq!(
                    node.run_once(hook, &packet),
                    Seen::Next(packet),
                    "{tags:x?}"
                );
            }
        }
    }
}

#[test]
fn extension_headers_are_stepped_over() {
    let mut node = Node::new();
    let [pod, _, server, wire] = V6;
    for extensions in [vec![0], vec![60, 43], vec![0, 60, 43, 60, 60]] {
        for mut packet in [
            Build::tcp(pod, server, SYN),
            Build::udp(pod, server),
            Build::echo(pod, "[2001:db8::7]:0"),
        ] {
            packet.extensions = extensions.clone();
            let sent = packet.from(wire);
            assert_eq!(node.out(&packet), becomes(&sent));
            assert_eq!(node.back(&sent.answer()), becomes(&packet.answer()));
        }
    }
}

#[test]
fn other_protocols_are_translated_by_address() {
    let mut node = Node::new();
    for [pod, other_pod, server, wire] in [V4, V6] {
        for number in [4, 47, 50, 132, 253] {
            let packet = Build::new(pod, server, Kind::Other(number));
            let sent = packet.from(wire);
            assert_eq!(node.out(&packet), becomes(&sent), "{number}");
            assert_eq!(node.back(&sent.answer()), becomes(&packet.answer()));
            let second = frame(&packet.from(other_pod));
            assert_eq!(node.run_once(Hook::Egress, &second), Seen::Shot, "{number}");
        }
        let lite = Build::new(pod, server, Kind::UdpLite);
        assert_eq!(node.out(&lite), becomes(&lite.from(wire)));
    }
    assert_eq!(node.counters().drops.no_free_port, 10);
}

#[test]
fn what_cannot_be_translated_leaves_as_the_policy_says() {
    for [pod, _, server, wire] in [V4, V6] {
        let stray = Build::tcp(pod, server, RST);
        let reply = Build::new(pod, &server.replace("443", "9"), Kind::EchoReply);
        for packet in [stray, reply] {
            let mut node = Node::with(|setup| setup.no_leak = NoLeak::Pass);
            assert_eq!(node.out(&packet), becomes(&packet));
            assert_eq!(node.counters().egress_let_out.packets, 2);
            let mut node = Node::with(|setup| setup.no_leak = NoLeak::AddressOnly);
            assert_eq!(node.out(&packet), becomes(&packet.from(wire)));
            assert_eq!(node.counters().egress_let_out.packets, 2);
            assert!(node.flows().is_empty());
        }
    }
}

#[test]
fn ports_are_chosen_as_asked() {
    let [pod, _, server, wire] = V4;
    let packet = Build::udp(pod, server);
    let mut node = Node::with(|setup| {
        setup.to_ports = vec![netdp_common::layout::PortRange::new(5000, 5000)];
    });
    assert_eq!(node.out(&packet), becomes(&packet.from("192.0.2.10:5000")));
    let mut hashed = Vec::new();
    for _ in 0..2 {
        let mut node = Node::with(|setup| setup.port_mode = PortMode::Hash);
        let seen = node.out(&packet);
        assert_ne!(seen, becomes(&packet.from(wire)));
        hashed.push(seen);
    }
    assert_eq!(hashed[0], hashed[1], "on every node the same");
    let mut node = Node::with(|setup| {
        setup.port_mode = PortMode::Random;
        setup.udp_endpoints = true;
    });
    node.out(&packet);
    node.out(&packet.to("198.51.100.8:443"));
    let ports: Vec<u16> = node.flows().iter().map(|flow| flow.nat_id).collect();
    assert_eq!(ports[0], ports[1], "one endpoint, one port");
}
