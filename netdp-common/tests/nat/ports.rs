//! Selection of external ports.

use super::{BOTH, V4, assert_paired, becomes, halves, opened, wire_of};
use netdp_common::layout::{PortRange, SETTING_PORTS, SETTING_RANDOM_PORTS, Tuple};
use std::collections::BTreeSet;
use testkit::build::{Build, Kind, SYN};
use testkit::fake::{Fake, Seen, tuple_of};

fn port(seen: Seen) -> u16 {
    match seen {
        Seen::As(wire) => wire.port(),
        other => panic!("not translated: {other:?}"),
    }
}

fn at_port(net_pod: &str, port: u16) -> String {
    let (ip, _) = net_pod.rsplit_once(':').expect("ADDRESS:PORT");
    format!("{ip}:{port}")
}

#[test]
fn a_free_port_is_kept() {
    for net in BOTH {
        for kept in [1, 511, 512, 550, 599, 600, 1023, 1024, 32_768, u16::MAX] {
            let packet = Build::tcp(&at_port(net.pod, kept), net.server, SYN);
            let wanted = becomes(&at_port(net.node, kept));
            assert_eq!(Fake::new().out(&packet), wanted);
        }
    }
}

#[test]
fn port_zero_is_not_kept() {
    let packet = Build::udp("172.16.0.2:0", V4.server);
    let wire = port(Fake::new().out(&packet));
    assert!((1..512).contains(&wire), "{wire}");
}

#[test]
fn colliding_ports_get_another_of_their_class() {
    for net in BOTH {
        for (wanted, class) in [(400, 1..=511), (700, 600..=1023), (4000, 1024..=u16::MAX)] {
            let first = Build::tcp(&at_port(net.pod, wanted), net.server, SYN);
            let fake = opened(&first);
            let second = first.from(&at_port(net.other_pod, wanted));
            let seen = fake.out(&second);
            assert_ne!(port(seen), wanted);
            assert!(class.contains(&port(seen)), "{wanted} became {seen:?}");
            let reply = second.from(&wire_of(seen)).answer();
            assert_eq!(fake.back(&reply), becomes(&at_port(net.other_pod, wanted)));
            let reply = first.from(&at_port(net.node, wanted)).answer();
            assert_eq!(fake.back(&reply), becomes(&at_port(net.pod, wanted)));
            assert_eq!(fake.counters().ports_changed, 1);
            let new = *fake.new_mappings.borrow();
            assert_eq!(new.searches().iter().sum::<u64>(), 1, "the second only");
            assert!(new.candidates >= 2, "its own port, and another");
            assert_paired(&fake);
        }
    }
}

/// Each mapping once, TCP only in the number of all.
#[test]
fn new_mappings_are_counted_by_protocol() {
    for net in BOTH {
        let fake = Fake::new();
        let gre = Build::new(net.pod, net.server, Kind::Other(47));
        let lite = Build::new(net.pod, net.server, Kind::UdpLite);
        for packet in net.openings().iter().chain([&gre, &lite]) {
            for _ in 0..2 {
                assert!(matches!(fake.out(packet), Seen::As(_)), "{packet:?}");
            }
        }
        assert_eq!(fake.counters().mappings_created, 5);
        let new = *fake.new_mappings.borrow();
        assert_eq!((new.udp(), new.icmp(), new.other()), (1, 1, 2));
    }
}

#[test]
fn a_port_is_shared_between_destinations() {
    for net in BOTH {
        let fake = opened(&net.syn());
        for packet in [
            net.syn().to(net.other_server),
            net.other_syn()
                .to(net.other_server.replace("443", "80").as_str()),
            // Ports of TCP and UDP are independent.
            net.udp().from(net.other_pod),
        ] {
            assert_eq!(fake.out(&packet), becomes(net.node), "{packet:?}");
        }
        assert_eq!(fake.counters().ports_changed, 0);
        assert_paired(&fake);
    }
}

#[test]
fn a_reserved_port_is_never_given() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_PORTS;
        fake.settings.ports[0] = PortRange::new(4000, 4003);
        fake.reserved = [4000, 4001, 4003].into();
        assert_eq!(port(fake.out(&net.syn())), 4002);
        assert!(matches!(fake.out(&net.other_syn()), Seen::Drop(_)));
        // Ping identifiers are independent of ports.
        let echo = net.echo(4000);
        assert_eq!(fake.out(&echo), becomes(net.node));
    }
}

#[test]
fn a_port_of_the_nodes_own_socket_is_avoided() {
    for net in BOTH {
        for packet in [net.syn(), net.udp()] {
            let mut fake = Fake::new();
            let host = tuple_of(&packet.from(net.node));
            fake.sockets.insert(host.reversed());
            let seen = fake.out(&packet);
            assert_ne!(seen, becomes(net.node));
            assert_eq!(fake.counters().ports_changed, 1);
            // Only towards that peer.
            let elsewhere = packet.to(net.other_server);
            assert_eq!(fake.out(&elsewhere), becomes(net.node));
        }
    }
}

#[test]
fn colliding_pings_get_another_identifier() {
    for net in BOTH {
        for id in [0, 77, u16::MAX] {
            let first = net.echo(id);
            let fake = opened(&first);
            assert_eq!(halves(&fake, &first).0.id, id, "kept while it is free");
            let second = first.from(&at_port(net.other_pod, id));
            let seen = fake.out(&second);
            assert_ne!(port(seen), id);
            let reply = second.from(&wire_of(seen)).answer();
            assert_eq!(fake.back(&reply), becomes(&at_port(net.other_pod, id)));
            let reply = first.from(&at_port(net.node, id)).answer();
            assert_eq!(fake.back(&reply), becomes(&at_port(net.pod, id)));
            assert_paired(&fake);
        }
    }
}

#[test]
fn given_ranges_are_kept_to() {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_PORTS;
    fake.settings.ports[0] = PortRange::new(5000, 5001);
    fake.settings.ports[1] = PortRange::new(u16::MAX, u16::MAX);
    let mut given = BTreeSet::new();
    for pod in ["172.16.0.2:4000", "172.16.0.3:80", "172.16.0.4:5001"] {
        given.insert(port(fake.out(&Build::tcp(pod, V4.server, SYN))));
    }
    assert_eq!(given, [5000, 5001, u16::MAX].into());
    // A free port inside the ranges is preserved.
    let kept = Build::tcp("172.16.0.5:5001", V4.other_server, SYN);
    assert_eq!(port(fake.out(&kept)), 5001);
}

#[test]
fn random_ports_are_random() {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_RANDOM_PORTS;
    let mut given = BTreeSet::new();
    for n in 1..=100u8 {
        let packet = Build::tcp(&format!("172.16.0.{n}:4000"), V4.server, SYN);
        given.insert(port(fake.out(&packet)));
    }
    assert_eq!(given.len(), 100);
    let spread = given.last().unwrap() - given.first().unwrap();
    assert!(spread > 30_000, "{given:?}");
    // Ping identifiers are preserved all the same.
    let echo = V4.echo(77);
    assert_eq!(port(fake.out(&echo)), 77);
}

#[test]
fn a_search_tries_every_port_of_its_ranges() {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_PORTS;
    fake.settings.ports[0] = PortRange::new(6000, 6099);
    fake.settings.ports[2] = PortRange::new(7000, 7009);
    fake.reserved = (0..=u16::MAX).collect();
    assert!(matches!(fake.out(&V4.syn()), Seen::Drop(_)));
    let tried = fake.candidates.borrow();
    let distinct: BTreeSet<u16> = tried.iter().copied().collect();
    assert_eq!(tried.len(), distinct.len(), "each exactly once");
    assert_eq!(distinct, (6000..6100).chain(7000..7010).collect());
}

#[test]
fn the_wire_tuple_names_the_flow() {
    let fake = opened(&V4.syn());
    let wire = Tuple::new(
        testkit::fake::addr("198.51.100.7"),
        testkit::fake::addr("192.0.2.10"),
        443,
        4000,
        netdp_common::layout::proto::TCP,
    );
    let half = fake.rev_snat.get(&wire).expect("the reply half");
    assert_eq!(
        (half.addr, half.id),
        (testkit::fake::addr("172.16.0.2"), 4000)
    );
}
