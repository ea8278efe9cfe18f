//! Fragments: only the first one has ports.

use super::{BOTH, Net, V4, V6, becomes, drop_of, opened, wire_of};
use netdp_common::layout::{Action, DropReason};
use netdp_common::packet::KEEP_IP_ID;
use std::collections::BTreeSet;
use testkit::build::{Build, RST};
use testkit::fake::{Fake, Seen};

/// Returns the verdict on a later fragment, which gets an address and no port.
fn bare(ip: &str) -> Seen {
    becomes(&format!("{ip}:0"))
}

/// Sends a fragment; returns the verdict and the assigned identification.
fn out(fake: &Fake, packet: &Build) -> (Seen, u32) {
    fake.written_ip_id.set(KEEP_IP_ID);
    (fake.out(packet), fake.written_ip_id.get())
}

/// Reports whether an identification is fresh: IPv4 datagrams get one from the node, IPv6 datagrams
/// keep their own.
fn is_fresh(net: &Net, id: u32) -> bool {
    if net.pod.starts_with('[') {
        id == KEEP_IP_ID
    } else {
        id <= 0xffff
    }
}

#[test]
fn a_datagram_leaves_as_one() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = Fake::new();
            let (seen, id) = out(&fake, &packet.first());
            assert_eq!(seen, becomes(net.node));
            assert!(is_fresh(&net, id), "{id:#x}");
            for _ in 0..3 {
                assert_eq!(out(&fake, &packet.last()), (bare(net.node_ip), id));
            }
            assert_eq!(fake.counters().egress_masqueraded.packets, 4);
            // The first fragment of a datagram may arrive twice.
            assert_eq!(out(&fake, &packet.first()), (becomes(net.node), id));
            assert_eq!(fake.snat.len(), 1);
        }
    }
}

#[test]
fn a_fragment_that_overtakes_the_first_leaves_with_it() {
    for net in BOTH {
        let fake = Fake::new();
        let packet = net.udp();
        let (seen, id) = out(&fake, &packet.last());
        assert_eq!(seen, bare(net.node_ip));
        assert!(is_fresh(&net, id));
        assert_eq!(fake.snat.len(), 0, "it names no flow");
        assert_eq!(out(&fake, &packet.first()), (becomes(net.node), id));
        assert_eq!(out(&fake, &packet.last()), (bare(net.node_ip), id));
    }
}

/// Two pods may use one identification towards the same server at the same time: behind the node's
/// address their fragments would be mixed.
#[test]
fn every_datagram_has_its_own_identification() {
    let fake = Fake::new();
    let mut given = BTreeSet::new();
    for pod in [V4.pod, V4.other_pod] {
        for server in [V4.server, V4.other_server] {
            for id in [1, 2, 0xffff] {
                let datagram = Build::udp(pod, server).with_ip_id(id);
                let (_, id) = out(&fake, &datagram.first());
                assert!(id <= 0xffff);
                assert!(given.insert(id), "{id:#x} twice");
                assert_eq!(out(&fake, &datagram.last()).1, id);
            }
        }
    }
    assert_eq!(given.len(), 12);
    assert_eq!(out(&fake, &V4.udp()).1, KEEP_IP_ID, "whole");
}

#[test]
fn an_identification_is_not_remembered_for_long() {
    let fake = Fake::new();
    let (_, id) = out(&fake, &V4.udp().first());
    fake.advance(59);
    assert_eq!(out(&fake, &V4.udp().last()).1, id);
    fake.advance(2);
    assert_ne!(out(&fake, &V4.udp().last()).1, id, "another datagram");
    let fake = opened(&V4.udp());
    let reply = V4.udp().from(V4.node).answer();
    fake.back(&reply.first());
    fake.advance(61);
    assert_eq!(fake.back(&reply.last()), Seen::Hold);
}

#[test]
fn fragments_of_a_dropped_first_one_are_dropped() {
    for net in BOTH {
        let mut fake = Fake::new();
        let stray = Build::tcp(net.pod, net.server, RST);
        let of_dropped = drop_of(DropReason::FragmentOfDropped);
        let dropped = drop_of(DropReason::TcpNoFlow);
        assert_eq!(fake.out(&stray.first()), dropped);
        assert_eq!(fake.out(&stray.last()), of_dropped);
        fake.uplink.flags = 0;
        let dropped = drop_of(DropReason::NoSourceAddress);
        assert_eq!(fake.out(&net.udp().first()), dropped);
        assert_eq!(fake.out(&net.udp().last()), of_dropped);
        // A later fragment that arrives before the first does not leave either.
        let other = net.udp().with_ip_id(7);
        assert_eq!(fake.out(&other.last()), dropped);
        assert!(fake.fragments_len() == 2, "of that nothing is known");
    }
}

#[test]
fn what_passes_passes_in_fragments() {
    for (net, prefix) in [(V4, "198.51.100.7/32"), (V6, "2001:db8::7/128")] {
        let mut fake = Fake::new();
        fake.rule(prefix, Action::Bypass);
        let own = Build::udp(net.node, net.other_server);
        for packet in [net.udp(), own] {
            // In order, and reversed.
            for id in [1, 2] {
                let packet = packet.with_ip_id(id);
                let mut both = [packet.first(), packet.last()];
                if id == 2 {
                    both.reverse();
                }
                for part in both {
                    assert_eq!(out(&fake, &part), (Seen::Pass, KEEP_IP_ID), "{part:?}");
                }
            }
        }
        // A reply on an inbound flow.
        let asked = Build::udp(net.other_server, net.pod);
        assert_eq!(fake.back(&asked.first()), Seen::Pass);
        assert_eq!(fake.back(&asked.last()), Seen::Pass);
        assert_eq!(fake.out(&asked.answer().first()), Seen::Pass);
        assert_eq!(fake.out(&asked.answer().last()), Seen::Pass);
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
    }
}

#[test]
fn fragments_of_a_host_flow_that_gave_way_follow_it() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let host = net.udp().from(net.node);
        let wire = wire_of(fake.out(&host.first()));
        assert_ne!(wire, net.node);
        assert_eq!(fake.out(&host.last()), bare(net.node_ip));
        let reply = host.from(&wire).answer();
        assert_eq!(fake.back(&reply.first()), becomes(net.node));
    }
}

#[test]
fn a_reply_comes_back_in_fragments() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = opened(&packet);
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply.first()), becomes(net.pod));
            assert_eq!(fake.written_ip_id.get(), KEEP_IP_ID);
            for _ in 0..2 {
                assert_eq!(fake.back(&reply.last()), bare(net.pod_ip));
            }
            assert_eq!(fake.counters().ingress_translated.packets, 3);
            // The first fragment of that datagram has not arrived yet.
            assert_eq!(fake.back(&reply.with_ip_id(9).last()), Seen::Hold);
        }
    }
}

#[test]
fn a_fragment_before_its_first_one_is_held_back() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let reply = net.udp().from(net.node).answer();
        assert_eq!(fake.back(&reply.last()), Seen::Hold);
        assert_eq!(fake.back(&reply.first()), becomes(net.pod));
        assert_eq!(fake.back(&reply.last()), bare(net.pod_ip));
        // The node's own datagram, too, is decided once its first fragment arrives.
        let own = Build::udp(net.other_server, net.node);
        assert_eq!(fake.back(&own.last()), Seen::Hold);
        assert_eq!(fake.back(&own.first()), Seen::Pass);
        assert_eq!(fake.back(&own.last()), Seen::Pass);
        // Packets not addressed to the node need no translation.
        let through = Build::udp(net.server, net.other_pod);
        assert_eq!(fake.back(&through.last()), Seen::Pass);
    }
}

#[test]
fn a_forgotten_datagram_costs_no_other() {
    let mut fake = opened(&V4.udp());
    fake.fragments_capacity = 1;
    let reply = V4.udp().from(V4.node).answer();
    let (one, two) = (reply.with_ip_id(1), reply.with_ip_id(2));
    fake.back(&one.first());
    fake.back(&two.first());
    assert_eq!(fake.back(&two.last()), bare(V4.pod_ip));
    assert_eq!(fake.back(&one.last()), Seen::Hold);
}

#[test]
fn an_error_in_fragments_is_translated_in_all_of_them() {
    for (net, message) in [(V4, 3), (V6, 1)] {
        let fake = opened(&net.udp());
        let error = Build::error(net.pod, net.server, message, &net.udp().answer(), 60);
        let (seen, id) = out(&fake, &error.first());
        assert!(matches!(seen, Seen::Error(_)), "{seen:?}");
        assert!(is_fresh(&net, id));
        assert_eq!(out(&fake, &error.last()), (bare(net.node_ip), id));
        let sent = net.udp().from(net.node);
        let error = Build::error(net.server, net.node, message, &sent, 60);
        assert!(matches!(fake.back(&error.first()), Seen::Error(_)));
        assert_eq!(fake.back(&error.last()), bare(net.pod_ip));
        // The node's own error leaves with the address that it has.
        let reply = net.udp().answer();
        let own = Build::error(net.node, net.server, message, &reply, 60);
        assert!(matches!(fake.out(&own.first()), Seen::Inner(_)));
        assert_eq!(fake.out(&own.last()), Seen::Pass);
    }
}
