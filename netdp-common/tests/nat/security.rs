//! Isolation: no pod harms another, and none receives packets for the node.

use super::{BOTH, V4, assert_paired, becomes, drop_of, halves, opened};
use netdp_common::flow::{TcpState, tcp_state};
use netdp_common::layout::{Addr, DropReason, NodeProtocol, proto};
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::Origin;
use testkit::fake::{Fake, Seen, tuple_of};

const PORT: u16 = 4000;

/// Returns a segment of the server with the given numbers.
fn segment(packet: &Build, flags: u8, seq: u32, ack: u32) -> Build {
    let mut segment = packet.clone();
    segment.kind = Kind::Tcp { flags, seq, ack };
    segment
}

#[test]
fn a_port_on_which_the_node_answers_is_given_to_no_pod() {
    for net in BOTH {
        for (packet, protocol) in [(net.syn(), proto::TCP), (net.udp(), proto::UDP)] {
            let mut fake = Fake::new();
            fake.listeners.insert(PORT);
            assert_ne!(fake.out(&packet), becomes(net.node), "a listener");
            let mut fake = Fake::new();
            fake.node_ports.insert((protocol, PORT));
            assert_ne!(fake.out(&packet), becomes(net.node), "a hostPort");
        }
    }
}

/// The port of a client that was refused or has gone is available to the client again.
#[test]
fn a_connection_from_outside_is_the_nodes_where_none_lives() {
    for net in BOTH {
        let syn = net.syn();
        let from_outside = Build::tcp(net.server, net.node, SYN);
        let fake = opened(&syn);
        let refusal = segment(&from_outside, RST | ACK, 0, 1_001);
        assert_eq!(fake.back(&refusal), becomes(net.pod));
        assert_eq!(fake.back(&from_outside), Seen::Pass, "refused");
        assert_eq!(fake.snat.len(), 0);
        assert_eq!(fake.back(&from_outside.to(net.node)), Seen::Pass);
        // A live connection is not affected.
        let fake = opened(&syn);
        fake.back(&segment(&from_outside, SYN | ACK, 5_000, 1_001));
        fake.out(&segment(&syn, ACK, 1_001, 5_001));
        assert_eq!(fake.back(&from_outside), becomes(net.pod));
        let (original, reply) = halves(&fake, &syn);
        let state = tcp_state(original.seen(), reply.seen());
        assert_eq!(state, TcpState::Established);
    }
}

#[test]
fn what_the_node_has_come_to_receive_is_the_nodes() {
    for net in BOTH {
        for packet in [net.syn(), net.udp()] {
            let mut fake = opened(&packet);
            fake.listeners.insert(PORT);
            let from_outside = match packet.kind {
                Kind::Udp => packet.from(net.node).answer(),
                _ => Build::tcp(net.server, net.node, SYN),
            };
            assert_eq!(fake.back(&from_outside), Seen::Pass, "{from_outside:?}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            // Without a listener: a simultaneous open, or a reply of the peer.
            let fake = opened(&packet);
            assert_eq!(fake.back(&from_outside), becomes(net.pod));
        }
    }
}

#[test]
fn another_pods_address_changes_nothing() {
    for net in BOTH {
        let from_elsewhere = |fake: &Fake, packet: &Build| {
            let origin = fake.origins.borrow().get(&tuple_of(packet).src).copied();
            assert_eq!(origin, Some(Origin::Elsewhere));
            fake.ingress_ifindex.set(8);
            let seen = fake.out(packet);
            fake.ingress_ifindex.set(7);
            assert_eq!(seen, drop_of(DropReason::ForgedSource), "{packet:?}");
        };
        let elsewhere = |fake: &Fake| {
            let pod = tuple_of(&net.syn()).src;
            fake.origins.borrow_mut().insert(pod, Origin::Elsewhere);
        };
        // An inbound connection.
        let fake = Fake::new();
        let answer = Build::tcp(net.pod, net.server, SYN | ACK);
        fake.back(&Build::tcp(net.server, net.pod, SYN));
        assert_eq!(fake.out(&answer), Seen::Pass);
        elsewhere(&fake);
        for flags in [SYN, RST, ACK, FIN | ACK] {
            from_elsewhere(&fake, &Build::tcp(net.pod, net.server, flags));
        }
        assert_eq!(fake.out(&Build::tcp(net.pod, net.server, ACK)), Seen::Pass);
        // An established mapping.
        let fake = opened(&net.syn());
        elsewhere(&fake);
        let before = halves(&fake, &net.syn());
        for flags in [SYN, RST, ACK, FIN | ACK] {
            from_elsewhere(&fake, &Build::tcp(net.pod, net.server, flags));
        }
        assert_eq!(halves(&fake, &net.syn()), before);
        // A new flow, and an incomplete fragmented datagram.
        let fake = Fake::new();
        elsewhere(&fake);
        from_elsewhere(&fake, &net.udp());
        from_elsewhere(&fake, &net.udp().first());
        from_elsewhere(&fake, &net.udp().last());
        assert_eq!((fake.snat.len(), fake.fragments_len()), (0, 0));
    }
}

/// The routing table places some of a pod's addresses behind the uplink. That contradicts nothing:
/// what is there is no pod of this node.
#[test]
fn an_address_behind_an_uplink_is_not_another_pods() {
    for net in BOTH {
        let fake = Fake::new();
        let pod = tuple_of(&net.udp()).src;
        fake.origins.borrow_mut().insert(pod, Origin::Uplink);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        assert_eq!(fake.out(&net.syn().first()), becomes(net.node));
        // Nor is anything known about the routers on the path to it.
        let reply = Build::udp(net.server, net.pod);
        let message = if net.node.starts_with('[') { 1 } else { 3 };
        let error = Build::error(net.other_pod, net.server, message, &reply, 200);
        assert!(matches!(fake.out(&error), Seen::Error(_)));
    }
}

#[test]
fn a_rst_with_a_wrong_checksum_ends_nothing() {
    for net in BOTH {
        let fake = opened(&net.syn());
        let from_outside = Build::tcp(net.server, net.node, SYN);
        fake.back(&segment(&from_outside, SYN | ACK, 5_000, 1_001));
        fake.out(&segment(&net.syn(), ACK, 1_001, 5_001));
        let state = |fake: &Fake| {
            let (original, reply) = halves(fake, &net.syn());
            tcp_state(original.seen(), reply.seen())
        };
        let mut wrong = segment(&net.syn(), RST, 1_001, 0);
        wrong.csum_error = 0x1234;
        assert_eq!(fake.out(&wrong), becomes(net.node), "still wrong");
        assert_eq!(state(&fake), TcpState::Established);
        let mut wrong = segment(&from_outside, RST, 5_001, 0);
        wrong.csum_error = 0x1234;
        assert_eq!(fake.back(&wrong), becomes(net.pod));
        assert_eq!(state(&fake), TcpState::Established);
        // A RST with the right number closes it, until the connection continues.
        assert_eq!(
            fake.out(&segment(&net.syn(), RST, 1_001, 0)),
            becomes(net.node)
        );
        assert_eq!(state(&fake), TcpState::Closed);
        fake.out(&segment(&net.syn(), ACK, 1_001, 5_001));
        assert_eq!(state(&fake), TcpState::Established);
    }
}

#[test]
fn a_rst_in_syn_sent_has_to_acknowledge_the_syn() {
    for net in BOTH {
        let from_outside = Build::tcp(net.server, net.node, SYN);
        for (ack, wanted) in [(7, TcpState::SynSent), (1_001, TcpState::Closed)] {
            let fake = opened(&net.syn());
            let rst = segment(&from_outside, RST | ACK, 0, ack);
            assert_eq!(fake.back(&rst), becomes(net.pod));
            let (original, reply) = halves(&fake, &net.syn());
            assert_eq!(tcp_state(original.seen(), reply.seen()), wanted, "{ack}");
        }
    }
}

#[test]
fn a_pods_error_is_about_its_own_flow() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let reply = Build::udp(net.server, net.pod);
        let message = if net.node.starts_with('[') { 1 } else { 3 };
        let error = Build::error(net.other_pod, net.server, message, &reply, 200);
        assert_eq!(fake.out(&error), drop_of(DropReason::ForgedSource));
        // A router on the path to the pod may report an error, too.
        let pod = tuple_of(&net.udp()).src;
        fake.origins.borrow_mut().insert(pod, Origin::Routed);
        assert!(matches!(fake.out(&error), Seen::Error(_)));
    }
}

#[test]
fn a_pod_leaves_room_to_others_and_takes_its_own_back() {
    let mut fake = Fake::new();
    fake.limits.capacity = 64;
    fake.snat.set_capacity(64);
    fake.rev_snat.set_capacity(64);
    let flow = |pod: u8, n: u16| {
        Build::udp(
            &format!("172.16.0.{pod}:{}", 2000 + n),
            &format!("198.51.100.7:{n}"),
        )
    };
    // Far more than its share without replies: its oldest mappings are evicted.
    for n in 1..500 {
        assert!(matches!(fake.out(&flow(2, n)), Seen::As(_)), "{n}");
        assert!(fake.snat.len() <= 24, "three eighths");
    }
    assert_paired(&fake);
    // Answered mappings are live: the pod is refused at its share, and another pod is not.
    let mut fake = Fake::new();
    fake.limits.capacity = 64;
    let mut refused = 0;
    for n in 1..500 {
        match fake.out(&flow(2, n)) {
            Seen::As(wire) => {
                let answer = flow(2, n).from(&wire.to_string()).answer();
                assert!(matches!(fake.back(&answer), Seen::As(_)));
            }
            seen => {
                assert_eq!(seen, drop_of(DropReason::TableFull));
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 499 - 24);
    for n in 1..20 {
        assert!(matches!(fake.out(&flow(3, n)), Seen::As(_)), "{n}");
    }
    assert!(matches!(fake.out(&flow(2, 1)), Seen::As(_)), "what lives");
}

#[test]
fn limits_that_are_set_hold() {
    let mut fake = Fake::new();
    fake.limits.flows = 3;
    let flow = |n: u16| V4.udp().to(&format!("198.51.100.7:{}", 1 + n));
    for n in 0..3 {
        let answer = flow(n).from(V4.node).answer();
        assert_eq!(fake.out(&flow(n)), becomes(V4.node));
        assert_eq!(fake.back(&answer), becomes(V4.pod));
    }
    assert_eq!(fake.out(&flow(3)), drop_of(DropReason::PodLimit));
    assert_eq!(fake.out(&flow(3).from(V4.other_pod)), becomes(V4.node));
    let mut fake = Fake::new();
    (fake.limits.rate, fake.limits.burst) = (10, 20);
    fake.advance(60);
    let passed = (0..100).filter(|n| fake.out(&flow(*n)) == becomes(V4.node));
    assert_eq!(passed.count(), 20, "the burst");
    fake.advance(1);
    let passed = (100..200).filter(|n| fake.out(&flow(*n)) == becomes(V4.node));
    assert_eq!(passed.count(), 10);
}

#[test]
fn a_protocol_that_the_node_speaks_is_the_nodes_in_either_order() {
    let gre = |from: &str| Build::new(from, "198.51.100.7:0", Kind::Other(47));
    let (pod, node) = (gre("172.16.0.2:0"), gre("192.0.2.10:0"));
    let (peer, any) = (Addr::from_v4([198, 51, 100, 7]), Addr::from_v4([0; 4]));
    for known in [peer, any] {
        let mut fake = Fake::new();
        fake.node_protocols.insert(NodeProtocol::new(known, 47));
        assert_eq!(fake.out(&pod), drop_of(DropReason::NodeProtocol));
    }
    // Unknown: accepted from any source.
    let mut fake = Fake::new();
    fake.sent_by_socket = false;
    assert_eq!(fake.out(&node), Seen::Pass);
    assert_eq!(fake.out(&pod), drop_of(DropReason::NoFreePort));
    let mut fake = opened(&pod);
    fake.sent_by_socket = false;
    assert_eq!(fake.back(&node.answer()), becomes("172.16.0.2:0"));
    assert_eq!(fake.out(&node), Seen::Pass, "the node goes first");
    assert_eq!(fake.back(&node.answer()), Seen::Pass);
    assert_eq!(fake.snat.len(), 0);
}

/// Reservations of flows that may be forged occupy few ports, and only briefly.
#[test]
fn forged_node_flows_use_up_neither_ports_nor_room() {
    let net = &BOTH[1];
    let mut fake = Fake::new();
    fake.sent_by_socket = false;
    fake.own.set(false);
    for port in 1024..=u16::MAX {
        let forged = Build::udp(&format!("{}:{port}", net.node_ip), net.server);
        assert_eq!(fake.out(&forged), Seen::Pass);
    }
    assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
    assert!(fake.node_flows.borrow().len() < 100);
    assert!(matches!(fake.out(&net.udp()), Seen::As(_)));
    // Nor does it use mappings of its own, where pods have the ports.
    let mut fake = opened(&net.udp());
    fake.sent_by_socket = false;
    fake.own.set(false);
    fake.limits.capacity = 64;
    let mut forged = net.udp().from(net.node);
    for _ in 0..100 {
        match fake.out(&forged) {
            Seen::As(wire) => forged = net.udp().from(&wire.to_string()),
            _ => break,
        }
    }
    assert!((2..=25).contains(&fake.snat.len()), "{}", fake.snat.len());
}
