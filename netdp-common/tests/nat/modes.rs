//! Port modes without preservation, and the cost of an exhausted destination.

use super::{BOTH, V4, assert_paired, becomes, drop_of, opened, wire_of};
use netdp_common::layout::{
    DropReason, PortRange, SETTING_HASH_PORTS, SETTING_PORTS, SETTING_RANDOM_PORTS,
    SETTING_UDP_ENDPOINTS,
};
use std::collections::BTreeSet;
use testkit::build::{Build, SYN};
use testkit::fake::Fake;

fn with(flags: u32) -> Fake {
    let mut fake = Fake::new();
    fake.settings.flags |= flags;
    fake
}

#[test]
fn hashed_ports_follow_from_the_tuple() {
    for net in BOTH {
        let mut given = BTreeSet::new();
        for n in 1..=100 {
            let server = net.server.replace("443", &n.to_string());
            let packet = net.udp().to(&server);
            let wire = wire_of(with(SETTING_HASH_PORTS).out(&packet));
            // Another node, or this one later, selects the same port.
            let other = with(SETTING_HASH_PORTS);
            for n in 0..n {
                other.out(
                    &net.syn()
                        .to(&net.other_server.replace("443", &n.to_string())),
                );
            }
            assert_eq!(wire_of(other.out(&packet)), wire);
            given.insert(wire);
        }
        assert!(given.len() > 95, "{} of 100 ports", given.len());
        assert!(!given.contains(net.node), "kept by none");
    }
}

#[test]
fn a_hashed_port_that_is_taken_gives_way() {
    let mut fake = with(SETTING_HASH_PORTS | SETTING_PORTS);
    fake.settings.ports[0] = PortRange::new(5000, 5001);
    let wires = [V4.pod, V4.other_pod].map(|pod| wire_of(fake.out(&V4.udp().from(pod))));
    assert_ne!(wires[0], wires[1]);
    let wanted = ["192.0.2.10:5000", "192.0.2.10:5001"];
    assert_eq!(BTreeSet::from(wires), wanted.map(str::to_owned).into());
    assert_paired(&fake);
}

/// The few candidates that a tuple tries for a freed port are not always the same.
#[test]
fn where_no_port_is_left_hashed_ones_are_looked_for_elsewhere() {
    for net in BOTH {
        let mut fake = with(SETTING_HASH_PORTS | SETTING_PORTS);
        fake.settings.ports[0] = PortRange::new(40_000, 40_299);
        fake.reserved = (40_000..40_300).collect();
        let tried = |fake: &Fake| {
            fake.candidates.borrow_mut().clear();
            assert_eq!(fake.out(&net.syn()), drop_of(DropReason::NoFreePort));
            fake.candidates.borrow().clone()
        };
        let first = tried(&fake);
        let again: BTreeSet<u16> = (0..10).flat_map(|_| tried(&fake)).collect();
        assert!(again.len() > 40, "{} ports of 10 packets", again.len());
        // With a port map.
        fake.advance(1);
        assert_ne!(tried(&fake)[..8], first[..8]);
    }
}

/// There are 64,512 ports: one flow in a thousand may get its own by chance.
#[test]
fn random_ports_are_not_kept() {
    let fake = with(SETTING_RANDOM_PORTS);
    let mut kept = 0;
    for n in 0..1_000 {
        let pod = format!("172.16.0.2:{}", 2_000 + n);
        let packet = Build::tcp(&pod, V4.server, SYN);
        kept += u32::from(wire_of(fake.out(&packet)).ends_with(&format!(":{}", 2_000 + n)));
    }
    assert!(kept <= 2, "{kept} ports kept");
}

#[test]
fn an_endpoint_has_one_port_everywhere() {
    for net in BOTH {
        for endpoints in [true, false] {
            let fake = with(if endpoints { SETTING_UDP_ENDPOINTS } else { 0 });
            fake.out(&net.udp().from(net.other_pod));
            let wire = wire_of(fake.out(&net.udp()));
            assert_ne!(wire, net.node, "taken there");
            let elsewhere = wire_of(fake.out(&net.udp().to(net.other_server)));
            let wanted = if endpoints { wire.as_str() } else { net.node };
            assert_eq!(elsewhere, wanted, "though it is free here");
            // TCP is not affected.
            fake.out(&net.other_syn());
            let tcp = wire_of(fake.out(&net.syn()));
            assert_ne!(tcp, net.node);
            let elsewhere = net.syn().to(net.other_server);
            assert_eq!(fake.out(&elsewhere), becomes(net.node));
            assert_paired(&fake);
        }
    }
}

#[test]
fn an_endpoint_has_one_port_though_ports_are_random() {
    let mut fake = with(SETTING_UDP_ENDPOINTS | SETTING_RANDOM_PORTS | SETTING_PORTS);
    // It may get its own port by chance.
    fake.settings.ports[0] = PortRange::new(4000, 4000);
    assert_eq!(fake.out(&V4.udp()), becomes(V4.node));
    fake.settings.ports[0] = PortRange::new(4000, 4999);
    for n in 1..50 {
        let elsewhere = V4.udp().to(&format!("198.51.100.99:{n}"));
        assert_eq!(fake.out(&elsewhere), becomes(V4.node), "server port {n}");
    }
    let other = V4.udp().from(V4.other_pod).to("198.51.100.9:1");
    let wire = wire_of(fake.out(&other));
    for n in 2..50 {
        let elsewhere = other.to(&format!("198.51.100.9:{n}"));
        assert_eq!(wire_of(fake.out(&elsewhere)), wire, "server port {n}");
    }
}

#[test]
fn a_full_destination_is_not_searched_for_every_packet() {
    let mut fake = opened(&V4.udp());
    fake.settings.flags |= SETTING_PORTS;
    fake.settings.ports[0] = PortRange::new(4000, 4099);
    fake.reserved = (4001..4100).collect();
    let late = V4.udp().from(V4.other_pod);
    let tried = |packet: &Build| {
        fake.candidates.borrow_mut().clear();
        let seen = fake.out(packet);
        assert_eq!(seen, drop_of(DropReason::NoFreePort), "{packet:?}");
        fake.candidates.borrow().len()
    };
    assert_eq!(tried(&late), 101, "its own, then all");
    assert_eq!(tried(&late), 9, "its own, and some for one that gives way");
    assert_eq!(
        tried(&V4.udp().from("172.16.0.4:80")),
        8,
        "its own is not in the ranges"
    );
    fake.advance(1);
    assert_eq!(tried(&late), 101, "again after a while");
    // A flow whose preferred port is free gets it at once.
    let lucky = V4.udp().from("172.16.0.4:4000").to(V4.other_server);
    assert_eq!(fake.out(&lucky), becomes(V4.node));
}

#[test]
fn classes_run_out_one_by_one() {
    let mut fake = opened(&V4.udp());
    fake.reserved = (600..1024).collect();
    let low = V4.udp().from("172.16.0.3:700");
    assert_eq!(fake.out(&low), drop_of(DropReason::NoFreePort));
    let high = V4.udp().from(V4.other_pod);
    assert_ne!(wire_of(fake.out(&high)), V4.node);
}
