//! Wrong, missing and special checksums.

use crate::build::{Build, Kind, SYN};
use crate::node::{Node, Seen, becomes, frame};

const FLOWS: [[&str; 3]; 2] = [
    ["172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"],
    ["[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"],
];

fn l4_at(packet: &Build) -> usize {
    14 + if packet.src.is_ipv4() { 20 } else { 40 }
}

/// Returns the offset of the checksum in a frame.
fn csum_at(packet: &Build) -> usize {
    l4_at(packet)
        + match packet.kind {
            Kind::Tcp { .. } => 16,
            Kind::Udp => 6,
            _ => 2,
        }
}

fn csum(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// Returns the error of a checksum: its ones' complement difference from the right one.
fn error(is: u16, right: u16) -> u16 {
    let sum = u32::from(is) + u32::from(!right);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("16 bits");
    if sum == 0xffff { 0 } else { sum }
}

#[test]
fn a_wrong_checksum_stays_as_wrong() {
    let mut node = Node::new();
    for [pod, server, wire] in FLOWS {
        for mut packet in [
            Build::tcp(pod, server, SYN),
            Build::udp(pod, server),
            Build::echo(pod, &server.replace(":443", ":0")),
        ] {
            for xor in [0x0001, 0x8000, 0x1234, 0xff00] {
                packet.csum_error = 0;
                let (right_in, right_out) = (frame(&packet), frame(&packet.from(wire)));
                packet.csum_error = xor;
                let wrong_in = frame(&packet);
                let Seen::Next(wrong_out) = node.out(&packet) else {
                    panic!("dropped: {packet:?}");
                };
                let at = csum_at(&packet);
                let before = error(csum(&wrong_in, at), csum(&right_in, at));
                let after = error(csum(&wrong_out, at), csum(&right_out, at));
                assert_ne!(before, 0);
                assert_eq!(before, after, "{packet:?}");
                // No other byte differs.
                let mut repaired = wrong_out;
                repaired[at..at + 2].copy_from_slice(&right_out[at..at + 2]);
                assert_eq!(repaired, right_out, "{packet:?}");
            }
        }
    }
}

/// RFC 768, RFC 8200 8.1: a checksum of 0 is sent as all ones.
#[test]
fn a_udp_checksum_never_becomes_zero() {
    for [pod, server, wire] in FLOWS {
        for outwards in [true, false] {
            let mut node = Node::new();
            let mut packet = Build::udp(pod, server);
            assert_eq!(node.out(&packet), becomes(&packet.from(wire)));
            let translate = |packet: &Build| {
                if outwards {
                    packet.from(wire)
                } else {
                    packet.from(wire).answer()
                }
            };
            let wanted = |packet: &Build| {
                if outwards {
                    translate(packet)
                } else {
                    packet.answer()
                }
            };
            let at = csum_at(&packet);
            let all_ones = (0..=u16::MAX).find(|word| {
                packet.data[..2].copy_from_slice(&word.to_be_bytes());
                csum(&frame(&wanted(&packet)), at) == 0xffff
            });
            assert!(all_ones.is_some(), "no data gives such a checksum");
            let seen = if outwards {
                node.out(&packet)
            } else {
                node.back(&translate(&packet))
            };
            assert_eq!(seen, becomes(&wanted(&packet)), "outwards: {outwards}");
        }
    }
}

/// An IPv4 UDP datagram without a checksum stays without one, whatever changes.
#[test]
fn no_checksum_stays_none() {
    let mut node = Node::new();
    let first = Build::new("172.16.0.2:4000", "198.51.100.7:443", Kind::UdpNoChecksum);
    node.out(&first);
    let second = first.from("172.16.0.3:4000");
    let Seen::Next(out) = node.out(&second) else {
        panic!("dropped");
    };
    let at = l4_at(&second) + 6;
    assert_eq!(csum(&out, at), 0);
    assert_ne!(out[l4_at(&second)..][..2], 4000u16.to_be_bytes());
}

/// RFC 6935: tunnels may send UDP over IPv6 without a checksum. A changed address is then not
/// balanced in the checksum that a device computed over the packet.
#[test]
fn no_checksum_over_ipv6_stays_none() {
    let mut node = Node::new();
    let [pod, server, wire] = FLOWS[1];
    let packet = Build::new(pod, server, Kind::UdpNoChecksum);
    let sent = packet.from(wire);
    assert_eq!(node.out(&packet), becomes(&sent));
    assert_eq!(node.back(&sent.answer()), becomes(&packet.answer()));
    let rival = packet.from("[fd00:1::3]:4000");
    let Seen::Next(out) = node.out(&rival) else {
        panic!("dropped");
    };
    assert_eq!(csum(&out, l4_at(&rival) + 6), 0);
}
