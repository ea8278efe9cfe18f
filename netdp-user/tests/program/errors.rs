//! ICMP errors, byte for byte: outer header, quoted packet, and every checksum.

use crate::build::{Build, Kind, SYN};
use crate::node::{Node, Seen, becomes, frame};

/// Pod, another pod, server, node, router, ICMP type.
type Place = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u8,
);

const PLACES: [Place; 2] = [
    (
        "172.16.0.2:4000",
        "172.16.0.3:4000",
        "198.51.100.7:443",
        "192.0.2.10:4000",
        "203.0.113.1:0",
        3,
    ),
    (
        "[fd00:1::2]:4000",
        "[fd00:1::3]:4000",
        "[2001:db8::7]:443",
        "[fd00::10]:4000",
        "[2001:db8:9::1]:0",
        1,
    ),
];

fn openings(pod: &str, server: &str) -> Vec<Build> {
    let mut all = vec![
        Build::tcp(pod, server, SYN),
        Build::udp(pod, server),
        Build::echo(pod, &server.replace(":443", ":0")),
        Build::new(pod, server, Kind::UdpLite),
        Build::new(pod, server, Kind::Other(132)),
        Build::new(pod, server, Kind::Other(47)),
    ];
    if pod.starts_with('[') {
        let mut extended = Build::udp(pod, &server.replace("443", "444"));
        extended.extensions = vec![0, 60];
        all.push(extended);
    } else {
        all.push(Build::new(
            pod,
            &server.replace("443", "444"),
            Kind::UdpNoChecksum,
        ));
        let mut options = Build::tcp(pod, &server.replace("443", "444"), SYN);
        options.options = vec![1; 40];
        all.push(options);
    }
    all
}

/// Returns lengths of the quote, from the required minimum to the whole packet.
fn lengths(packet: &Build) -> [usize; 3] {
    let ip = if packet.src.is_ipv4() {
        20 + packet.options.len()
    } else {
        40 + 8 * packet.extensions.len()
    };
    [ip + 8, ip + 21, packet.bytes().len()]
}

/// Returns the external endpoint that the packet got.
fn wire_of(seen: Seen, packet: &Build) -> String {
    let Seen::Next(bytes) = seen else {
        panic!("dropped: {packet:?}");
    };
    let (address, l4): (std::net::IpAddr, usize) = if packet.src.is_ipv4() {
        let octets: [u8; 4] = bytes[26..30].try_into().unwrap();
        (octets.into(), 34 + packet.options.len())
    } else {
        let octets: [u8; 16] = bytes[22..38].try_into().unwrap();
        (octets.into(), 54 + 8 * packet.extensions.len())
    };
    let at = l4 + if packet.kind == Kind::Echo { 4 } else { 0 };
    let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    std::net::SocketAddr::new(address, port).to_string()
}

#[test]
fn an_error_reaches_the_pod() {
    let mut node = Node::new();
    for (pod, _, server, wire, router, message) in PLACES {
        for packet in openings(pod, server) {
            let sent = packet.from(wire);
            assert_eq!(node.out(&packet), becomes(&sent));
            for len in lengths(&packet) {
                let error = Build::error(router, wire, message, &sent, len);
                let wanted = Build::error(router, pod, message, &packet, len);
                assert_eq!(node.back(&error), becomes(&wanted), "{len}: {packet:?}");
            }
        }
    }
    let counters = node.counters();
    assert_eq!(counters.errors_translated, 2 * 3 * (8 + 7));
    assert_eq!(counters.ingress_translated.packets, 0);
}

#[test]
fn an_error_reaches_the_pod_behind_a_changed_port() {
    let mut node = Node::new();
    for (pod, other_pod, server, wire, router, message) in PLACES {
        for packet in openings(pod, server) {
            if matches!(packet.kind, Kind::Other(_)) {
                continue;
            }
            node.out(&packet);
            let rival = packet.from(other_pod);
            let changed = wire_of(node.out(&rival), &rival);
            assert_ne!(changed, wire);
            for len in lengths(&packet) {
                let mut error = Build::error(router, wire, message, &rival.from(&changed), len);
                let mut wanted = Build::error(router, other_pod, message, &rival, len);
                assert_eq!(node.back(&error), becomes(&wanted), "{len}: {packet:?}");
                if packet.src.is_ipv4() {
                    (error.options, wanted.options) = (vec![1; 12], vec![1; 12]);
                    assert_eq!(node.back(&error), becomes(&wanted), "with options");
                }
                // The other pod's error about the reply.
                let error = Build::error(other_pod, server, message, &rival.answer(), len);
                let about = rival.from(&changed).answer();
                let wanted = Build::error(&changed, server, message, &about, len);
                assert_eq!(node.out(&error), becomes(&wanted), "{len}: {packet:?}");
                // The node's error about it already has the node's address.
                let mut error = error;
                error.src = wanted.src;
                assert_eq!(node.out(&error), becomes(&wanted), "{len}: {packet:?}");
            }
        }
    }
}

#[test]
fn a_pods_error_about_nothing_does_not_leave() {
    let mut node = Node::new();
    for (pod, _, server, wire, router, message) in PLACES {
        let about = Build::udp(server, pod);
        let error = Build::error(pod, server, message, &about, 200);
        assert_eq!(
            node.run_once(netdp_user::datapath::Hook::Egress, &frame(&error)),
            Seen::Shot
        );
        // An error about an inbound flow leaves unmodified.
        node.back(&about);
        assert_eq!(node.out(&error), becomes(&error));
        // An error about an unknown flow is the node's.
        let error = Build::error(router, wire, message, &Build::udp(wire, server), 200);
        assert_eq!(node.back(&error), becomes(&error));
    }
    let counters = node.counters();
    assert_eq!(counters.drops.icmp_no_flow, 2);
    assert_eq!(counters.errors_translated, 0);
}
