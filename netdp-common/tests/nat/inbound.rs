//! Inbound flows, which pods answer from their own address.

use super::{BOTH, V4, becomes, drop_of, opened};
use netdp_common::layout::DropReason;
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, Seen};

/// Returns first packets of inbound flows to a pod.
fn openings(net: &super::Net) -> [Build; 6] {
    let echo = net.echo(0);
    let id = |end: &str| end.replace(":443", ":99");
    [
        Build::tcp(net.server, net.pod, SYN),
        Build::udp(net.server, net.pod),
        echo.from(&id(net.server))
            .to(&net.pod.replace(":4000", ":0")),
        Build::new(net.server, net.pod, Kind::UdpLite),
        Build::new(net.server, net.pod, Kind::Other(47)),
        Build::new(net.server, net.pod, Kind::Other(132)),
    ]
}

#[test]
fn a_pod_answers_as_itself() {
    for net in BOTH {
        for opening in openings(&net) {
            let fake = Fake::new();
            assert_eq!(fake.back(&opening), Seen::Pass);
            for _ in 0..3 {
                let answer = opening.answer();
                assert_eq!(fake.out(&answer), Seen::Pass, "{answer:?}");
            }
            assert_eq!(fake.counters().egress_replies.packets, 3);
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            assert_eq!(fake.asked_len() + fake.live_len(), 1);
        }
    }
}

#[test]
fn a_whole_connection_from_outside_passes() {
    for net in BOTH {
        let fake = Fake::new();
        for (out, flags) in [
            (false, SYN),
            (true, SYN | ACK),
            (false, ACK),
            (true, ACK),
            (true, FIN | ACK),
            (false, FIN | ACK),
            (true, ACK),
            (true, RST),
        ] {
            let seen = if out {
                fake.out(&Build::tcp(net.pod, net.server, flags))
            } else {
                fake.back(&Build::tcp(net.server, net.pod, flags))
            };
            assert_eq!(seen, Seen::Pass, "out: {out}, flags {flags:#x}");
        }
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
    }
}

/// A connection that is older than netdp.
#[test]
fn a_connection_in_mid_stream_is_recognised_from_outside() {
    for net in BOTH {
        let fake = Fake::new();
        assert_eq!(fake.back(&Build::tcp(net.server, net.pod, ACK)), Seen::Pass);
        assert_eq!(fake.out(&Build::tcp(net.pod, net.server, ACK)), Seen::Pass);
    }
}

/// A stray packet of an earlier connection must not make the pod's new connection look like an
/// answer: it would leave with the pod's address, and every retransmission would refresh the
/// record.
#[test]
fn a_stray_packet_does_not_make_a_new_connection_a_reply() {
    for net in BOTH {
        for flags in [SYN, ACK, FIN | ACK, FIN] {
            let fake = Fake::new();
            let stray = Build::tcp(net.server, net.pod, flags);
            assert_eq!(fake.back(&stray), Seen::Pass);
            assert_eq!(fake.out(&net.syn()), becomes(net.node), "{flags:#x}");
            assert!((fake.asked_len() + fake.live_len() == 0));
            let data = Build::tcp(net.pod, net.server, ACK);
            assert_eq!(fake.out(&data), becomes(net.node));
        }
    }
}

#[test]
fn a_stray_packet_does_not_disturb_a_mapping() {
    for net in BOTH {
        for packet in [net.syn(), net.udp()] {
            let fake = opened(&packet);
            // Addressed to the pod itself, from the mapping's peer.
            assert_eq!(fake.back(&packet.answer()), Seen::Pass);
            assert_eq!(fake.out(&packet), becomes(net.node));
        }
    }
}

#[test]
fn what_can_only_be_an_answer_begins_nothing() {
    for net in BOTH {
        let fake = Fake::new();
        for packet in [
            Build::tcp(net.server, net.pod, SYN | ACK),
            Build::tcp(net.server, net.pod, RST),
            Build::tcp(net.server, net.pod, RST | ACK),
            Build::new(net.server, net.pod, Kind::EchoReply),
            Build::new(net.server, net.pod, Kind::Other(51)),
            Build::new(net.server, net.pod, Kind::Icmp(3)),
            Build::error(net.server, net.pod, 3, &net.udp(), 100),
            net.udp().answer().last(),
        ] {
            assert_eq!(fake.back(&packet), Seen::Pass, "{packet:?}");
        }
        assert!((fake.asked_len() + fake.live_len() == 0));
        let answer = Build::tcp(net.pod, net.server, SYN | ACK);
        assert_eq!(fake.out(&answer), drop_of(DropReason::TcpNoFlow));
    }
}

#[test]
fn a_pods_own_ping_is_no_reply() {
    for net in BOTH {
        // With identifier 0, query and reply have the same tuple.
        for id in [0, 99] {
            let fake = Fake::new();
            let [_, _, outside, ..] = openings(&net);
            let outside = outside.from(&format!("{}:{id}", net.server_ip));
            assert_eq!(fake.back(&outside), Seen::Pass);
            let own = net.echo(id);
            let wanted = becomes(&format!("{}:{id}", net.node_ip));
            assert_eq!(fake.out(&own), wanted);
            assert_eq!(fake.out(&outside.answer()), Seen::Pass, "identifier {id}");
        }
    }
}

#[test]
fn a_reply_is_for_its_own_peer_only() {
    for net in BOTH {
        let fake = Fake::new();
        fake.back(&Build::udp(net.server, net.pod));
        let elsewhere = Build::udp(net.pod, net.other_server);
        assert_eq!(fake.out(&elsewhere), becomes(net.node));
        let other_pod = Build::udp(net.other_pod, net.server);
        assert_eq!(fake.out(&other_pod), becomes(net.node));
        assert_eq!(fake.out(&net.udp()), Seen::Pass);
    }
}

#[test]
fn the_oldest_record_makes_room() {
    let mut fake = Fake::new();
    fake.asked_capacity = 2;
    let from = |n: u8| Build::udp(&format!("198.51.100.{n}:443"), V4.pod);
    fake.back(&from(1));
    fake.back(&from(2));
    fake.back(&from(1));
    fake.back(&from(3));
    assert_eq!(fake.out(&from(1).answer()), Seen::Pass);
    assert_eq!(fake.out(&from(3).answer()), Seen::Pass);
    assert_eq!(fake.out(&from(2).answer()), becomes(V4.node));
}

#[test]
fn a_record_lives_as_long_as_such_a_flow_does() {
    let ack = Build::tcp(V4.server, V4.pod, ACK);
    for (packet, asked, live) in [(V4.udp().answer(), 120, 300), (ack, 240, 432_000)] {
        let fake = Fake::new();
        fake.back(&packet);
        fake.advance(asked - 1);
        assert_eq!(fake.out(&packet.answer()), Seen::Pass, "and is answered");
        fake.advance(live - 1);
        assert_eq!(fake.out(&packet.answer()), Seen::Pass, "and is refreshed");
        fake.advance(live + 1);
        assert_eq!(fake.out(&packet.answer()), becomes(V4.node));
        let fake = Fake::new();
        fake.back(&packet);
        fake.advance(asked + 1);
        assert_eq!(fake.out(&packet.answer()), becomes(V4.node), "unanswered");
    }
}

/// An outsider's flood evicts unanswered records and no others.
#[test]
fn what_a_pod_has_answered_is_displaced_by_nothing() {
    let mut fake = Fake::new();
    fake.asked_capacity = 4;
    let idle = Build::tcp(V4.server, V4.pod, SYN);
    fake.back(&idle);
    assert_eq!(
        fake.out(&Build::tcp(V4.pod, V4.server, SYN | ACK)),
        Seen::Pass
    );
    for n in 0..1_000 {
        let from = format!("198.51.100.9:{}", 1024 + n);
        for _ in 0..2 {
            fake.back(&Build::tcp(&from, V4.pod, SYN));
        }
    }
    fake.advance(400_000);
    assert_eq!(fake.out(&Build::tcp(V4.pod, V4.server, ACK)), Seen::Pass);
}

/// A peer's live connections are limited to its share; closed ones do not count.
#[test]
fn live_records_are_shared_and_given_back() {
    let mut fake = Fake::new();
    fake.limits.inbound_capacity = 100;
    let connection = |fake: &Fake, from: &str| {
        fake.back(&Build::tcp(from, V4.pod, SYN));
        assert_eq!(fake.out(&Build::tcp(V4.pod, from, SYN | ACK)), Seen::Pass);
    };
    for n in 0..1_000 {
        connection(&fake, &format!("198.51.100.9:{}", 1024 + n));
    }
    assert!(fake.live_len() < 100, "something is left");
    let (before, closed) = (fake.live_len(), "198.51.100.9:1024");
    fake.back(&Build::tcp(closed, V4.pod, FIN | ACK));
    assert_eq!(fake.out(&Build::tcp(V4.pod, closed, FIN | ACK)), Seen::Pass);
    assert_eq!(fake.live_len(), before - 1);
    assert_eq!(
        fake.out(&Build::tcp(V4.pod, closed, ACK)),
        Seen::Pass,
        "late"
    );
    assert_eq!(fake.live_len(), before - 1, "and it stays closed");
}

/// A segment that opens nothing does not revive an expired record.
#[test]
fn an_ended_record_stays_ended() {
    let fake = Fake::new();
    fake.back(&Build::tcp(V4.server, V4.pod, SYN));
    fake.advance(432_001);
    let late = Build::tcp(V4.pod, V4.server, FIN | ACK);
    for _ in 0..2 {
        assert_eq!(fake.out(&late), drop_of(DropReason::TcpNoFlow));
    }
}
