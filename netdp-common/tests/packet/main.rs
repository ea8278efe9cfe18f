//! Parsing of valid and of arbitrary packets.

mod inner;
mod kinds;

use netdp_common::layout::{DropReason, Family, Tuple, proto};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{
    Bytes, Inner, L4, Packet, Parsed, TcpSegment, UNKNOWN_LENGTH, parse, parse_inner, queue_hash,
    tuple_hash,
};
use proptest::prelude::*;
use std::cell::Cell;
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::addr;

const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;

/// Parses into the remains of another packet, as the datapath does.
fn parsed(bytes: &[u8], ethertype: u16) -> (Parsed, Packet) {
    let mut pkt = Scratch::EMPTY.pkt;
    let before = Build::tcp("[fd00::77]:7777", "[fd00::88]:8888", SYN).bytes();
    assert_eq!(parse(&before[..], V6, 0, &mut pkt), Parsed::Ip);
    let result = parse(bytes, ethertype, 0, &mut pkt);
    (result, pkt)
}

fn ok(packet: &Build) -> Packet {
    let (result, pkt) = parsed(&packet.bytes(), packet.ethertype());
    assert_eq!(result, Parsed::Ip, "{packet:?}");
    pkt
}

fn refused(bytes: &[u8], ethertype: u16, why: &str) {
    assert_eq!(parsed(bytes, ethertype).0, Parsed::Malformed, "{why}");
}

/// Returns packets of every translated protocol and family.
fn translatable() -> Vec<Build> {
    let mut all = Vec::new();
    for (a, b) in [
        ("172.16.0.2:4000", "198.51.100.7:443"),
        ("[fd00:1::2]:4000", "[2001:db8::7]:443"),
    ] {
        all.push(Build::tcp(a, b, SYN | ACK));
        all.push(Build::udp(a, b));
        all.push(Build::echo(a, b).to(&b.replace(":443", ":0")));
        all.push(all[all.len() - 1].answer());
    }
    let mut bare = all[1].clone();
    bare.kind = Kind::UdpNoChecksum;
    all.push(bare);
    let mut options = all[0].clone();
    options.options = vec![1; 40];
    all.push(options);
    all
}

/// Returns the hash of a packet behind an Ethernet header.
fn hash_of(bytes: &[u8], ethertype: u16, tuple: &Tuple) -> Option<u32> {
    let frame = [&[0xff; 14], bytes].concat();
    queue_hash(&frame[..], ethertype, 14, &tuple.src, &tuple.dst)
}

#[test]
fn a_queue_is_chosen_by_the_tuple_of_what_is_plain() {
    const TAG: u16 = 0x8100;
    let mut hashed = Vec::new();
    for packet in translatable() {
        let (pkt, bytes) = (ok(&packet), packet.bytes());
        let hash = hash_of(&bytes, packet.ethertype(), &pkt.tuple);
        let plain = matches!(pkt.l4, L4::Tcp(_) | L4::Udp) && packet.options.is_empty();
        assert_eq!(hash, plain.then(|| tuple_hash(&pkt.tuple)), "{packet:?}");
        if plain {
            assert_eq!(hash_of(&bytes, TAG, &pkt.tuple), None, "a tag in band");
            hashed.push((pkt.family, pkt.tuple.proto));
        }
    }
    for family in [Family::V4, Family::V6] {
        for protocol in [proto::TCP, proto::UDP] {
            assert!(
                hashed.contains(&(family, protocol)),
                "{family:?} {protocol}"
            );
        }
    }
}

#[test]
fn what_is_not_plain_gets_no_hash() {
    let v4 = Build::udp("172.16.0.2:4000", "198.51.100.7:443");
    let v6 = Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443");
    for (packet, ethertype, header, next) in [(&v4, V4, 20, 9), (&v6, V6, 40, 6)] {
        let (tuple, bytes) = (ok(packet).tuple, packet.bytes());
        assert!(hash_of(&bytes, ethertype, &tuple).is_some());
        assert_eq!(
            hash_of(&bytes[..header + 3], ethertype, &tuple),
            None,
            "cut off"
        );
        assert_eq!(
            hash_of(&bytes, V4 ^ V6 ^ ethertype, &tuple),
            None,
            "another version"
        );
        // UDP-Lite, DCCP, a fragment header.
        for other in [136, 33, 44] {
            let mut bytes = bytes.clone();
            bytes[next] = other;
            assert_eq!(hash_of(&bytes, ethertype, &tuple), None, "protocol {other}");
        }
    }
    let tuple = ok(&v4).tuple;
    for (at, value, what) in [(6, 0x20, "first"), (7, 0x01, "later")] {
        let mut bytes = v4.bytes();
        bytes[at] = value;
        assert_eq!(hash_of(&bytes, V4, &tuple), None, "{what} fragment");
    }
}

#[test]
fn a_tuple_is_as_on_the_wire() {
    for packet in translatable() {
        let pkt = ok(&packet);
        let ip = |end: std::net::SocketAddr| addr(&end.ip().to_string());
        let (l4, number) = match packet.kind {
            Kind::Tcp { flags, seq, ack } => {
                let bad_checksum = u8::from(flags & RST != 0 && packet.csum_error != 0);
                let payload = if flags & FIN == 0 {
                    0
                } else if pkt.is_fragment != 0 {
                    UNKNOWN_LENGTH
                } else {
                    u16::try_from(packet.data.len()).unwrap()
                };
                let segment = TcpSegment {
                    flags,
                    bad_checksum,
                    payload,
                    seq,
                    ack,
                };
                (L4::Tcp(segment), proto::TCP)
            }
            Kind::Udp | Kind::UdpNoChecksum => (L4::Udp, proto::UDP),
            Kind::Echo => (L4::Query, proto::ICMP),
            _ => (L4::QueryReply, proto::ICMP),
        };
        let v4 = packet.src.is_ipv4();
        let number = match number {
            proto::ICMP if !v4 => proto::ICMPV6,
            same => same,
        };
        let wanted = Tuple::new(
            ip(packet.src),
            ip(packet.dst),
            packet.src.port(),
            packet.dst.port(),
            number,
        );
        assert_eq!(pkt.tuple, wanted, "{packet:?}");
        assert_eq!(pkt.l4, l4, "{packet:?}");
        assert_eq!(pkt.family, if v4 { Family::V4 } else { Family::V6 });
        let header = if v4 { 20 + packet.options.len() } else { 40 };
        assert_eq!((pkt.l3_offset, pkt.l4_offset as usize), (0, header));
    }
}

#[test]
fn the_ip_header_may_begin_anywhere() {
    for packet in translatable() {
        let at = 14;
        let bytes = [vec![0xee; at], packet.bytes()].concat();
        let mut pkt = Scratch::EMPTY.pkt;
        let result = parse(&bytes[..], packet.ethertype(), 14, &mut pkt);
        assert_eq!(result, Parsed::Ip);
        let plain = ok(&packet);
        assert_eq!((pkt.tuple, pkt.l4), (plain.tuple, plain.l4));
        assert_eq!(pkt.l3_offset, 14);
        assert_eq!(pkt.l4_offset, plain.l4_offset + 14);
    }
}

#[test]
fn a_reply_has_the_reversed_tuple() {
    for packet in translatable() {
        let (there, back) = (ok(&packet), ok(&packet.answer()));
        assert_eq!(back.tuple, there.tuple.reversed(), "{packet:?}");
    }
}

#[test]
fn every_cut_is_noticed() {
    for packet in translatable() {
        let bytes = packet.bytes();
        let whole = ok(&packet);
        let ip_header = if packet.src.is_ipv4() { 20 } else { 40 };
        let l4_header = match packet.kind {
            Kind::Tcp { .. } => 20,
            _ => 8,
        };
        let needed = whole.l4_offset as usize + l4_header;
        for len in 0..bytes.len() {
            let (result, pkt) = parsed(&bytes[..len], packet.ethertype());
            if len < ip_header {
                assert_eq!(result, Parsed::Malformed, "{len} bytes of {packet:?}");
                continue;
            }
            assert_eq!(result, Parsed::Ip, "{len} bytes of {packet:?}");
            if len < needed {
                let malformed = L4::Untranslatable(DropReason::Malformed);
                assert_eq!(pkt.l4, malformed, "{len} bytes of {packet:?}");
                assert_eq!((pkt.tuple.src_id, pkt.tuple.dst_id), (0, 0));
                assert_eq!(pkt.tuple.src, whole.tuple.src);
            } else {
                assert_eq!((pkt.tuple, pkt.l4), (whole.tuple, whole.l4));
            }
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let v4 = Build::udp("172.16.0.2:4000", "198.51.100.7:443").bytes();
    let v6 = Build::udp("[fd00::2]:4000", "[2001:db8::7]:443").bytes();
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = value;
        changed
    };
    refused(&with(&v4, 0, 0x65), V4, "version 6 in an IPv4 frame");
    refused(&with(&v4, 0, 0x05), V4, "version 0");
    refused(&with(&v6, 0, 0x40), V6, "version 4 in an IPv6 frame");
    for ihl in 0..5 {
        refused(&with(&v4, 0, 0x40 | ihl), V4, "an IHL below 5");
    }
    for total in [1, 19] {
        let cut = with(&with(&v4, 2, 0), 3, total);
        refused(&cut, V4, "a total length below the header's");
    }
    let options = with(&with(&with(&v4, 0, 0x46), 2, 0), 3, 23);
    refused(&options, V4, "a total length within the options");
    refused(&v4, V6, "IPv4 in an IPv6 frame");
    refused(&v6, V4, "IPv6 in an IPv4 frame");
}

/// Linux's `iph_totlen` (include/linux/ip.h, 6.12): a GSO packet over 64 KiB
/// has no total length.
#[test]
fn a_big_tcp_packet_has_no_total_length() {
    let mut bytes = Build::tcp("172.16.0.2:4000", "198.51.100.7:443", ACK).bytes();
    bytes[2..4].fill(0);
    let (result, pkt) = parsed(&bytes, V4);
    assert_eq!(result, Parsed::Ip);
    assert!(matches!(pkt.l4, L4::Tcp(_)));
}

#[test]
fn mapped_addresses_do_not_pass_for_ipv4() {
    for (src, dst) in [
        ("[::ffff:10.0.0.1]:1", "[fd00::1]:2"),
        ("[fd00::1]:2", "[::ffff:10.0.0.1]:1"),
    ] {
        let bytes = Build::udp(src, dst).bytes();
        assert_eq!(bytes.len(), 40 + 8 + 19, "IPv6 on the wire");
        refused(&bytes, V6, "an IPv4-mapped address");
    }
    let compatible = Build::udp("[::10.0.0.1]:1", "[fd00::1]:2");
    assert_eq!(ok(&compatible).l4, L4::Udp);
}

#[test]
fn what_is_not_ip_is_told() {
    let bytes = Build::udp("10.0.0.1:1", "10.0.0.2:2").bytes();
    for ethertype in [0, 0x0806, 0x8100, 0x8847, 0x88cc, 0xffff] {
        assert_eq!(parsed(&bytes, ethertype).0, Parsed::NotIp, "{ethertype:#x}");
    }
}

/// A packet that records the largest offset that a parser reads.
struct Watched<'a> {
    bytes: &'a [u8],
    furthest: Cell<usize>,
}

impl Bytes for Watched<'_> {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.furthest.set(self.furthest.get().max(offset + N * 4));
        self.bytes.words::<N>(offset)
    }

    /// Does not extend the recorded offset beyond the packet: the length of a checksum is in the
    /// packet.
    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        self.bytes.sum(offset, len)
    }
}

proptest! {
    #[test]
    fn anything_parses_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..160),
        version in prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60, 0x00]),
        protocol in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 47, 51, 58, 60, 132]),
        ethertype in prop::sample::select(vec![V4, V6, 0x0806]),
        offset in prop::sample::select(vec![0u32, 14]),
    ) {
        let at = offset as usize;
        for (place, value) in [(at, version), (at + 6 + 3 * usize::from(ethertype == V4), protocol)] {
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
        }
        let watched = Watched { bytes: &bytes, furthest: Cell::new(0) };
        let mut pkt = Scratch::EMPTY.pkt;
        let result = parse(&watched, ethertype, offset, &mut pkt);
        // The program linearises this much of a packet and no more.
        if ethertype == V4 {
            prop_assert!(watched.furthest.get() <= at + 60 + 20);
        }
        let translatable = !matches!(pkt.l4, L4::Untranslatable(_));
        if result == Parsed::Ip && translatable {
            prop_assert!(watched.furthest.get() <= bytes.len());
            prop_assert_eq!(pkt.family == Family::V4, pkt.tuple.src.is_v4());
            prop_assert_eq!(pkt.family == Family::V4, pkt.tuple.dst.is_v4());
            // Bytes after the headers have no influence.
            let mut other = bytes.clone();
            other[watched.furthest.get()..].fill(0xa5);
            let mut again = Scratch::EMPTY.pkt;
            parse(&other[..], ethertype, offset, &mut again);
            prop_assert_eq!(pkt, again);
        }
        if result == Parsed::Ip && pkt.l4 == L4::Error {
            let mut inner = Inner::EMPTY;
            if parse_inner(&bytes[..], &pkt, &mut inner).is_some() {
                prop_assert_eq!(pkt.family == Family::V4, inner.tuple.src.is_v4());
                prop_assert!(inner.l4_offset as usize + 8 <= bytes.len());
                prop_assert!(inner.checksum_offset as usize + 2 <= bytes.len());
            }
        }
    }
}
