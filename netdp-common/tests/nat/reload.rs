//! Connections that an earlier policy bypassed and the current one masquerades, and vice versa.

use super::{BOTH, Net, assert_paired, becomes, drop_of, opened};
use netdp_common::layout::{Action, DropReason, SETTING_DRAIN};
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, Seen, addr};

/// Returns a node that masquerades everything and previously bypassed the server.
fn changed(net: &Net) -> Fake {
    let mut fake = Fake::new();
    let server = net.server_ip.trim_matches(['[', ']']);
    fake.bypassed_before.insert(addr(server));
    fake
}

#[test]
fn a_connection_goes_on_with_the_pods_address() {
    for net in BOTH {
        for first in [ACK, FIN | ACK] {
            let fake = changed(&net);
            assert_eq!(
                fake.out(&Build::tcp(net.pod, net.server, first)),
                Seen::Pass
            );
            assert_eq!(fake.counters().egress_bypassed.packets, 1);
            // Whatever follows, even after the record of the change has expired.
            let mut fake = fake;
            fake.bypassed_before.clear();
            for flags in [ACK, FIN | ACK, RST] {
                let more = Build::tcp(net.pod, net.server, flags);
                assert_eq!(fake.out(&more), Seen::Pass, "{flags:#x}");
            }
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        }
    }
}

#[test]
fn a_new_connection_is_masqueraded() {
    for net in BOTH {
        let fake = changed(&net);
        for first in net.openings() {
            assert!(matches!(fake.out(&first), Seen::As(_)), "{first:?}");
        }
        let data = Build::tcp(net.pod, net.server, ACK);
        assert_eq!(fake.out(&data), becomes(net.node));
        assert!((fake.asked_len() + fake.live_len() == 0));
    }
}

/// The tuple of a bypassed connection is reused.
#[test]
fn a_new_connection_takes_the_tuple_over() {
    for net in BOTH {
        let fake = changed(&net);
        let data = Build::tcp(net.pod, net.server, ACK);
        assert_eq!(fake.out(&data), Seen::Pass);
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        assert_eq!(fake.out(&data), becomes(net.node));
    }
}

/// Most such packets are strays of mappings that have ended.
#[test]
fn what_is_not_in_the_middle_of_a_connection_does_not_leak() {
    for net in BOTH {
        for flags in [RST, RST | ACK, SYN | ACK, FIN, 0] {
            let fake = changed(&net);
            let stray = Build::tcp(net.pod, net.server, flags);
            assert_eq!(
                fake.out(&stray),
                drop_of(DropReason::TcpNoFlow),
                "{flags:#x}"
            );
        }
    }
}

#[test]
fn only_what_was_bypassed_goes_on() {
    for net in BOTH {
        let fake = changed(&net);
        let elsewhere = Build::tcp(net.pod, net.other_server, ACK);
        assert_eq!(fake.out(&elsewhere), becomes(net.node), "a pickup");
    }
}

/// A datagram itself does not show that it is not the first; one from the peer to the pod's own
/// address does.
#[test]
fn datagrams_go_on_once_the_peer_has_sent_one() {
    for net in BOTH {
        let fake = changed(&net);
        assert_eq!(fake.back(&net.udp().answer()), Seen::Pass);
        assert_eq!(fake.out(&net.udp()), Seen::Pass);
        let fake = changed(&net);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
    }
}

#[test]
fn a_connection_drains_in_half_a_minute() {
    for net in BOTH {
        let mut fake = changed(&net);
        fake.settings.flags |= SETTING_DRAIN;
        let data = Build::tcp(net.pod, net.server, ACK);
        assert_eq!(fake.out(&data), Seen::Pass);
        fake.bypassed_before.clear();
        for _ in 0..3 {
            fake.advance(29);
            assert_eq!(fake.out(&data), Seen::Pass);
        }
        fake.advance(31);
        assert_eq!(fake.out(&data), becomes(net.node));
    }
}

#[test]
fn a_silent_connection_is_remembered_for_days() {
    for net in BOTH {
        let fake = changed(&net);
        let data = Build::tcp(net.pod, net.server, ACK);
        assert_eq!(fake.out(&data), Seen::Pass);
        let mut fake = fake;
        fake.bypassed_before.clear();
        fake.advance(431_000);
        assert_eq!(fake.out(&data), Seen::Pass);
    }
}

/// Stops masquerading the server.
fn bypass(fake: &mut Fake, net: &Net, action: Action) {
    let length = if net.server_ip.contains(':') { 128 } else { 32 };
    let server = net.server_ip.trim_matches(['[', ']']);
    fake.rule(&format!("{server}/{length}"), action);
    fake.settings.epoch += 1;
}

/// Returns a SYN with a sequence number other than [`Net::syn`]'s: that of another connection.
fn next_syn(net: &Net) -> Build {
    let mut syn = net.syn();
    syn.kind = Kind::Tcp {
        flags: SYN,
        seq: 900_000,
        ack: 0,
    };
    syn
}

/// Connections that have ended, by the segments sent and received.
const OVER: [&[(bool, u8)]; 4] = [
    // Reset by the server, reset by the pod, closed by both, never answered.
    &[(true, SYN), (false, RST | ACK)],
    &[(true, SYN), (false, SYN | ACK), (true, ACK), (true, RST)],
    &[
        (true, SYN),
        (false, SYN | ACK),
        (true, FIN | ACK),
        (false, FIN | ACK),
    ],
    &[(true, SYN)],
];

/// Returns a masqueraded connection after these segments.
fn carried(net: &Net, segments: &[(bool, u8)]) -> Fake {
    let fake = Fake::new();
    for (out, flags) in segments {
        if *out {
            let segment = Build::tcp(net.pod, net.server, *flags);
            assert_eq!(fake.out(&segment), becomes(net.node));
        } else {
            let mut answer = Build::tcp(net.server, net.node, *flags);
            // The pod's acknowledgement number, and the sequence number after its SYN.
            answer.kind = Kind::Tcp {
                flags: *flags,
                seq: 2_000,
                ack: 1_001,
            };
            assert_eq!(fake.back(&answer), becomes(net.pod));
        }
    }
    fake
}

#[test]
fn a_new_connection_by_the_ports_of_an_old_one_is_judged_anew() {
    for net in BOTH {
        for segments in OVER {
            let mut fake = carried(&net, segments);
            bypass(&mut fake, &net, Action::Bypass);
            assert_eq!(fake.out(&next_syn(&net)), Seen::Pass, "{segments:?}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            let data = Build::tcp(net.pod, net.server, ACK);
            assert_eq!(fake.out(&data), Seen::Pass, "{segments:?}");
        }
    }
}

/// After the policy changes back, the connection is masqueraded although the one before was not.
#[test]
fn a_new_connection_is_masqueraded_again() {
    for net in BOTH {
        let mut fake = carried(&net, OVER[2]);
        bypass(&mut fake, &net, Action::Bypass);
        assert_eq!(fake.out(&next_syn(&net)), Seen::Pass);
        fake.policy.clear();
        fake.settings.epoch += 1;
        assert_eq!(fake.out(&next_syn(&net)), becomes(net.node));
        let data = Build::tcp(net.pod, net.server, ACK);
        assert_eq!(fake.out(&data), becomes(net.node));
        assert_paired(&fake);
    }
}

/// A flow that the policy now withholds does not leave by an old mapping either.
#[test]
fn a_new_connection_is_withheld_by_now() {
    for net in BOTH {
        let mut fake = carried(&net, OVER[2]);
        bypass(&mut fake, &net, Action::Withhold);
        let seen = fake.out(&next_syn(&net));
        assert_eq!(seen, drop_of(DropReason::IpsecPolicy));
    }
}

#[test]
fn a_connection_that_is_being_opened_or_lives_keeps_its_mapping() {
    const LIVES: [&[(bool, u8)]; 2] = [
        &[(true, SYN), (false, SYN | ACK)],
        &[(true, SYN), (false, SYN | ACK), (true, ACK)],
    ];
    for net in BOTH {
        // The same SYN again.
        let mut fake = opened(&net.syn());
        bypass(&mut fake, &net, Action::Bypass);
        assert_eq!(fake.out(&net.syn()), becomes(net.node), "sent again");
        for segments in LIVES {
            let mut fake = carried(&net, segments);
            bypass(&mut fake, &net, Action::Bypass);
            assert_eq!(fake.out(&net.syn()), becomes(net.node), "{segments:?}");
            assert_eq!(fake.out(&next_syn(&net)), becomes(net.node), "a stray one");
            let data = Build::tcp(net.pod, net.server, ACK);
            assert_eq!(fake.out(&data), becomes(net.node), "{segments:?}");
        }
        for packet in [net.udp(), net.echo(4000)] {
            let mut fake = opened(&packet);
            bypass(&mut fake, &net, Action::Bypass);
            assert_eq!(fake.out(&packet), becomes(net.node), "a live flow");
        }
    }
}

/// An inbound connection on the ports of a closed connection of the pod.
#[test]
fn a_connection_from_outside_by_the_ports_of_an_old_one_is_answered() {
    for net in BOTH {
        for action in [None, Some(Action::Bypass)] {
            let mut fake = carried(&net, OVER[2]);
            if let Some(action) = action {
                bypass(&mut fake, &net, action);
            }
            let asks = Build::tcp(net.server, net.pod, SYN);
            assert_eq!(fake.back(&asks), Seen::Pass);
            assert_eq!(fake.out(&asks.answer()), Seen::Pass, "{action:?}");
            let data = Build::tcp(net.pod, net.server, ACK);
            assert_eq!(fake.out(&data), Seen::Pass, "{action:?}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        }
        // No inbound flow exists.
        let fake = carried(&net, OVER[2]);
        let answer = Build::tcp(net.pod, net.server, SYN | ACK);
        assert_eq!(fake.out(&answer), becomes(net.node));
    }
}

/// A packet forged with the pod's source ends no mapping.
#[test]
fn a_forged_syn_ends_no_mapping() {
    for net in BOTH {
        let mut fake = carried(&net, OVER[2]);
        bypass(&mut fake, &net, Action::Bypass);
        fake.ingress_ifindex.set(4);
        fake.own.set(false);
        let pod = addr(net.pod_ip.trim_matches(['[', ']']));
        let elsewhere = testkit::fake::Origin::Elsewhere;
        fake.origins.borrow_mut().insert(pod, elsewhere);
        let seen = fake.out(&next_syn(&net));
        assert_eq!(seen, drop_of(DropReason::ForgedSource));
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (1, 1));
    }
}
