//! Connections that an earlier policy bypassed, after the destination is
//! masqueraded.

use super::{BOTH, Net, becomes, drop_of};
use crate::abi::SETTING_DRAIN;
use crate::fake::build::{ACK, Build, FIN, RST, SYN};
use crate::fake::{Fake, Seen, addr};
use crate::verdict::DropReason;

/// A node that masquerades everything, and bypassed the server before.
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
            assert_eq!(fake.counters().egress_bypassed, 1);
            // Whatever comes then, and though the change is forgotten.
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

/// The tuple of a connection that was bypassed is used again.
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

/// Mostly these are what strays when a mapping has ended.
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

/// Nothing in a datagram tells that it is not the first; one that the peer sends
/// to the pod's own address does.
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
