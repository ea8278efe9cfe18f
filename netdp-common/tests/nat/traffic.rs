//! The packets and bytes of mappings, rules and pairs of addresses.

use super::{BOTH, Net, becomes, halves, opened};
use netdp_common::flow::{SEEN_CARRIED_OVER, SEEN_OWN, TcpState, tcp_state};
use netdp_common::layout::{
    Action, Half, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping,
    SETTING_BYPASS_CACHE_VALID, Traffic, Tuple,
};
use proptest::prelude::*;
use testkit::build::{ACK, Build, FIN, RST, SYN};
use testkit::fake::{Fake, Seen, tuple_of};

/// The largest packet that the kernel makes before it segments (`GSO_MAX_SIZE` of
/// include/linux/netdevice.h, Linux 6.12).
const LARGEST: u32 = 8 * 65_535;

fn wire_of(net: &Net) -> Tuple {
    tuple_of(&Build::udp(net.server, net.node))
}

fn length(packet: &Build) -> u64 {
    u64::try_from(packet.bytes().len()).expect("a length")
}

/// Replaces a half, as if a program of layout 1 had counted in it.
fn as_of_layout_1(fake: &Fake, half: Half, key: &Tuple, packets: u32) {
    let map = match half {
        Half::Original => &fake.snat,
        Half::Reply => &fake.rev_snat,
    };
    let now = map.get(key).expect("a half");
    map.remove(key);
    let earlier = Mapping {
        flags: now.flags & !half.counted(),
        traffic: packets,
        ..now
    };
    map.insert(key, &earlier).expect("room");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the lengths, the word and what was carried over are the exact sum.
    #[test]
    fn no_packet_and_no_byte_is_lost(
        lengths in prop::collection::vec(
            prop_oneof![20..1500u32, 20..=LARGEST, Just(LARGEST), Just(40)], 1..1500
        ),
        repeated in 1..3usize,
        net in 0..2usize,
        outwards: bool,
    ) {
        let net = BOTH[net];
        let fake = opened(&net.udp());
        let reply = Build::udp(net.server, net.node);
        let (half, key) = if outwards {
            (Half::Original, tuple_of(&net.udp()))
        } else {
            (Half::Reply, wire_of(&net))
        };
        let mut wanted = fake.counted(half, &key);
        for len in lengths.iter().cycle().take(lengths.len() * repeated) {
            fake.unsegmented.set(Some(*len));
            if outwards {
                fake.out(&net.udp());
            } else {
                fake.back(&reply);
            }
            wanted.add(&Traffic::packet(*len));
            prop_assert_eq!(fake.counted(half, &key), wanted);
        }
        prop_assert!(fake.traffic.borrow().len() <= 1);
        prop_assert_eq!(fake.counters().traffic_unattributed, Traffic::default());
    }
}

#[test]
fn bytes_are_counted_from_the_ip_header_on() {
    for net in BOTH {
        for packet in net.openings() {
            let mut fake = Fake::new();
            for l2_len in [14, 0] {
                fake.uplink.l2_len = l2_len;
                fake.out(&packet);
            }
            let two = Traffic {
                packets: 2,
                bytes: 2 * length(&packet),
            };
            assert_eq!(fake.counted(Half::Original, &tuple_of(&packet)), two);
            assert_eq!(fake.counters().egress_masqueraded, two, "{packet:?}");
        }
    }
}

#[test]
fn a_half_of_layout_1_keeps_its_count_and_counts_bytes_from_then_on() {
    for net in BOTH {
        for packets in [0, 1, 511, 512, 1024, 5000, u32::MAX] {
            let fake = opened(&net.udp());
            let reply = Build::udp(net.server, net.node);
            fake.back(&reply);
            let (tuple, wire) = (tuple_of(&net.udp()), wire_of(&net));
            as_of_layout_1(&fake, Half::Original, &tuple, packets);
            as_of_layout_1(&fake, Half::Reply, &wire, packets);
            for n in 1..=2 {
                assert_eq!(fake.out(&net.udp()), becomes(net.node));
                assert_eq!(fake.back(&reply), becomes(net.pod));
                let wanted = |packet: &Build| Traffic {
                    packets: u64::from(packets) + n,
                    bytes: n * length(packet),
                };
                assert_eq!(fake.counted(Half::Original, &tuple), wanted(&net.udp()));
                assert_eq!(fake.counted(Half::Reply, &wire), wanted(&reply));
            }
            let (original, back) = halves(&fake, &net.udp());
            assert_ne!(original.flags & MAPPING_COUNTED_ORIGINAL, 0);
            assert_ne!(back.flags & MAPPING_COUNTED_REPLY, 0);
            // 511 and one more are carried over with the second packet.
            let entries = if packets > 510 { 2 } else { 0 };
            assert_eq!(fake.traffic.borrow().len(), entries, "{packets}");
        }
    }
}

/// Returns a connection from both of whose halves traffic was carried over.
fn carried(net: &Net) -> Fake {
    let fake = opened(&net.syn());
    fake.unsegmented.set(Some(LARGEST));
    fake.back(&Build::tcp(net.server, net.node, SYN | ACK));
    for _ in 0..5 {
        fake.out(&Build::tcp(net.pod, net.server, ACK));
        fake.back(&Build::tcp(net.server, net.node, ACK));
    }
    fake.unsegmented.set(None);
    assert_eq!(fake.traffic.borrow().len(), 2);
    fake
}

#[test]
fn what_was_carried_over_changes_no_state() {
    for net in BOTH {
        let fake = carried(&net);
        let (original, reply) = halves(&fake, &net.syn());
        assert_eq!(original.seen() & SEEN_CARRIED_OVER, SEEN_CARRIED_OVER);
        assert_eq!(reply.packets(Half::Reply), u32::MAX, "it has had many");
        let state = tcp_state(original.seen(), reply.seen());
        assert_eq!(state, TcpState::Established);
        let before = fake.counted(Half::Original, &tuple_of(&net.syn()));
        // Closed by a RST, and reopened.
        assert_eq!(
            fake.out(&Build::tcp(net.pod, net.server, RST)),
            becomes(net.node)
        );
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        let (original, reply) = halves(&fake, &net.syn());
        assert_eq!(reply.seen() & SEEN_OWN, 0, "it has not answered yet");
        let state = tcp_state(original.seen(), reply.seen());
        assert_eq!(state, TcpState::SynSent);
        let after = fake.counted(Half::Original, &tuple_of(&net.syn()));
        assert_eq!(after.packets, before.packets + 2, "the count goes on");
        // And is carried over to the same entry.
        fake.unsegmented.set(Some(LARGEST));
        for _ in 0..5 {
            fake.out(&net.syn());
        }
        let after = fake.counted(Half::Original, &tuple_of(&net.syn()));
        assert_eq!(after.packets, before.packets + 7);
    }
}

/// A SYN from outside shows that the closed mapping's tuple is the node's.
#[test]
fn entries_end_with_the_mapping() {
    for net in BOTH {
        let fake = carried(&net);
        fake.out(&Build::tcp(net.pod, net.server, RST));
        let from_outside = Build::tcp(net.server, net.node, SYN);
        assert_eq!(fake.back(&from_outside), Seen::Pass);
        assert_eq!(fake.snat.len() + fake.rev_snat.len(), 0);
        assert!(fake.traffic.borrow().is_empty());
    }
}

/// The remains of an earlier mapping with that tuple, whose end a program of layout 1 decided.
#[test]
fn an_entry_of_an_earlier_mapping_is_not_added_to() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let tuple = tuple_of(&net.udp());
        let stale = Traffic {
            packets: 7,
            bytes: 7,
        };
        fake.traffic.borrow_mut().insert(tuple, stale);
        fake.unsegmented.set(Some(LARGEST));
        for _ in 0..4 {
            fake.out(&net.udp());
        }
        let before = length(&net.udp());
        let wanted = Traffic {
            packets: 5,
            bytes: before + 4 * u64::from(LARGEST),
        };
        fake.out(&net.udp());
        assert_eq!(
            fake.counted(Half::Original, &tuple),
            Traffic {
                packets: wanted.packets + 1,
                bytes: wanted.bytes + u64::from(LARGEST)
            }
        );
    }
}

#[test]
fn what_finds_no_room_is_counted_as_such() {
    for net in BOTH {
        let mut fake = opened(&net.udp());
        fake.traffic_capacity = 0;
        fake.unsegmented.set(Some(LARGEST));
        for _ in 0..5 {
            fake.out(&net.udp());
        }
        let outcome = fake.counters().egress_masqueraded;
        let mut sum = fake.counted(Half::Original, &tuple_of(&net.udp()));
        assert!(sum.packets < 6);
        sum.add(&fake.counters().traffic_unattributed);
        assert_eq!(sum, outcome);
        // Once there is room it goes on.
        fake.traffic_capacity = 1;
        for _ in 0..5 {
            fake.out(&net.udp());
        }
        assert_eq!(fake.traffic.borrow().len(), 1);
    }
}

/// A node on which `bypass` is bypassed by rule 0, with the cache in use.
fn bypassing(net: &Net) -> Fake {
    let mut fake = Fake::new();
    let len = if net.pod_ip.contains(':') { 128 } else { 32 };
    let server = net.server_ip.trim_matches(['[', ']']);
    fake.rule(&format!("{server}/{len}"), Action::Bypass);
    fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
    fake
}

/// Returns the hits of a rule: those in its entry, and those in pairs that were not replaced yet.
fn hits(fake: &Fake, rule: u32) -> Traffic {
    let mut sum = fake
        .rule_hits
        .borrow()
        .get(&rule)
        .map_or(Traffic::default(), |hits| hits.bypassed);
    for pair in fake.pairs() {
        if pair.rule == rule + 1 {
            sum.add(&pair.hits);
        }
    }
    sum
}

#[test]
fn hits_of_a_rule_are_exact_over_replaced_pairs_and_epochs() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        let pods: Vec<_> = (0..3_000_u32)
            .map(|n| match net.pod.starts_with('[') {
                true => format!("[fd00:1::{n:x}]:4000"),
                false => format!("172.16.{}.{}:4000", n / 250, n % 250 + 1),
            })
            .collect();
        let mut wanted = Traffic::default();
        for round in 0..3 {
            for (n, pod) in pods.iter().enumerate() {
                let packet = Build::tcp(pod, net.server, ACK);
                for _ in 0..n % 3 {
                    assert_eq!(fake.out(&packet), Seen::Pass);
                    wanted.add(&Traffic::packet(u32::try_from(length(&packet)).unwrap()));
                }
                // What comes in is no hit.
                fake.back(&packet.answer());
            }
            assert_eq!(hits(&fake, 0), wanted, "{round}");
            assert_eq!(fake.counters().egress_bypassed, wanted);
            fake.settings.epoch += 1;
        }
        assert!(fake.pairs().len() > 500);
    }
}

#[test]
fn mappings_are_counted_for_the_rule_under_which_they_begin() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        let other = net.syn().to(net.other_server);
        for flags in [SYN, ACK, FIN | ACK] {
            fake.out(&Build::tcp(net.pod, net.other_server, flags));
        }
        assert_eq!(fake.rule_hits.borrow()[&131_071].flows, 1, "no rule");
        let server = net.other_server.rsplit_once(':').expect("a port").0;
        let server = server.trim_matches(['[', ']']);
        let len = if server.contains(':') { 128 } else { 32 };
        fake.rule(&format!("{server}/{len}"), Action::Masquerade);
        fake.out(&other.from(net.other_pod));
        assert_eq!(fake.rule_hits.borrow()[&1].flows, 1);
        assert_eq!(fake.rule_hits.borrow()[&1].bypassed, Traffic::default());
    }
}
