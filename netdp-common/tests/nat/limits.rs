//! Full tables and used ports: the new flow is dropped, all others continue.

use super::{BOTH, V4, assert_paired, becomes, drop_of, opened};
use netdp_common::env::{Clock as _, Mappings as _};
use netdp_common::layout::{DropReason, PortRange, SETTING_PORTS};
use netdp_common::slot::{Key, Role};
use std::collections::BTreeSet;
use testkit::build::{ACK, Build, SYN};
use testkit::fake::{Fake, Seen, tuple_of};

#[test]
fn a_full_table_drops_the_new_flow_only() {
    for net in BOTH {
        for (snat, rev_snat) in [(1, 1), (1, 9), (9, 1)] {
            for packet in net.openings() {
                let fake = opened(&packet);
                // Answered flows are not evicted.
                let reply = packet.from(net.node).answer();
                assert_eq!(fake.back(&reply), becomes(net.pod));
                let reply = Build::tcp(net.server, net.node, SYN | ACK);
                fake.back(&reply);
                fake.snat.set_capacity(snat);
                fake.rev_snat.set_capacity(rev_snat);
                for fresh in [packet.from(net.other_pod), packet.to(net.other_server)] {
                    let dropped = drop_of(DropReason::TableFull);
                    assert_eq!(fake.out(&fresh), dropped, "{snat} and {rev_snat}");
                }
                assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
                assert_paired(&fake);
                assert_eq!(fake.out(&packet), becomes(net.node));
                let reply = packet.from(net.node).answer();
                assert_eq!(fake.back(&reply), becomes(net.pod));
                assert_eq!(fake.counters().mappings_created, 1);
            }
        }
    }
}

#[test]
fn a_full_table_is_noticed_while_searching_for_a_port() {
    let fake = opened(&V4.syn());
    fake.rev_snat.set_capacity(1);
    let colliding = V4.other_syn();
    assert_eq!(fake.out(&colliding), drop_of(DropReason::TableFull));
    let tried = fake.candidates.borrow().len();
    assert_eq!(tried, 3, "one port each and one more, then no further");
}

/// Whatever the random numbers: a class of 424 ports, and as many pods with a port of it.
#[test]
fn every_packet_finds_a_port_while_there_is_one() {
    for seed in 0..40 {
        let fake = Fake::new();
        for _ in 0..seed {
            fake.random();
        }
        for n in 0..424u16 {
            let pod = format!("172.16.{}.{}:700", n / 250, n % 250 + 1);
            let seen = fake.out(&V4.udp().from(&pod));
            assert!(matches!(seen, Seen::As(_)), "{n} of seed {seed}: {seen:?}");
        }
    }
}

#[test]
fn exhaustion_drops_the_new_flow_only() {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_PORTS;
    fake.settings.ports[0] = PortRange::new(40_000, 40_999);
    let pod = |n: u16| format!("172.16.{}.{}:7", n / 250, n % 250 + 1);
    let mut wires = BTreeSet::new();
    for n in 0..1_000 {
        let Seen::As(wire) = fake.out(&Build::tcp(&pod(n), V4.server, SYN)) else {
            panic!("flow {n} has no port");
        };
        assert!(wires.insert(wire.port()), "{wire} twice");
    }
    assert_eq!(wires, (40_000..41_000).collect());
    fake.candidates.borrow_mut().clear();
    let before: BTreeSet<_> = fake
        .snat
        .all()
        .into_iter()
        .map(|(t, m)| (t.src, m.id))
        .collect();
    let late = Build::tcp(&pod(1_000), V4.server, SYN);
    assert_eq!(fake.out(&late), drop_of(DropReason::NoFreePort));
    {
        let tried = fake.candidates.borrow();
        assert!(tried.len() <= 1 + 64 + 112, "{} tries", tried.len());
    }
    let after: BTreeSet<_> = fake
        .snat
        .all()
        .into_iter()
        .map(|(t, m)| (t.src, m.id))
        .collect();
    assert_eq!(before, after);
    assert_paired(&fake);
    // Another destination has its own set of ports.
    let elsewhere = Build::tcp(&pod(1_000), V4.other_server, SYN);
    assert!(matches!(fake.out(&elsewhere), Seen::As(_)));
}

#[test]
fn every_port_of_the_class_can_be_had() {
    let fake = Fake::new();
    let mut wires = BTreeSet::new();
    for n in 0..424u16 {
        let pod = format!("172.16.{}.{}:700", n / 250, n % 250 + 1);
        let Seen::As(wire) = fake.out(&Build::udp(&pod, V4.server)) else {
            panic!("flow {n} has no port");
        };
        wires.insert(wire.port());
    }
    assert_eq!(wires, (600..1024).collect());
    let late = Build::udp("172.16.9.9:700", V4.server);
    assert_eq!(fake.out(&late), drop_of(DropReason::NoFreePort));
}

#[test]
fn without_any_range_nothing_is_mapped() {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_PORTS;
    assert_eq!(fake.out(&V4.syn()), drop_of(DropReason::NoFreePort));
    assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
}

/// While a pod with few mappings was refused a port, one with very many gets none there, even if one is
/// free; and once 30 s have passed, it does.
#[test]
fn a_pod_with_very_many_mappings_waits_for_one_that_was_refused() {
    let fake = Fake::new();
    // A class of 424 ports.
    let from = |n: u16, port: u16| {
        let pod = format!("172.16.{}.{}:{port}", n / 250, n % 250 + 1);
        V4.udp().from(&pod)
    };
    for n in 0..424 {
        assert!(matches!(fake.out(&from(n, 700)), Seen::As(_)), "{n}");
    }
    let small = from(424, 700);
    for _ in 0..100 {
        assert_eq!(fake.out(&small), drop_of(DropReason::NoFreePort));
    }
    assert!(!fake.exhausted.borrow().is_empty());
    let greedy = from(0, 701);
    let key = Key::of(fake.limits.secret, &tuple_of(&greedy).src, Role::Pod);
    let share = fake.lookup_share(key.bucket()).expect("a share");
    share.add_mappings(9000);
    let end = |n: u16| {
        let original = tuple_of(&from(n, 700));
        let half = fake.snat.get(&original).expect("a mapping");
        fake.snat.remove(&original);
        fake.rev_snat.remove(&original.reply_to(half.addr, half.id));
    };
    end(7);
    // Later than ports are not searched at all, and before anything may be evicted.
    fake.advance(3);
    let gets_one = |packet: &Build| (0..50).any(|_| matches!(fake.out(packet), Seen::As(_)));
    assert!(!gets_one(&greedy), "it waits");
    assert!(gets_one(&small), "it is its turn");
    end(8);
    fake.advance(31);
    assert!(gets_one(&greedy), "nobody waits");
}
