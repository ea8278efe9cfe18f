//! The node's own traffic, and its separation from pods' flows.

use super::{BOTH, V4, V6, assert_paired, becomes, halves, opened, wire_of};
use netdp_common::env::{Clock as _, Node as _};
use netdp_common::layout::{Action, MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING};
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, Seen, tuple_of};

#[test]
fn the_nodes_own_traffic_is_untouched() {
    for net in BOTH {
        let fake = Fake::new();
        for packet in [
            Build::tcp(net.node, net.server, SYN),
            Build::tcp(net.node, net.server, ACK),
            Build::tcp(net.node, net.server, FIN | ACK),
            Build::tcp(net.node, net.server, RST),
            Build::tcp(net.node, net.server, SYN | ACK),
            Build::udp(net.node, net.server),
        ] {
            assert_eq!(fake.out(&packet), Seen::Pass, "{packet:?}");
            assert_eq!(fake.back(&packet.answer()), Seen::Pass, "{packet:?}");
        }
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        assert_eq!(fake.counters().egress_host.packets, 6);
    }
}

#[test]
fn a_ping_of_the_node_keeps_its_identifier() {
    for net in BOTH {
        let fake = Fake::new();
        let ping = net.echo(4000).from(net.node);
        for _ in 0..2 {
            assert_eq!(fake.out(&ping), Seen::Pass);
            assert_eq!(fake.back(&ping.answer()), Seen::Pass);
        }
        let flow = fake.lookup_node_flow(&tuple_of(&ping).reversed());
        assert_eq!(flow.map(|flow| flow.last_seen), Some(fake.now()));
        assert_eq!(fake.rev_snat.len(), 0, "it takes no pod's room");
        // A pod's ping with the same identifier gets another one.
        let pod = net.echo(4000);
        let seen = fake.out(&pod);
        assert_ne!(seen, becomes(net.node));
        let reply = pod.from(&wire_of(seen)).answer();
        assert_eq!(fake.back(&reply), becomes(net.pod));
        assert_eq!(fake.back(&ping.answer()), Seen::Pass);
        assert_paired(&fake);
    }
}

#[test]
fn what_netfilter_translated_to_the_node_is_remembered() {
    for net in BOTH {
        for opening in [
            Build::tcp(net.node, net.server, SYN),
            Build::udp(net.node, net.server),
        ] {
            let mut fake = Fake::new();
            fake.sent_by_socket = false;
            assert_eq!(fake.out(&opening), Seen::Pass);
            assert_eq!(fake.back(&opening.answer()), Seen::Pass);
            let pod = opening.from(net.pod);
            assert_ne!(fake.out(&pod), becomes(net.node));
            assert_eq!(fake.back(&opening.answer()), Seen::Pass, "still the node's");
            assert_paired(&fake);
        }
        // So do packets of existing flows: the replies of a hostPort.
        for flags in [ACK, SYN | ACK, FIN | ACK] {
            let mut fake = Fake::new();
            fake.sent_by_socket = false;
            let packet = Build::tcp(net.node, net.server, flags);
            assert_eq!(fake.out(&packet), Seen::Pass);
            assert_eq!(fake.rev_snat.len(), 0, "it takes no pod's room");
            assert_ne!(fake.out(&net.syn()), becomes(net.node), "{flags:#x}");
            assert_eq!(fake.back(&packet.answer()), Seen::Pass);
        }
    }
}

#[test]
fn a_flow_of_the_nodes_is_remembered_while_it_goes_on() {
    let mut fake = Fake::new();
    fake.sent_by_socket = false;
    let packet = Build::udp(V4.node, V4.server);
    for _ in 0..2 {
        fake.out(&packet);
        fake.advance(299);
        assert_ne!(fake.out(&V4.udp().from(V4.other_pod)), Seen::Pass);
    }
    fake.out(&packet);
    fake.advance(301);
    assert_eq!(fake.out(&V4.udp()), becomes(V4.node));
}

/// Packets with which the node answers take the tuple over from an idle mapping of a pod, but not
/// on the evidence of a packet that may be a pod's with a forged source.
#[test]
fn the_nodes_answer_takes_a_tuple_that_nobody_lives_by() {
    for net in BOTH {
        let answer = Build::tcp(net.node, net.server, SYN | ACK);
        let mut fake = opened(&net.syn());
        fake.sent_by_socket = false;
        assert_eq!(fake.out(&answer), Seen::Pass);
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        assert_eq!(fake.back(&answer.answer()), Seen::Pass);
        let mut fake = opened(&net.syn());
        fake.sent_by_socket = false;
        fake.own.set(false);
        assert_eq!(fake.out(&answer), Seen::Pass);
        let forged = usize::from(net.node.starts_with('['));
        assert_eq!(fake.snat.len(), forged, "{}", net.node);
    }
}

/// The node's own sockets on an address from `ip route add local` keep it; a pod with that address
/// is a pod.
#[test]
fn a_socket_on_an_address_that_is_only_routed_here_keeps_it() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.any_ip
            .insert(testkit::fake::addr(net.pod_ip.trim_matches(['[', ']'])));
        fake.ingress_ifindex.set(0);
        assert_eq!(fake.out(&net.syn()), Seen::Pass);
        assert_eq!(fake.out(&net.udp()), Seen::Pass);
        assert_eq!(fake.snat.len(), 0);
        fake.ingress_ifindex.set(7);
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
    }
}

#[test]
fn a_full_table_does_not_stop_the_node() {
    let mut fake = Fake::new();
    fake.sent_by_socket = false;
    fake.rev_snat.set_capacity(0);
    for packet in V4.openings() {
        assert_eq!(fake.out(&packet.from(V4.node)), Seen::Pass);
    }
}

#[test]
fn a_host_flow_gives_way_to_the_pod_that_was_there_first() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = opened(&packet);
            let host = packet.from(net.node);
            let seen = fake.out(&host);
            let wire = wire_of(seen);
            assert_ne!(seen, becomes(net.node), "{host:?}");
            assert!(wire.starts_with(net.node_ip), "{wire}");
            // Both receive their own replies, repeatedly.
            for _ in 0..2 {
                let reply = host.from(&wire).answer();
                assert_eq!(fake.back(&reply), becomes(net.node));
                let reply = packet.from(net.node).answer();
                assert_eq!(fake.back(&reply), becomes(net.pod));
                assert_eq!(fake.out(&host), seen);
                assert_eq!(fake.out(&packet), becomes(net.node));
            }
            halves(&fake, &host);
            assert_paired(&fake);
        }
    }
}

/// Messages without a port: their tuple must not be confused with that of a ping with identifier 0.
#[test]
fn messages_of_the_node_are_not_taken_for_pings() {
    for net in BOTH {
        let ping = net.echo(0);
        let fake = opened(&ping);
        let end = |ip: &str| format!("{ip}:0");
        let (node, server) = (end(net.node_ip), end(net.server_ip));
        for kind in [Kind::Icmp(3), Kind::EchoReply] {
            let message = Build::new(&node, &server, kind);
            assert_eq!(fake.out(&message), Seen::Pass, "{message:?}");
        }
        let query = Build::echo(&server, &node);
        assert_eq!(fake.back(&query), Seen::Pass, "the node answers");
        let reply = ping.from(&node).answer();
        assert_eq!(fake.back(&reply), becomes(&end(net.pod_ip)));
    }
}

/// A mapping may outlive the policy under which it was created.
#[test]
fn a_host_flow_gives_way_whatever_the_policy_says_now() {
    for (net, prefix) in [(V4, "0.0.0.0/0"), (V6, "::/0")] {
        for packet in net.openings() {
            let mut fake = opened(&packet);
            fake.rule(prefix, Action::Bypass);
            let host = packet.from(net.node);
            let wire = wire_of(fake.out(&host));
            assert_ne!(wire, net.node);
            let reply = host.from(&wire).answer();
            assert_eq!(fake.back(&reply), becomes(net.node));
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.pod));
        }
    }
}

#[test]
fn bypassed_traffic_of_the_node_reserves_nothing() {
    let mut fake = Fake::new();
    fake.rule("0.0.0.0/0", Action::Bypass);
    fake.sent_by_socket = false;
    for packet in V4.openings() {
        assert_eq!(fake.out(&packet.from(V4.node)), Seen::Pass);
    }
    assert_eq!(fake.rev_snat.len(), 0);
}

/// Sets flags in the rev-SNAT half of the mapping that `packet` has opened.
fn mark(fake: &Fake, packet: &Build, net: &super::Net, flags: u16) {
    let wire = tuple_of(&packet.from(net.node)).reversed();
    let mut half = fake.rev_snat.get(&wire).expect("a reply half");
    half.flags = flags;
    fake.rev_snat.remove(&wire);
    fake.rev_snat.insert(&wire, &half).expect("room");
}

/// While a flow is handed over to netfilter it arrives translated or untranslated, and netdp still
/// translates its replies.
#[test]
fn a_handed_flow_is_served_both_ways() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = opened(&packet);
            mark(&fake, &packet, &net, MAPPING_HANDOVER_PENDING);
            let translated = packet.from(net.node);
            assert_eq!(fake.out(&translated), Seen::Pass, "{packet:?}");
            assert_eq!(fake.out(&packet), becomes(net.node), "{packet:?}");
            assert_eq!(fake.back(&translated.answer()), becomes(net.pod));
        }
    }
}

/// Once netfilter has the flow, netfilter translates its replies, and late packets of the pod must
/// still not leave untranslated.
#[test]
fn a_yielded_flow_is_netfilters() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = opened(&packet);
            mark(
                &fake,
                &packet,
                &net,
                MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER,
            );
            let translated = packet.from(net.node);
            assert_eq!(fake.out(&translated), Seen::Pass, "{packet:?}");
            assert_eq!(fake.back(&translated.answer()), Seen::Pass, "{packet:?}");
            assert_eq!(fake.out(&packet), becomes(net.node), "{packet:?}");
        }
    }
}
