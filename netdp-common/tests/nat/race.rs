//! Races: another CPU acts between two steps of a decision.

use super::{BOTH, V4, assert_paired, becomes, drop_of, halves, wire_of};
use netdp_common::layout::{DropReason, Half, Mapping, PortRange, SETTING_PORTS};
use testkit::build::Build;
use testkit::fake::{Fake, Seen, addr, tuple_of};

/// Installs `hook` where the other CPU acts: between the search and the claim.
fn during_claim(fake: &Fake, hook: impl FnOnce(&Fake) + 'static) {
    *fake.before_claim.borrow_mut() = Some(Box::new(hook));
}

fn before_original(fake: &Fake, hook: impl FnOnce(&Fake) + 'static) {
    *fake.before_original.borrow_mut() = Some(Box::new(hook));
}

/// Installs `hook` between the eviction decision about a mapping and its end.
fn before_sockets(fake: &Fake, hook: impl FnOnce(&Fake) + 'static) {
    *fake.before_sockets.borrow_mut() = Some(Box::new(hook));
}

/// Installs `hook` while a mapping ends.
fn before_end(fake: &Fake, hook: impl FnOnce(&Fake) + 'static) {
    *fake.before_end.borrow_mut() = Some(Box::new(hook));
}

/// Installs `hook` between the check of a mapping that has moved and its end.
fn before_route(fake: &Fake, hook: impl FnOnce(&Fake) + 'static) {
    *fake.before_route.borrow_mut() = Some(Box::new(hook));
}

/// Inserts the rev-SNAT half of `packet` at `wire`, as another CPU would.
fn claim(fake: &Fake, packet: &Build, wire: &str) {
    let tuple = tuple_of(packet);
    let key = tuple_of(&packet.from(wire)).reversed();
    fake.rev_snat
        .insert(&key, &half(tuple.src, tuple.src_id))
        .unwrap();
}

fn half(addr: netdp_common::layout::Addr, id: u16) -> Mapping {
    Mapping {
        addr,
        id,
        flags: 0,
        last_seen: 0,
        created: 0,
        tcp_ack: 0,
        tcp_seen: 0,
        epoch: 0,
        uplink: 0,
        traffic: 0,
    }
}

#[test]
fn two_first_packets_of_one_flow_get_one_mapping() {
    for net in BOTH {
        for packet in net.openings() {
            for late in [false, true] {
                let fake = Fake::new();
                let twin = packet.clone();
                let node = net.node;
                let whole = move |fake: &Fake| {
                    assert_eq!(fake.out(&twin), becomes(node));
                };
                if late {
                    before_original(&fake, whole);
                } else {
                    during_claim(&fake, whole);
                }
                assert_eq!(fake.out(&packet), becomes(net.node));
                assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
                assert_eq!(halves(&fake, &packet).0.packets(Half::Original), 2);
                assert_paired(&fake);
            }
        }
    }
}

/// The other CPU has claimed the wire tuple but not inserted the SNAT half yet.
#[test]
fn a_claim_of_the_same_flow_is_joined() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = Fake::new();
            claim(&fake, &packet, net.node);
            assert_eq!(fake.out(&packet), becomes(net.node));
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
            assert_paired(&fake);
        }
    }
}

#[test]
fn a_faster_claim_of_another_flow_leads_to_two_mappings() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = Fake::new();
            let rival = packet.from(net.other_pod);
            let (twin, node) = (rival.clone(), net.node);
            during_claim(&fake, move |fake| {
                assert_eq!(fake.out(&twin), becomes(node));
            });
            let seen = fake.out(&packet);
            assert_ne!(seen, becomes(net.node));
            let reply = packet.from(&wire_of(seen)).answer();
            assert_eq!(fake.back(&reply), becomes(net.pod));
            let reply = rival.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.other_pod));
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (2, 2));
            assert_paired(&fake);
        }
    }
}

/// Both CPUs searched and found different ports.
#[test]
fn the_slower_search_gives_its_port_back() {
    for net in BOTH {
        let packet = net.syn();
        let fake = Fake::new();
        let elsewhere = net.node.replace(":4000", ":5555");
        let (twin, wire) = (packet.clone(), elsewhere.clone());
        before_original(&fake, move |fake| {
            claim(fake, &twin, &wire);
            let to = tuple_of(&twin.from(&wire));
            let original = half(to.src, to.src_id);
            fake.snat.insert(&tuple_of(&twin), &original).unwrap();
        });
        assert_eq!(fake.out(&packet), becomes(&elsewhere));
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
        assert_paired(&fake);
    }
}

/// As above, but the other CPU sends by an uplink with another address.
#[test]
fn the_slower_uplink_gives_its_address_back() {
    let packet = V4.syn();
    let fake = Fake::new();
    let twin = packet.clone();
    before_original(&fake, move |fake| {
        claim(fake, &twin, "192.0.2.77:4000");
        let original = half(addr("192.0.2.77"), 4000);
        fake.snat.insert(&tuple_of(&twin), &original).unwrap();
    });
    assert_eq!(fake.out(&packet), becomes("192.0.2.77:4000"));
    assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
    assert_paired(&fake);
}

/// The SNAT half is lost while its rev-SNAT half exists (an interrupted sweep): the next packet
/// creates it again, with the same wire tuple.
#[test]
fn a_lost_original_half_is_made_again() {
    for net in BOTH {
        let fake = Fake::new();
        let packet = net.udp();
        let wire = fake.out(&packet);
        fake.snat.remove(&tuple_of(&packet));
        assert_eq!(fake.out(&packet), wire);
        assert_paired(&fake);
    }
}

/// The sweep removes the mapping just after it was created.
#[test]
fn a_mapping_that_vanishes_does_not_leak() {
    let mut fake = Fake::new();
    fake.snat.set_capacity(1);
    fake.sent_by_socket = true;
    let packet = V4.syn();
    let rival = V4.other_syn();
    before_original(&fake, move |fake| {
        let tuple = tuple_of(&rival);
        let original = half(addr("192.0.2.10"), 4001);
        fake.snat.insert(&tuple, &original).unwrap();
        claim(fake, &rival, "192.0.2.10:4001");
    });
    assert_eq!(fake.out(&packet), Seen::Drop(DropReason::TableFull));
    assert_paired(&fake);
}

/// Two pods find the same expired mapping, and only one of them gets its port.
#[test]
fn a_port_that_is_given_up_gets_one_owner() {
    for net in BOTH {
        for (packet, late) in [
            (net.syn(), false),
            (net.udp(), false),
            (net.syn(), true),
            (net.udp(), true),
        ] {
            let mut fake = Fake::new();
            fake.settings.flags |= SETTING_PORTS;
            fake.settings.ports[0] = PortRange::new(4000, 4000);
            assert_eq!(fake.out(&packet), becomes(net.node));
            fake.advance(6);
            let faster = packet.from(net.other_pod);
            let slower = packet.from(&net.other_pod.replace(":4000", ":5000"));
            let (twin, node) = (faster.clone(), net.node);
            let whole = move |fake: &Fake| {
                assert_eq!(fake.out(&twin), becomes(node));
            };
            if late {
                before_end(&fake, whole);
            } else {
                before_sockets(&fake, whole);
            }
            assert_eq!(fake.out(&slower), drop_of(DropReason::NoFreePort));
            let reply = faster.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.other_pod));
            assert_paired(&fake);
        }
    }
}

/// Two packets of a flow that has moved: the later one must not end a mapping that has another
/// owner by then.
#[test]
fn a_flow_that_has_moved_ends_nobody_elses() {
    for net in BOTH {
        for packet in [net.udp(), net.echo(4000)] {
            let mut fake = Fake::new();
            assert_eq!(fake.out(&packet), becomes(net.node));
            fake.ifindex = 7;
            (fake.uplink.v4, fake.uplink.v6) = (addr("203.0.113.10"), addr("fd01::10"));
            fake.local.extend([fake.uplink.v4, fake.uplink.v6]);
            let rival = packet.from(net.other_pod);
            let (twin, claims, node) = (packet.clone(), rival.clone(), net.node);
            before_route(&fake, move |fake| {
                assert_ne!(fake.out(&twin), becomes(node));
                claim(fake, &claims, node);
                let wire = tuple_of(&claims.from(node));
                let original = half(wire.src, wire.src_id);
                fake.snat.insert(&tuple_of(&claims), &original).unwrap();
            });
            assert_ne!(fake.out(&packet), becomes(net.node));
            let reply = rival.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.other_pod));
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (2, 2));
            assert_paired(&fake);
        }
    }
}
