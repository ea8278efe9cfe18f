//! Packets that must not leave: dropped, each counted under its own reason.

use crate::build::{ACK, Build, FIN, Kind, RST, SYN};
use crate::node::{Node, Seen, V4, V6, frame};
use netdp_common::layout::DropReason;
use netdp_user::datapath::Hook;

const POD: &str = "172.16.0.2:4000";
const SERVER: &str = "198.51.100.7:443";
const POD6: &str = "[fd00:1::2]:4000";
const SERVER6: &str = "[2001:db8::7]:443";

/// Checks that the packet is dropped at egress and counted for this reason only.
fn dropped(node: &mut Node, bytes: &[u8], reason: DropReason, what: &str) {
    let before = node.counters();
    assert_eq!(node.run_once(Hook::Egress, bytes), Seen::Shot, "{what}");
    let after = node.counters();
    let mut wanted = before;
    *wanted.drops.get_mut(reason) += 1;
    if reason == DropReason::NoSourceAddress {
        assert_eq!(after.mappings_created, before.mappings_created);
    }
    assert_eq!(after, wanted, "{what}: {}", reason.name());
}

#[test]
fn each_reason_has_its_counter() {
    let mut node = Node::new();
    for (pod, server, other_icmp) in [(POD, SERVER, 58), (POD6, SERVER6, 1)] {
        for number in [51, other_icmp] {
            let bytes = frame(&Build::new(pod, server, Kind::Other(number)));
            let what = format!("protocol {number}");
            dropped(&mut node, &bytes, DropReason::UnsupportedProtocol, &what);
        }
        for flags in [0, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | FIN, 0x29] {
            let bytes = frame(&Build::tcp(pod, server, flags));
            let what = format!("TCP flags {flags:#x}");
            dropped(&mut node, &bytes, DropReason::TcpNoFlow, &what);
        }
        for message in [5, 10, 137] {
            let bytes = frame(&Build::new(pod, server, Kind::Icmp(message)));
            let what = format!("ICMP type {message}");
            dropped(&mut node, &bytes, DropReason::IcmpNoFlow, &what);
        }
        let reply = frame(&Build::new(pod, server, Kind::EchoReply));
        dropped(&mut node, &reply, DropReason::IcmpNoFlow, "an echo reply");
    }
    let mut buried = Build::udp(POD6, SERVER6);
    buried.extensions = vec![60; 6];
    let what = "six extension headers";
    dropped(
        &mut node,
        &frame(&buried),
        DropReason::ExtensionHeader,
        what,
    );
    assert!(node.flows().is_empty());
}

#[test]
fn what_is_cut_short_does_not_leave() {
    let mut node = Node::new();
    for (packet, l4) in [
        (Build::tcp(POD, SERVER, SYN), 20),
        (Build::udp(POD, SERVER), 8),
        (Build::echo(POD, "198.51.100.7:0"), 8),
        (Build::tcp(POD6, SERVER6, SYN), 20),
        (Build::udp(POD6, SERVER6), 8),
        (Build::echo(POD6, "[2001:db8::7]:0"), 8),
    ] {
        let ip = if packet.src.is_ipv4() { 20 } else { 40 };
        let whole = frame(&packet);
        // Test runs reject packets shorter than the IP header.
        for len in 14 + ip..14 + ip + l4 {
            let what = format!("{len} bytes of {packet:?}");
            dropped(&mut node, &whole[..len], DropReason::Malformed, &what);
            // On ingress the decision is the node's.
            let seen = node.run_once(Hook::Ingress, &whole[..len]);
            assert_eq!(seen, Seen::Next(whole[..len].to_vec()), "{what}");
        }
    }
    assert!(node.flows().is_empty());
}

#[test]
fn headers_that_contradict_themselves_do_not_leave() {
    let mut node = Node::new();
    let v4 = frame(&Build::udp(POD, SERVER));
    for (at, value, what) in [
        (14, 0x44, "an IHL of 4"),
        (14, 0x65, "version 6"),
        (17, 19, "a total length of 19"),
    ] {
        let mut bytes = v4.clone();
        bytes[at] = value;
        if at == 17 {
            bytes[16] = 0;
        }
        dropped(&mut node, &bytes, DropReason::Malformed, what);
    }
    let mapped = frame(&Build::udp("[::ffff:172.16.0.2]:4000", SERVER6));
    dropped(&mut node, &mapped, DropReason::Malformed, "a mapped source");
    let mapped = frame(&Build::udp(POD6, "[::ffff:198.51.100.7]:443"));
    dropped(&mut node, &mapped, DropReason::Malformed, "a mapped target");
}

#[test]
fn without_an_address_of_the_family_nothing_leaves() {
    let mut node = Node::new();
    node.uplink(None, Some(V6));
    let v4 = frame(&Build::udp(POD, SERVER));
    dropped(&mut node, &v4, DropReason::NoSourceAddress, "IPv4");
    node.uplink(Some(V4), None);
    let v6 = frame(&Build::tcp(POD6, SERVER6, SYN));
    dropped(&mut node, &v6, DropReason::NoSourceAddress, "IPv6");
    assert!(node.flows().is_empty());
}
