//! Random packets between few endpoints, so that they often meet the same state.

use super::random::Random;
use crate::build::{ACK, Build, FIN, Kind, RST, SYN};
use crate::node::frame;
use netdp_common::direction::Direction;

/// Both families' pods (behind `pod0`, behind `pod1`, behind no known interface), peers and
/// addresses of the node.
pub struct Net {
    pub pods: [&'static str; 5],
    pub peers: [&'static str; 7],
    pub nodes: [&'static str; 3],
    /// Destinations that are never translated.
    special: [&'static str; 2],
}

pub const NETS: [Net; 2] = [
    Net {
        pods: [
            "172.16.0.2",
            "172.16.0.3",
            "172.16.1.2",
            "172.20.0.2",
            "172.16.0.77",
        ],
        peers: [
            "198.51.100.7",
            "198.51.100.8",
            "203.0.113.10",
            "10.2.0.17",
            "10.2.3.4",
            "192.168.9.9",
            "198.18.0.9",
        ],
        nodes: ["192.0.2.10", "192.0.2.20", "192.0.2.30"],
        special: ["224.0.0.251", "255.255.255.255"],
    },
    Net {
        pods: [
            "fd00:1::2",
            "fd00:1::3",
            "fd00:2::2",
            "fd00:9::2",
            "fd00:1::77",
        ],
        peers: [
            "2001:db8::7",
            "2001:db8::8",
            "2001:db8:1::10",
            "fd10::17",
            "fd10:3::4",
            "fd20::9",
            "2001:db8:f::9",
        ],
        nodes: ["fd00::10", "fd00::20", "fd00::30"],
        special: ["ff02::fb", "ff02::1"],
    },
];

/// Ports of pods and of peers.
pub const PORTS: [u16; 6] = [4000, 4001, 4002, 4003, 4004, 53];
pub const PEER_PORTS: [u16; 3] = [443, 53, 4000];

pub fn at(addr: &str, port: u16) -> String {
    if addr.contains(':') {
        format!("[{addr}]:{port}")
    } else {
        format!("{addr}:{port}")
    }
}

/// Returns a random frame.
pub fn packet(random: &mut Random, direction: Direction) -> Vec<u8> {
    let v6 = random.once_in(3);
    let net = &NETS[usize::from(v6)];
    let mut packet = flow(random, net, direction);
    match random.below(12) {
        0 => packet = packet.first(),
        1 => packet = packet.last(),
        2 if !v6 => packet.options = vec![1; 4 * (1 + random.below(9) as usize)],
        3 if v6 => packet.extensions = vec![random.pick(&[0, 60, 43])],
        4 => packet.csum_error = 1,
        5 => {
            // The other way round than the flow: an error about it comes from the peer, or from a
            // router.
            let about = packet.answer();
            let (v4, v6_kinds) = ([3, 11, 12], [1, 2, 3]);
            let kind = random.pick(if v6 { &v6_kinds } else { &v4 });
            let from = match random.below(4) {
                0 => packet.src.to_string(),
                1 => at(random.pick(&net.peers), 0),
                2 => at(random.pick(&net.nodes), 0),
                _ => at(random.pick(&net.pods), 0),
            };
            let whole = random.pick(&[8, 28, 48, 200]);
            packet = Build::error(&from, &packet.dst.to_string(), kind, &about, whole + 40);
        }
        _ => {}
    }
    packet.ip_id = random.pick(&[7, 8, 9]);
    let mut frame = frame(&packet);
    if random.once_in(40) {
        // Another sender on the link.
        frame[11] = 9;
    }
    if random.once_in(30) {
        // Anything at all.
        let at = 14 + random.below(u32::try_from(frame.len()).unwrap() - 14) as usize;
        frame[at] = random.next().to_be_bytes()[0];
    }
    // Test runs take no packet without a whole IP header.
    let least = if v6 { 54 } else { 34 };
    if random.once_in(60) && frame.len() > least {
        let rest = u32::try_from(frame.len() - least).unwrap();
        frame.truncate(least + random.below(rest) as usize);
    }
    frame
}

fn flow(random: &mut Random, net: &Net, direction: Direction) -> Build {
    let (pod, port) = (random.pick(&net.pods), random.pick(&PORTS));
    let (peer, peer_port) = (random.pick(&net.peers), random.pick(&PEER_PORTS));
    let node = random.pick(&net.nodes);
    let (source, destination) = match (direction, random.below(12)) {
        (Direction::Egress, 0) => (node, peer),
        (Direction::Egress, 1) => (pod, node),
        (Direction::Egress, 2) => (pod, random.pick(&net.special)),
        (Direction::Egress, 3) => (peer, pod),
        (Direction::Egress, _) => (pod, peer),
        (Direction::Ingress, 0..4) => (peer, pod),
        (Direction::Ingress, _) => (peer, node),
    };
    let kind = match random.below(14) {
        0..5 => Kind::Tcp {
            flags: random.pick(&[
                SYN,
                SYN,
                SYN,
                ACK,
                SYN | ACK,
                FIN | ACK,
                RST,
                RST | ACK,
                ACK | 8,
                0,
            ]),
            seq: random.pick(&[999, 1000, 1001, 5000]),
            ack: random.pick(&[0, 1001, 2000, 5001]),
        },
        5..8 => Kind::Udp,
        8 => Kind::UdpNoChecksum,
        9 => Kind::Echo,
        10 => Kind::EchoReply,
        11 => Kind::UdpLite,
        12 => Kind::Other(random.pick(&[47, 132, 51, 50, 89, 33])),
        _ => Kind::Icmp(random.pick(&[13, 135, 136, 133, 5, 200])),
    };
    let kind = match kind {
        // A checksum is not optional in IPv6.
        Kind::UdpNoChecksum if source.contains(':') => Kind::Udp,
        kind => kind,
    };
    let (source_port, destination_port) = match direction {
        Direction::Egress => (port, peer_port),
        Direction::Ingress => (peer_port, port),
    };
    let mut packet = Build::new(
        &at(source, source_port),
        &at(destination, destination_port),
        kind,
    );
    if matches!(kind, Kind::Icmp(_)) && random.once_in(2) {
        packet.hops = 255;
    }
    packet
}
