//! Policy changes under connections that were bypassed, and under those that were masqueraded.

use crate::build::{ACK, Build, FIN, Kind, SYN};
use crate::node::{Node, becomes};
use netdp_user::datapath::OnReload;

/// Pod, server, and the pod's external endpoint.
const PAIRS: [(&str, &str, &str); 2] = [
    ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"),
    ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"),
];

const BYPASS: [&str; 2] = ["198.51.100.0/24", "2001:db8::/64"];

#[test]
fn a_bypassed_connection_goes_on_over_any_number_of_changes() {
    let mut node = Node::new();
    node.policy(&BYPASS);
    // Changes without a packet in between, a restart, a narrower policy.
    node.policy(&[]);
    node.policy(&["10.0.0.0/8"]);
    node.stop();
    node.start().expect("a second agent");
    node.policy(&["198.51.100.128/25", "2001:db8:0:0:8000::/65"]);
    for (pod, server, wire) in PAIRS {
        let data = Build::tcp(pod, server, ACK);
        assert_eq!(node.out(&data), becomes(&data));
        let other = Build::tcp(pod, &server.replace("443", "80"), SYN);
        assert_eq!(node.out(&other), becomes(&other.from(wire)), "a new one");
    }
    assert_eq!(node.flows().len(), 2);
    // The policy shown is the one in force.
    let shown = node.datapath().maps().policy().expect("the policy");
    let shown: Vec<String> = shown.iter().map(|(net, _)| net.to_string()).collect();
    assert_eq!(
        shown,
        ["2001:db8:0:0:8000::/65", "198.51.100.128/25", "0.0.0.0/0"]
    );
    // The history expires; flows seen since then continue.
    node.datapath().expire_history().expect("the policy");
    for (pod, server, wire) in PAIRS {
        let data = Build::tcp(pod, server, ACK);
        assert_eq!(node.out(&data), becomes(&data));
        let silent = Build::tcp(pod, &server.replace("443", "22"), ACK);
        assert_eq!(node.out(&silent), becomes(&silent.from(wire)), "a pickup");
    }
}

#[test]
fn cutover_ends_bypassed_connections_at_once() {
    let mut node = Node::with(|setup| setup.on_reload = OnReload::Cutover);
    node.policy(&BYPASS);
    node.policy(&[]);
    for (pod, server, wire) in PAIRS {
        let data = Build::tcp(pod, server, ACK);
        assert_eq!(node.out(&data), becomes(&data.from(wire)));
    }
}

#[test]
fn drain_ends_bypassed_connections_when_they_are_silent() {
    let mut node = Node::with(|setup| setup.on_reload = OnReload::Drain);
    node.policy(&BYPASS);
    node.policy(&[]);
    for (pod, server, _) in PAIRS {
        let data = Build::tcp(pod, server, ACK);
        assert_eq!(node.out(&data), becomes(&data));
    }
    node.datapath().expire_history().expect("the policy");
    for (time, kept) in [(29, true), (58, true), (90, false)] {
        node.at(time);
        for (pod, server, wire) in PAIRS {
            let data = Build::tcp(pod, server, ACK);
            let wanted = if kept { data.clone() } else { data.from(wire) };
            assert_eq!(node.out(&data), becomes(&wanted), "after {time} s");
        }
    }
}

/// The first policy of a node.
#[test]
fn without_an_earlier_policy_a_connection_is_picked_up() {
    let mut node = Node::new();
    for (pod, server, wire) in PAIRS {
        let data = Build::tcp(pod, server, ACK);
        assert_eq!(node.out(&data), becomes(&data.from(wire)));
    }
}

/// Changes back and forth: each new connection on the same ports follows the policy of its time, a
/// live one that of its own.
#[test]
fn each_new_connection_by_the_same_ports_is_judged_anew() {
    let mut node = Node::new();
    for round in 0..4u32 {
        let bypassed = round % 2 == 1;
        node.policy(if bypassed { &BYPASS } else { &[] });
        for (pod, server, wire) in PAIRS {
            let source = if bypassed { pod } else { wire };
            let mut syn = Build::tcp(pod, server, SYN);
            syn.kind = Kind::Tcp {
                flags: SYN,
                seq: 1_000 + 100_000 * round,
                ack: 0,
            };
            assert_eq!(node.out(&syn), becomes(&syn.from(source)), "{round}");
            // A retransmission, whatever the policy is by then.
            node.policy(if bypassed { &[] } else { &BYPASS });
            if !bypassed {
                assert_eq!(node.out(&syn), becomes(&syn.from(source)), "{round}: again");
            }
            let answer = syn.from(source).answer();
            assert_eq!(node.back(&answer), becomes(&answer.to(pod)), "{round}");
            let data = Build::tcp(pod, server, ACK);
            assert_eq!(
                node.out(&data),
                becomes(&data.from(source)),
                "{round}: data"
            );
            let fin = Build::tcp(pod, server, FIN | ACK);
            assert_eq!(node.out(&fin), becomes(&fin.from(source)), "{round}: FIN");
            let mut other = fin.from(source).answer();
            other.kind = Kind::Tcp {
                flags: FIN | ACK,
                seq: 2_000,
                ack: 1_001,
            };
            assert_eq!(node.back(&other), becomes(&other.to(pod)), "{round}: FIN");
            node.policy(if bypassed { &BYPASS } else { &[] });
        }
    }
}
