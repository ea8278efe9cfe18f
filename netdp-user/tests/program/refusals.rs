//! Refused flows are answered with an ICMP error to the pod.

use crate::build::{Build, Kind, SYN};
use crate::node::{Node, Seen, ip};
use crate::test_run::On;
use netdp_user::datapath::Hook;

/// Takes the only place in the tables, at no interface's expense.
fn fill(node: &mut Node) {
    send(node, &Build::udp("172.16.0.9:1", "198.51.100.9:1"), 0);
}

/// Sends a packet that came by this interface.
fn send(node: &mut Node, packet: &Build, came_by: u32) -> Seen {
    let on = On {
        ifindex: 1,
        came_by,
    };
    node.run_from(Hook::Egress, &crate::node::frame(packet), on)
}

/// Adds a device that leads to the pods; returns its index.
fn pods() -> u32 {
    for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{knob}"), "1").expect("forwarding");
    }
    ip(&["link", "add", "pods", "type", "veth", "peer", "name", "far"]);
    for device in ["pods", "far"] {
        ip(&["link", "set", device, "up"]);
    }
    ip(&["addr", "add", "172.16.0.1/24", "dev", "pods"]);
    ip(&["addr", "add", "fd00:1::1/64", "dev", "pods", "nodad"]);
    nix::net::if_::if_nametoindex("pods").expect("the device")
}

/// Returns the node's expected error without the Ethernet header; `about` is the maximum quote of
/// the packet.
fn wanted(packet: &Build, node: &str, about: usize) -> Vec<u8> {
    let v4 = packet.src.is_ipv4();
    let mut pod = packet.src;
    pod.set_port(0);
    let message = if v4 { 3 } else { 1 };
    let error = Build::error(node, &pod.to_string(), message, packet, about);
    let mut bytes = error.bytes();
    // The code, and an unused second word; the IP header is the node's own.
    let (ip, code) = if v4 { (20, 1) } else { (40, 3) };
    bytes[ip + 1] = code;
    bytes[ip + 4..ip + 8].fill(0);
    if v4 {
        bytes[1] = 0xc0;
        bytes[4..8].fill(0);
        bytes[8] = 64;
    } else {
        bytes[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        bytes[7] = 64;
    }
    // Checksums are verified by their definition.
    bytes
}

/// Reports whether the checksums over the header, and over message and pseudo-header, are right.
fn checksums_are_right(bytes: &[u8]) -> bool {
    use crate::build::internet;
    if bytes[0] >> 4 == 4 {
        return internet(&bytes[..20]) == 0 && internet(&bytes[20..]) == 0;
    }
    let len = u32::try_from(bytes.len() - 40).unwrap().to_be_bytes();
    let pseudo = [&bytes[8..40], &len, &[0, 0, 0, 58], &bytes[40..]].concat();
    internet(&pseudo) == 0
}

fn without_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let ip = if bytes[0] >> 4 == 4 { 20 } else { 40 };
    if ip == 20 {
        out[10..12].fill(0);
    }
    out[ip + 2..ip + 4].fill(0);
    out
}

#[test]
fn a_refused_flow_is_answered() {
    for (pod, server, node_address) in [
        ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:0"),
        ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:0"),
    ] {
        let ip_header = if pod.starts_with('[') { 40 } else { 20 };
        for (packet, l4) in [
            (Build::tcp(pod, server, SYN), 20),
            (Build::udp(pod, server), 8),
            (Build::echo(pod, &server.replace("443", "0")), 8),
        ] {
            let mut node = Node::with(|setup| setup.max_flows = 1);
            let came_by = pods();
            fill(&mut node);
            let Seen::Redirected(bytes) = send(&mut node, &packet, came_by) else {
                panic!("not answered: {packet:?}");
            };
            let answer = &bytes[14..];
            let wanted = wanted(&packet, node_address, ip_header + l4);
            assert!(checksums_are_right(answer), "{answer:02x?}");
            assert_eq!(without_checksums(answer), without_checksums(&wanted));
            assert_eq!(node.counters().drops.table_full, 1);
        }
    }
}

#[test]
fn what_has_no_plain_header_is_dropped_in_silence() {
    let mut node = Node::with(|setup| setup.max_flows = 1);
    let came_by = pods();
    fill(&mut node);
    let mut options = Build::udp("172.16.0.2:4000", "198.51.100.7:443");
    options.options = vec![1; 4];
    let mut extended = Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443");
    extended.extensions = vec![60];
    let other = Build::new("172.16.0.2:0", "198.51.100.7:0", Kind::Other(47));
    // Its only route is the uplink itself.
    let elsewhere = Build::udp("172.31.0.2:4000", "198.51.100.7:443");
    for packet in [options, extended, other, elsewhere] {
        assert_eq!(send(&mut node, &packet, came_by), Seen::Shot, "{packet:?}");
    }
    assert_eq!(node.counters().drops.table_full, 4);
}
