//! Which bypassed networks answer: connections of pods and of the node, and their answers.

use super::{BOTH, Net};
use netdp_common::layout::{Action, Reach, SETTING_BYPASS_CACHE_VALID};
use std::net::IpAddr;
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, Seen};

/// Returns a node that bypasses everything. `cached`: the bypass cache may be used.
fn bypassing(cached: bool) -> Fake {
    let mut fake = Fake::new();
    if cached {
        fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
    }
    for all in ["0.0.0.0/0", "::/0"] {
        fake.rule(all, Action::Bypass);
    }
    fake
}

fn reach(fake: &Fake, net: &Net) -> Option<Reach> {
    let server: IpAddr = net.server_ip.trim_matches(['[', ']']).parse().unwrap();
    fake.reach(&server.into())
}

fn counted(fake: &Fake, net: &Net) -> [u32; 4] {
    let Reach {
        pod_new,
        pod_answered,
        node_new,
        node_answered,
    } = reach(fake, net).unwrap_or_default();
    [pod_new, pod_answered, node_new, node_answered]
}

/// Returns a reset that answers the SYN of a connection, or that comes later.
fn reset(from: &str, to: &str, seq: u32) -> Build {
    let flags = RST | ACK;
    Build::new(from, to, Kind::Tcp { flags, seq, ack: 8 })
}

#[test]
fn connections_of_pods_and_their_answers_are_counted_whatever_is_cached() {
    for net in BOTH {
        for cached in [false, true] {
            let fake = bypassing(cached);
            // The pair is known from here on, if it may be.
            assert_eq!(fake.out(&Build::udp(net.pod, net.server)), Seen::Pass);
            assert_eq!(counted(&fake, &net), [0; 4], "UDP says nothing");
            assert_eq!(fake.out(&net.syn()), Seen::Pass);
            assert_eq!(counted(&fake, &net), [1, 0, 0, 0]);
            let answers = [
                Build::tcp(net.server, net.pod, SYN | ACK),
                reset(net.server, net.pod, 0),
            ];
            for (n, answer) in (1..).zip(answers) {
                assert_eq!(fake.back(&answer), Seen::Pass);
                assert_eq!(counted(&fake, &net), [1, n, 0, 0]);
            }
            for flags in [ACK, FIN | ACK] {
                assert_eq!(
                    fake.out(&Build::tcp(net.pod, net.server, flags)),
                    Seen::Pass
                );
                assert_eq!(
                    fake.back(&Build::tcp(net.server, net.pod, flags)),
                    Seen::Pass
                );
            }
            assert_eq!(fake.back(&reset(net.server, net.pod, 7)), Seen::Pass);
            assert_eq!(counted(&fake, &net), [1, 2, 0, 0], "of a later packet");
        }
    }
}

#[test]
fn pings_are_counted_with_their_replies() {
    for net in BOTH {
        let fake = bypassing(true);
        let echo = Build::echo(net.pod, net.server);
        assert_eq!(fake.out(&echo), Seen::Pass);
        assert_eq!(fake.back(&echo.answer()), Seen::Pass);
        assert_eq!(counted(&fake, &net), [1, 1, 0, 0]);
    }
}

#[test]
fn the_nodes_own_are_counted_apart() {
    for net in BOTH {
        let fake = bypassing(true);
        assert_eq!(fake.out(&Build::tcp(net.node, net.server, SYN)), Seen::Pass);
        assert_eq!(counted(&fake, &net), [0, 0, 1, 0]);
        let answer = Build::tcp(net.server, net.node, SYN | ACK);
        assert_eq!(fake.back(&answer), Seen::Pass);
        assert_eq!(counted(&fake, &net), [0, 0, 1, 1]);
    }
}

#[test]
fn what_is_masqueraded_is_not_counted_nor_is_what_comes_unasked() {
    for net in BOTH {
        let fake = Fake::new();
        fake.out(&net.syn());
        fake.out(&Build::tcp(net.node, net.server, SYN));
        fake.back(&Build::tcp(net.server, net.node, SYN | ACK));
        assert_eq!(reach(&fake, &net), None);
        let fake = bypassing(true);
        fake.back(&Build::tcp(net.server, net.pod, SYN | ACK));
        assert_eq!(reach(&fake, &net), None, "no connection began");
    }
}
