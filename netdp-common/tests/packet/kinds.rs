//! Fragments, extension headers, protocols and messages.

use super::{V6, ok, parsed};
use netdp_common::layout::{DropReason, proto};
use netdp_common::packet::L4;
use testkit::build::{Build, Kind, SYN};

#[test]
fn fragments_are_told_from_whole_packets() {
    for (src, dst, whole_id) in [
        ("172.16.0.2:4000", "198.51.100.7:443", 0x1234),
        ("[fd00:1::2]:4000", "[2001:db8::7]:443", 0x5678_1234),
    ] {
        let mut packet = Build::udp(src, dst);
        for (field, fragment) in [
            (0x4000, None),        // DF
            (0x8000, None),        // reserved
            (0x2000, Some(true)),  // first
            (0x6000, Some(true)),  // first, with DF
            (0x2001, Some(false)), // middle
            (0x0001, Some(false)), // last
            (0x1fff, Some(false)),
        ] {
            packet.fragment = field;
            let pkt = ok(&packet);
            let ids = (pkt.tuple.src_id, pkt.tuple.dst_id);
            assert_eq!(pkt.tuple.proto, proto::UDP);
            let is_fragment = u32::from(fragment.is_some());
            assert_eq!(pkt.is_fragment, is_fragment, "{field:#x}");
            let id = if is_fragment == 1 { whole_id } else { 0 };
            assert_eq!(pkt.fragment_id, id, "{field:#x}");
            if fragment == Some(false) {
                assert_eq!((pkt.l4, ids), (L4::LaterFragment, (0, 0)), "{field:#x}");
            } else {
                assert_eq!((pkt.l4, ids), (L4::Udp, (4000, 443)), "{field:#x}");
            }
        }
    }
    // In IPv4, header number 44 is not a fragment header.
    let v4 = Build::new("10.0.0.1:0", "10.0.0.2:0", Kind::Other(44));
    assert_eq!((ok(&v4).l4, ok(&v4).is_fragment), (L4::AddressOnly, 0));
}

#[test]
fn extension_headers_are_stepped_over() {
    let mut packet = Build::tcp("[fd00::2]:4000", "[2001:db8::7]:443", SYN);
    let plain = ok(&packet);
    for extensions in [vec![0], vec![43], vec![60], vec![0, 60, 43, 60]] {
        packet.extensions = extensions.clone();
        let pkt = ok(&packet);
        assert_eq!((pkt.tuple, pkt.l4), (plain.tuple, plain.l4));
        assert_eq!(pkt.l4_offset as usize, 40 + 8 * extensions.len());
        let first = ok(&packet.first());
        assert_eq!((first.tuple, first.l4), (plain.tuple, plain.l4));
        assert_eq!(first.fragment_id, packet.ip_id);
        assert_eq!(ok(&packet.last()).l4, L4::LaterFragment);
    }
    packet.extensions = vec![60; 5];
    assert_eq!(ok(&packet).l4, plain.l4);
    // A header of 24 bytes.
    packet.extensions = vec![0];
    let mut bytes = packet.bytes();
    bytes[41] = 2;
    bytes.splice(48..48, [0; 16]);
    let (_, pkt) = parsed(&bytes, V6);
    assert_eq!((pkt.l4, pkt.l4_offset), (plain.l4, 64));
}

#[test]
fn what_is_behind_too_many_extension_headers_is_unknown() {
    let mut packet = Build::tcp("[fd00::2]:4000", "[2001:db8::7]:443", SYN);
    let unknown = L4::Untranslatable(DropReason::ExtensionHeader);
    for many in [6, 7, 20] {
        packet.extensions = vec![60; many];
        assert_eq!(ok(&packet).l4, unknown, "{many}");
    }
    packet.extensions = vec![60; 5];
    assert_eq!(ok(&packet.first()).l4, unknown, "a fragment header too");
    packet.extensions = vec![0, 60];
    let bytes = packet.bytes();
    for len in 40..56 {
        assert_eq!(parsed(&bytes[..len], V6).1.l4, unknown, "{len} bytes");
    }
}

#[test]
fn other_protocols_and_messages_are_named() {
    let unsupported = L4::Untranslatable(DropReason::UnsupportedProtocol);
    let no_flow = L4::Untranslatable(DropReason::IcmpNoFlow);
    for (family, src, dst) in [
        (4, "172.16.0.2:7", "198.51.100.7:9"),
        (6, "[fd00::2]:7", "[2001:db8::7]:9"),
    ] {
        let foreign_icmp = if family == 4 { 58 } else { 1 };
        for (kind, l4, ids) in [
            // IGMP, IPIP, IPv6, GRE, ESP.
            (Kind::Other(2), L4::AddressOnly, (0, 0)),
            (Kind::Other(4), L4::AddressOnly, (0, 0)),
            (Kind::Other(41), L4::AddressOnly, (0, 0)),
            (Kind::Other(47), L4::AddressOnly, (0, 0)),
            (Kind::Other(50), L4::AddressOnly, (0, 0)),
            (Kind::Other(132), L4::AddressOnly, (7, 9)),
            (Kind::UdpLite, L4::Udp, (7, 9)),
            // AH, and ICMP of the other family.
            (Kind::Other(51), unsupported, (0, 0)),
            (Kind::Other(foreign_icmp), unsupported, (0, 0)),
        ] {
            let pkt = ok(&Build::new(src, dst, kind));
            let seen = (pkt.l4, (pkt.tuple.src_id, pkt.tuple.dst_id));
            assert_eq!(seen, (l4, ids), "{kind:?} over IPv{family}");
        }
        let mut dccp = Build::new(src, dst, Kind::Other(33));
        dccp.data = vec![0, 7, 0, 9, 3, 0, 0, 0, 0, 0, 0, 0];
        let pkt = ok(&dccp);
        assert_eq!(
            (pkt.l4, pkt.tuple.src_id, pkt.tuple.dst_id),
            (L4::Udp, 7, 9)
        );
        let (errors, others): (&[u8], &[u8]) = if family == 4 {
            (&[3, 11, 12], &[1, 2, 4, 5, 9, 10, 127, 128, 129, 135])
        } else {
            (&[1, 2, 3, 4], &[0, 5, 8, 13, 100, 127, 130, 135, 136, 137])
        };
        for (messages, l4) in [(errors, L4::Error), (others, no_flow)] {
            for message in messages {
                let pkt = ok(&Build::new(src, dst, Kind::Icmp(*message)));
                assert_eq!(pkt.l4, l4, "type {message} over IPv{family}");
                assert_eq!((pkt.tuple.src_id, pkt.tuple.dst_id), (0, 0));
            }
        }
    }
    // Timestamp, information, address mask: queries and their replies.
    for (message, l4) in [
        (13, L4::Query),
        (14, L4::QueryReply),
        (15, L4::Query),
        (16, L4::QueryReply),
        (17, L4::Query),
        (18, L4::QueryReply),
    ] {
        let pkt = ok(&Build::new("10.0.0.1:0", "10.0.0.2:0", Kind::Icmp(message)));
        assert_eq!(pkt.l4, l4, "type {message}");
    }
}
