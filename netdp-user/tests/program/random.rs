//! Random packets through the programs.

use crate::build::{ACK, Build, Kind};
use crate::node::{Node, becomes};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;

/// Random addresses, ports and data, all on one node.
#[test]
fn any_packet_is_translated_exactly() {
    let node = RefCell::new(Node::with(|setup| setup.max_flows = 10_000));
    let input = (
        any::<bool>(),
        0..4u8,
        any::<(u128, u128)>(),
        1..=u16::MAX,
        1..=u16::MAX,
        prop::collection::vec(any::<u8>(), 0..1_400),
        0..=10usize,
    );
    let mut runner = TestRunner::default();
    let result = runner.run(&input, |(v6, kind, addrs, sport, dport, data, options)| {
        let end = |bits: u128, port: u16| {
            if v6 {
                let global = bits >> 3 | 1 << 125;
                format!("[{}]:{port}", std::net::Ipv6Addr::from(global))
            } else {
                // Below 128.0.0.0 there are no special addresses.
                let [a, b, c, d, ..] = bits.to_be_bytes();
                format!("{}.{b}.{c}.{d}:{port}", 1 + a % 126)
            }
        };
        let query = kind == 3;
        let mut packet = Build::new(
            &end(addrs.0, sport),
            &end(addrs.1, if query { 0 } else { dport }),
            match kind {
                0 => Kind::Tcp {
                    flags: ACK,
                    seq: u32::from(sport) << 7,
                    ack: u32::from(dport) << 13,
                },
                1 => Kind::Udp,
                2 if !v6 => Kind::UdpNoChecksum,
                2 => Kind::Udp,
                _ => Kind::Echo,
            },
        );
        packet.data = data;
        if !v6 {
            packet.options = vec![1; options * 4];
        }
        let wire = if v6 {
            format!("[fd00::10]:{sport}")
        } else {
            format!("192.0.2.10:{sport}")
        };
        let translated = packet.from(&wire);
        let mut node = node.borrow_mut();
        prop_assert_eq!(node.out(&packet), becomes(&translated));
        prop_assert_eq!(node.back(&translated.answer()), becomes(&packet.answer()));
        Ok(())
    });
    result.expect("every packet as it should be");
}
