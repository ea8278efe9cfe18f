//! Protocols of which only the addresses are translated.

use super::{BOTH, V4, assert_paired, becomes, drop_of, opened, wire_of};
use crate::fake::build::{Build, Kind};
use crate::fake::{Fake, Seen, addr};
use crate::verdict::DropReason;

/// GRE, ESP, IPIP, and a protocol that nobody has.
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
            // Nothing but the address tells the two pods' replies apart.
            let second = packet.from(net.other_pod);
            assert_eq!(fake.out(&second), drop_of(DropReason::NoFreePort));
            assert_eq!(fake.out(&packet), node);
            assert_eq!(fake.back(&reply), pod);
            // Another peer, another protocol.
            assert_eq!(fake.out(&second.to(net.other_server)), node);
            let other = Build::new(net.other_pod, net.server, Kind::Other(200));
            assert_eq!(fake.out(&other), node);
            assert_eq!(fake.counters().ports_changed, 0);
            assert_paired(&fake);
        }
    }
}

/// Its CRC covers them (RFC 9260 6.8).
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

#[test]
fn the_kernels_choice_of_source_comes_first() {
    let mut fake = Fake::new();
    let preferred = addr("192.0.2.99");
    fake.route_source = Some(preferred);
    assert_eq!(
        fake.out(&V4.udp()),
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
    // Where the uplink has none, it is the only one.
    fake.uplink.flags = 0;
    assert_eq!(fake.out(&V4.other_syn().to("198.51.100.9:80")), wanted);
    fake.route_source = None;
    let late = V4.echo(1);
    assert!(matches!(fake.out(&late), Seen::Drop(_)));
}
