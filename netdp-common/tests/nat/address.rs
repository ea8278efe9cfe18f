//! Protocols without ports: only the address is translated.

use super::{BOTH, V4, V6, assert_paired, becomes, drop_of, opened, wire_of};
use netdp_common::env::EgressRoute;
use netdp_common::layout::{DropReason, SOURCE_NAMED, SourceKey, UPLINK_ONLY_V4, UPLINK_ONLY_V6};
use std::cell::RefCell;
use testkit::build::{Build, Kind};
use testkit::fake::{Fake, Seen, addr};

/// GRE, ESP, IPIP, and an unassigned protocol.
const PORTLESS: [u8; 4] = [47, 50, 4, 253];
const SCTP: Kind = Kind::Other(132);

#[test]
fn one_pod_at_a_time_has_a_peer() {
    for net in BOTH {
        for number in PORTLESS {
            let packet = Build::new(net.pod, net.server, Kind::Other(number));
            let fake = Fake::new();
            let node = becomes(&format!("{}:0", net.node_ip));
            let pod = becomes(&format!("{}:0", net.pod_ip));
            assert_eq!(fake.out(&packet), node);
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply), pod);
            // Only the address would distinguish the replies for the two pods.
            let second = packet.from(net.other_pod);
            assert_eq!(fake.out(&second), drop_of(DropReason::NoFreePort));
            assert_eq!(fake.out(&packet), node);
            assert_eq!(fake.back(&reply), pod);
            // Towards another peer, and with another protocol.
            assert_eq!(fake.out(&second.to(net.other_server)), node);
            let other = Build::new(net.other_pod, net.server, Kind::Other(200));
            assert_eq!(fake.out(&other), node);
            assert_eq!(fake.counters().ports_changed, 0);
            assert_paired(&fake);
        }
    }
}

/// SCTP's CRC covers the ports (RFC 9260 6.8).
#[test]
fn sctp_keeps_its_ports() {
    for net in BOTH {
        let packet = Build::new(net.pod, net.server, SCTP);
        let fake = opened(&packet);
        assert_eq!(fake.out(&packet), becomes(net.node));
        let reply = packet.from(net.node).answer();
        assert_eq!(fake.back(&reply), becomes(net.pod));
        let same = packet.from(net.other_pod);
        assert_eq!(fake.out(&same), drop_of(DropReason::NoFreePort));
        let other = packet.from(&net.other_pod.replace(":4000", ":4001"));
        let wanted = net.node.replace(":4000", ":4001");
        assert_eq!(fake.out(&other), becomes(&wanted));
        assert_paired(&fake);
    }
}

#[test]
fn udp_lite_has_ports_like_udp() {
    for net in BOTH {
        let packet = Build::new(net.pod, net.server, Kind::UdpLite);
        let fake = opened(&packet);
        assert_eq!(fake.out(&packet), becomes(net.node));
        let rival = packet.from(net.other_pod);
        let wire = wire_of(fake.out(&rival));
        assert_ne!(wire, net.node);
        let reply = rival.from(&wire).answer();
        assert_eq!(fake.back(&reply), becomes(net.other_pod));
        assert_eq!(fake.out(&net.udp()), becomes(net.node), "UDP is apart");
    }
}

const LINK: u32 = 2;

fn route(source: Option<&str>, next: &str) -> Option<EgressRoute> {
    Some(EgressRoute {
        link: LINK,
        has_source: source.is_some().into(),
        source: addr(source.unwrap_or("::")),
        next: addr(next),
    })
}

#[test]
fn the_routes_own_source_comes_first() {
    let mut fake = Fake::new();
    let preferred = addr("192.0.2.99");
    fake.route = route(Some("192.0.2.99"), "192.0.2.1");
    let named = |fake: &mut Fake, from: &str, to: &str| {
        let key = SourceKey {
            link: LINK | SOURCE_NAMED,
            addr: addr(from),
        };
        fake.sources.push((key, 128, addr(to)));
    };
    assert_eq!(
        fake.out(&V4.udp()),
        becomes(V4.node),
        "nobody gave it to a route"
    );
    named(&mut fake, "192.0.2.99", "192.0.2.99");
    let other = V4.udp().to(V4.other_server);
    assert_eq!(
        fake.out(&other),
        becomes(V4.node),
        "not an address of the node"
    );
    fake.local.insert(preferred);
    let wanted = becomes("192.0.2.99:4000");
    assert_eq!(fake.out(&V4.syn()), wanted);
    assert_eq!(fake.out(&V4.syn().to(V4.other_server)), wanted);
    assert_eq!(
        fake.out(&V4.udp()),
        becomes(V4.node),
        "a live mapping stays"
    );
    let reply = V4.syn().from("192.0.2.99:4000").answer();
    assert_eq!(fake.back(&reply), becomes(V4.pod));
    // If the uplink has no address, it is the only candidate.
    fake.uplink.flags = 0;
    assert_eq!(fake.out(&V4.other_syn().to("198.51.100.9:80")), wanted);
    // The agent has determined a better one.
    fake.local.insert(addr("192.0.2.98"));
    fake.route = route(Some("192.0.2.97"), "192.0.2.1");
    named(&mut fake, "192.0.2.97", "192.0.2.98");
    let seen = fake.out(&V4.syn().to("198.51.100.10:80"));
    assert_eq!(seen, becomes("192.0.2.98:4000"));
    fake.route = None;
    let late = V4.echo(1);
    assert!(matches!(fake.out(&late), Seen::Drop(_)));
}

/// An address that the kernel would borrow from another interface is not used.
#[test]
fn a_source_of_another_interface_is_not_used() {
    for (net, borrowed, next) in [
        (V4, "172.16.0.1", "192.0.2.1"),
        (V6, "fd00:172::1", "fe80::1"),
    ] {
        let mut fake = Fake::new();
        fake.route = route(Some(borrowed), next);
        fake.local.insert(addr(borrowed));
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        fake.uplink.flags = 0;
        assert_eq!(fake.out(&net.syn()), drop_of(DropReason::NoSourceAddress));
    }
}

#[test]
fn the_next_hops_subnet_decides_where_no_source_is_named() {
    let mut fake = Fake::new();
    for (net, len, source) in [
        ("10.8.0.0", 96 + 16, "10.8.0.4"),
        ("10.9.0.0", 96 + 16, "10.9.0.4"),
        ("fd00:8::", 64, "fd00:8::4"),
    ] {
        fake.local.insert(addr(source));
        let key = SourceKey {
            link: LINK,
            addr: addr(net),
        };
        fake.sources.push((key, len, addr(source)));
    }
    for (next, source) in [
        ("10.8.255.1", "10.8.0.4:4000"),
        ("10.9.0.9", "10.9.0.4:4000"),
        ("10.10.0.9", V4.node),
        // An IPv4 route through an IPv6 router.
        ("fe80::1", V4.node),
        ("fd00:8::1", V4.node),
    ] {
        fake.route = route(None, next);
        let number = next.bytes().map(u32::from).sum::<u32>();
        let to = format!("198.51.100.{}:80", number % 200);
        assert_eq!(fake.out(&V4.udp().to(&to)), becomes(source), "by {next}");
    }
    fake.route = route(None, "10.8.255.1");
    fake.route.as_mut().unwrap().link = 3;
    assert_eq!(fake.out(&V4.syn()), becomes(V4.node), "another interface's");
}

/// No route is looked up where every route leads to the same source.
#[test]
fn routes_are_not_looked_up_where_there_is_only_one_source() {
    for (net, only, other) in [
        (V4, UPLINK_ONLY_V4, UPLINK_ONLY_V6),
        (V6, UPLINK_ONLY_V6, UPLINK_ONLY_V4),
    ] {
        let fake_with = |flag: u32| {
            let mut fake = Fake::new();
            fake.uplink.flags |= flag;
            fake.before_route = RefCell::new(Some(Box::new(|_| {})));
            fake
        };
        let fake = fake_with(only);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        assert!(fake.before_route.borrow().is_some(), "not looked up");
        let fake = fake_with(other);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        assert!(fake.before_route.borrow().is_none(), "looked up");
        // An address that the uplink does not have is no source.
        let mut fake = fake_with(only);
        fake.uplink.flags = only;
        assert_eq!(fake.out(&net.udp()), drop_of(DropReason::NoSourceAddress));
    }
}

/// A VLAN device above the uplink has its own address, whichever router the route has.
#[test]
fn an_interface_above_the_uplink_has_a_source_for_every_router() {
    const ABOVE: u32 = 7;
    let mut fake = Fake::new();
    let mut give = |net: &str, bits: u32, to: &str| {
        let key = SourceKey {
            link: ABOVE,
            addr: addr(net),
        };
        fake.sources.push((key, bits, addr(to)));
        fake.local.insert(addr(to));
    };
    give("0.0.0.0", 96, "198.51.100.4");
    give("::", 0, "2001:db8:100::4");
    for (net, next, wanted) in [
        (V4, "192.0.2.1", "198.51.100.4:4000"),
        (V4, "fe80::1", "198.51.100.4:4000"),
        (V6, "fe80::1", "[2001:db8:100::4]:4000"),
    ] {
        fake.route = route(None, next);
        assert_eq!(fake.out(&net.udp().to(net.other_server)), becomes(net.node));
        fake.route = Some(EgressRoute {
            link: ABOVE,
            ..route(None, next).unwrap()
        });
        let flow = if next.starts_with('f') {
            net.syn()
        } else {
            net.udp()
        };
        assert_eq!(fake.out(&flow), becomes(wanted), "by {next}");
    }
}
