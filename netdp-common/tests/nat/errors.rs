//! ICMP errors, by the packet that they quote.

use super::{BOTH, Net, V4, V6, drop_of, halves, opened, wire_of};
use netdp_common::layout::{Action, DropReason};
use testkit::build::{Build, Kind};
use testkit::fake::{Fake, Seen};

fn error_to(text: &str) -> Seen {
    Seen::Error(text.parse().expect("ADDRESS:PORT"))
}

/// Returns a router on the path that sends errors, in `net`'s family.
fn router(net: &Net) -> &'static str {
    if net.pod.starts_with('[') {
        "[2001:db8:9::1]:0"
    } else {
        "203.0.113.1:0"
    }
}

/// Returns the types of ICMP errors.
fn messages(net: &Net) -> &'static [u8] {
    if net.pod.starts_with('[') {
        &[1, 2, 3, 4]
    } else {
        &[3, 11, 12]
    }
}

/// Returns the minimum number of bytes that an error must quote.
fn least(packet: &Build) -> usize {
    let ip = if packet.src.is_ipv4() {
        20 + packet.options.len()
    } else {
        40
    };
    ip + 8
}

fn openings(net: &Net) -> Vec<Build> {
    let others = [Kind::UdpLite, Kind::Other(132), Kind::Other(47)];
    let others = others.map(|kind| Build::new(net.pod, net.server, kind));
    let mut all = [net.openings().to_vec(), others.to_vec()].concat();
    if net.pod.starts_with('[') {
        let mut extended = net.udp();
        extended.extensions = vec![0, 60];
        all.push(extended);
    } else {
        let mut options = net.syn();
        options.options = vec![1; 40];
        all.push(options);
    }
    all
}

#[test]
fn an_error_about_what_a_pod_sent_reaches_the_pod() {
    for net in BOTH {
        for packet in openings(&net) {
            let fake = opened(&packet);
            fake.advance(10);
            let before = halves(&fake, &packet);
            let pod = match packet.kind {
                Kind::Other(47) => format!("{}:0", net.pod_ip),
                _ => net.pod.to_owned(),
            };
            let sent = packet.from(net.node);
            for message in messages(&net) {
                for from in [router(&net), net.server] {
                    let whole = sent.bytes().len();
                    for len in [least(&sent), whole] {
                        // Extension headers precede the eight bytes.
                        let len = (len + 8 * sent.extensions.len()).min(whole);
                        let error = Build::error(from, net.node, *message, &sent, len);
                        assert_eq!(fake.back(&error), error_to(&pod), "{error:?}");
                    }
                }
            }
            let count = 4 * messages(&net).len() as u64;
            assert_eq!(fake.counters().errors_translated, count);
            assert_eq!(halves(&fake, &packet), before, "an error refreshes nothing");
        }
    }
}

#[test]
fn an_error_names_the_pod_behind_a_changed_port() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = opened(&packet);
            let rival = packet.from(net.other_pod);
            let wire = wire_of(fake.out(&rival));
            assert_ne!(wire, net.node);
            let message = messages(&net)[0];
            for (wire, pod) in [(wire.as_str(), net.other_pod), (net.node, net.pod)] {
                let sent = packet.from(wire);
                let error = Build::error(router(&net), net.node, message, &sent, least(&sent));
                assert_eq!(fake.back(&error), error_to(pod));
            }
        }
    }
}

#[test]
fn an_error_to_nobody_is_left_to_the_node() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let pings = net.echo(4000).from(net.node);
        assert_eq!(fake.out(&pings), Seen::Pass, "the node's own ping");
        for about in [
            net.syn().from(net.node),
            net.udp().from(net.node).to(net.other_server),
            net.udp().from(&net.node.replace(":4000", ":4001")),
            // A quoted packet in the wrong direction: it came in instead of going out.
            net.udp().from(net.node).answer(),
            pings,
        ] {
            for message in messages(&net) {
                let error = Build::error(router(&net), net.node, *message, &about, 200);
                assert_eq!(fake.back(&error), Seen::Pass, "{error:?}");
            }
        }
        // Too short to contain a tuple.
        let about = net.udp().from(net.node);
        let cut = least(&about) - 1;
        let error = Build::error(router(&net), net.node, messages(&net)[0], &about, cut);
        assert_eq!(fake.back(&error), Seen::Pass);
        assert_eq!(fake.counters().errors_translated, 0);
    }
}

#[test]
fn a_host_flow_that_gave_way_gets_its_errors() {
    for net in BOTH {
        let fake = opened(&net.udp());
        let host = net.udp().from(net.node);
        let wire = wire_of(fake.out(&host));
        let sent = host.from(&wire);
        let error = Build::error(router(&net), net.node, messages(&net)[0], &sent, 200);
        assert_eq!(fake.back(&error), error_to(net.node));
    }
}

#[test]
fn a_pods_error_about_a_reply_leaves_as_the_node() {
    for net in BOTH {
        for packet in openings(&net) {
            let fake = opened(&packet);
            let before = halves(&fake, &packet);
            let reply = packet.answer();
            let wire = match packet.kind {
                Kind::Other(47) => format!("{}:0", net.node_ip),
                _ => net.node.to_owned(),
            };
            for message in messages(&net) {
                let error = Build::error(net.pod, net.server, *message, &reply, 200);
                assert_eq!(fake.out(&error), error_to(&wire), "{error:?}");
                // The node's own error, about a reply that it could not deliver.
                let own = Build::error(net.node, net.server, *message, &reply, 200);
                let inner = Seen::Inner(wire.parse().expect("ADDRESS:PORT"));
                assert_eq!(fake.out(&own), inner, "{own:?}");
            }
            assert_eq!(halves(&fake, &packet), before);
            let count = 2 * messages(&net).len() as u64;
            assert_eq!(fake.counters().errors_translated, count);
        }
    }
}

#[test]
fn a_pods_error_about_nothing_does_not_leave() {
    for (net, prefix) in [(V4, "0.0.0.0/0"), (V6, "::/0")] {
        let fake = Fake::new();
        let about = Build::udp(net.server, net.pod);
        let error = Build::error(net.pod, net.server, messages(&net)[0], &about, 200);
        assert_eq!(fake.out(&error), drop_of(DropReason::IcmpNoFlow));
        // An error about an inbound flow leaves unmodified.
        assert_eq!(fake.back(&about), Seen::Pass);
        assert_eq!(fake.out(&error), Seen::Pass);
        assert_eq!(fake.counters().egress_replies.packets, 1);
        let own = Build::error(net.node, net.server, messages(&net)[0], &about, 200);
        assert_eq!(fake.out(&own), Seen::Pass, "the node's");
        let mut fake = Fake::new();
        assert_eq!(fake.out(&error), drop_of(DropReason::IcmpNoFlow));
        fake.rule(prefix, Action::Bypass);
        assert_eq!(fake.out(&error), Seen::Pass, "bypassed");
        assert_eq!(fake.counters().errors_translated, 0);
    }
}

/// The mapping may be older than the policy.
#[test]
fn errors_of_a_live_mapping_follow_it_whatever_the_policy_says_now() {
    for (net, prefix) in [(V4, "0.0.0.0/0"), (V6, "::/0")] {
        let mut fake = opened(&net.udp());
        fake.rule(prefix, Action::Bypass);
        let reply = net.udp().answer();
        let error = Build::error(net.pod, net.server, messages(&net)[0], &reply, 200);
        assert_eq!(fake.out(&error), error_to(net.node));
        let sent = net.udp().from(net.node);
        let error = Build::error(router(&net), net.node, messages(&net)[0], &sent, 200);
        assert_eq!(fake.back(&error), error_to(net.pod));
    }
}
