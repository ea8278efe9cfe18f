//! Packets quoted by ICMP errors.

use super::{ok, translatable};
use netdp_common::packet::{Inner, parse_inner};
use testkit::build::{Build, Kind, SYN};

const ENDS: [(&str, &str, &str, &str, u8); 2] = [
    (
        "203.0.113.1:0",
        "192.0.2.10:0",
        "192.0.2.10:4000",
        "198.51.100.7:443",
        3,
    ),
    (
        "[2001:db8:9::1]:0",
        "[fd00::10]:0",
        "[fd00::10]:4000",
        "[2001:db8::7]:443",
        1,
    ),
];

fn inner_of(error: &Build) -> Option<Inner> {
    let mut inner = Inner::EMPTY;
    parse_inner(&error.bytes()[..], &ok(error), &mut inner).map(|()| inner)
}

fn around(about: &Build, len: usize) -> Build {
    let (router, node, _, _, message) = ENDS[usize::from(about.src.is_ipv6())];
    Build::error(router, node, message, about, len)
}

#[test]
fn eight_bytes_of_l4_name_the_flow() {
    for packet in translatable() {
        let alone = ok(&packet);
        let header = alone.l4_offset as usize;
        for extra in 0..24 {
            let error = around(&packet, header + extra);
            let inner = inner_of(&error);
            if extra < 8 {
                assert_eq!(inner, None, "{extra} bytes of {packet:?}");
                continue;
            }
            let inner = inner.unwrap_or_else(|| panic!("{extra} bytes of {packet:?}"));
            assert_eq!(inner.tuple, alone.tuple);
            let outer = ok(&error).l4_offset;
            assert_eq!(inner.l3_offset, outer + 8);
            assert_eq!(inner.l4_offset, outer + 8 + alone.l4_offset);
            let checksum = match packet.kind {
                Kind::Tcp { .. } if extra < 20 => 0,
                Kind::Tcp { .. } => inner.l4_offset + 16,
                Kind::Udp | Kind::UdpNoChecksum => inner.l4_offset + 6,
                _ => inner.l4_offset + 2,
            };
            assert_eq!(
                inner.checksum_offset, checksum,
                "{extra} bytes of {packet:?}"
            );
        }
    }
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    let [(router, node, wire, server, message), v6] = ENDS;
    let mut packet = Build::udp(wire, server);
    let tuple = ok(&packet).tuple;
    packet.options = vec![1; 40];
    let mut error = Build::error(router, node, message, &packet, 68);
    error.options = vec![1; 8];
    let inner = inner_of(&error).expect("an inner packet");
    assert_eq!((inner.tuple, inner.l4_offset), (tuple, 28 + 8 + 60));

    let mut packet = Build::tcp(v6.2, v6.3, SYN);
    let tuple = ok(&packet).tuple;
    packet.extensions = vec![0, 60];
    let mut error = Build::error(v6.0, v6.1, v6.4, &packet, 64);
    error.extensions = vec![60];
    let inner = inner_of(&error).expect("an inner packet");
    assert_eq!((inner.tuple, inner.l4_offset), (tuple, 48 + 8 + 56));
}

#[test]
fn a_first_fragment_names_its_flow_and_no_other_does() {
    for (_, _, wire, server, _) in ENDS {
        let packet = Build::udp(wire, server);
        let first = inner_of(&around(&packet.first(), 200));
        assert_eq!(first.map(|inner| inner.tuple), Some(ok(&packet).tuple));
        assert_eq!(inner_of(&around(&packet.last(), 200)), None);
    }
}

/// RFC 1122 3.2.2: no error about an error.
#[test]
fn an_error_about_an_error_names_nothing() {
    for (_, _, wire, server, message) in ENDS {
        let inner = Build::new(wire, server, Kind::Icmp(message));
        assert_eq!(inner_of(&around(&inner, 200)), None);
    }
}

#[test]
fn other_protocols_are_known_by_their_addresses() {
    for (_, _, wire, server, _) in ENDS {
        for kind in [Kind::Other(47), Kind::Other(132), Kind::UdpLite] {
            let packet = Build::new(wire, server, kind);
            let inner = inner_of(&around(&packet, 200)).expect("an inner packet");
            assert_eq!(inner.tuple, ok(&packet).tuple, "{kind:?}");
            assert_eq!(inner.checksum_offset != 0, kind == Kind::UdpLite);
        }
    }
}
