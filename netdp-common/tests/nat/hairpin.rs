//! Hairpin: a pod sends to another pod's external endpoint.

use super::{BOTH, Net};
use netdp_common::layout::{
    DropReason, MAPPING_HANDED_OVER, SETTING_HAIRPIN, SETTING_UDP_ENDPOINTS, proto,
};
use testkit::build::{ACK, Build, RST, SYN};
use testkit::fake::{Fake, Turned, tuple_of, turned};

/// Returns a node on which both pods have a mapping to one server, the second with a changed port.
fn met(net: &Net, first: &Build) -> Fake {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_HAIRPIN | SETTING_UDP_ENDPOINTS;
    fake.out(first);
    fake.out(&first.from(&other(net)));
    fake
}

/// Returns the second pod's endpoint; `other_wire` returns its external one.
fn other(net: &Net) -> String {
    net.other_pod.replace("4000", "5000")
}

fn other_wire(net: &Net) -> String {
    net.node.replace("4000", "5000")
}

/// Returns each pod's packet to the other's external endpoint.
fn pair(net: &Net, first: &Build) -> (Build, Build) {
    (
        first.to(&other_wire(net)),
        first.from(&other(net)).to(net.node),
    )
}

#[test]
fn two_pods_that_ask_for_each_other_meet() {
    for net in BOTH {
        for first in [net.udp(), net.syn()] {
            let fake = met(&net, &first);
            let (there, back) = pair(&net, &first);
            let unsolicited = Turned::Drop(DropReason::Unsolicited);
            assert_eq!(fake.hairpin(&there), unsolicited, "{first:?}");
            for _ in 0..2 {
                let seen = fake.hairpin(&back);
                assert_eq!(seen, turned(&other_wire(&net), net.pod), "{first:?}");
                let seen = fake.hairpin(&there);
                assert_eq!(seen, turned(net.node, &other(&net)), "{first:?}");
            }
            super::assert_paired(&fake);
        }
    }
}

#[test]
fn a_pod_reaches_itself() {
    for net in BOTH {
        let fake = met(&net, &net.udp());
        let own = net.udp().to(net.node);
        assert_eq!(fake.hairpin(&own), turned(net.node, net.pod));
    }
}

/// Each pod has its own share.
#[test]
fn flows_to_other_pods_count_for_the_pod_that_begins_them() {
    for net in BOTH {
        let first = net.udp();
        let mut fake = met(&net, &first);
        // An answered flow is not evicted.
        fake.back(&first.from(net.node).answer());
        let own = first.to(net.node);
        fake.limits.flows = 1;
        assert_eq!(fake.hairpin(&own), Turned::Drop(DropReason::PodLimit));
        fake.limits.flows = 2;
        assert_eq!(fake.hairpin(&own), turned(net.node, net.pod));
    }
}

#[test]
fn a_third_pod_that_was_not_asked_does_not_get_through() {
    for net in BOTH {
        let fake = met(&net, &net.udp());
        let (there, back) = pair(&net, &net.udp());
        fake.hairpin(&there);
        fake.hairpin(&back);
        let third = there.from(&net.pod.replace("4000", "6000"));
        assert_eq!(fake.hairpin(&third), Turned::Drop(DropReason::Unsolicited));
    }
}

#[test]
fn what_is_the_nodes_is_left_alone() {
    for net in BOTH {
        for first in [net.udp(), net.syn()] {
            let mut fake = met(&net, &first);
            let (there, _) = pair(&net, &first);
            let elsewhere = first.to(&net.node.replace("4000", "22"));
            assert_eq!(fake.hairpin(&elsewhere), Turned::Pass, "no pod's port");
            assert_eq!(fake.hairpin(&net.syn()), Turned::Pass, "not to the node");
            let ping = net.echo(7).to(&format!("{}:0", net.node_ip));
            assert_eq!(fake.hairpin(&ping), Turned::Pass);
            fake.listeners.insert(5000);
            assert_eq!(fake.hairpin(&there), Turned::Pass, "a listener");
            assert_eq!(fake.snat.len(), 2, "no mapping was made");
        }
    }
}

/// By then the source is rewritten: it is too late to leave the packet to the node.
#[test]
fn what_turns_out_to_be_no_pods_is_dropped() {
    for net in BOTH {
        let (there, back) = pair(&net, &net.udp());
        let unsolicited = Turned::Drop(DropReason::Unsolicited);
        // Netfilter has taken over the mapping of the pod that is addressed.
        let fake = met(&net, &net.udp());
        assert_eq!(fake.hairpin(&there), unsolicited);
        let wire = tuple_of(&back.from(&other_wire(&net)));
        let mut half = fake.rev_snat.get(&wire).expect("a reply half");
        half.flags |= MAPPING_HANDED_OVER;
        fake.rev_snat.remove(&wire);
        fake.rev_snat.insert(&wire, &half).expect("room");
        assert_eq!(fake.hairpin(&back), unsolicited);
        assert_eq!(fake.counters().drops.unsolicited, 2);
        assert!(fake.rev_snat.get(&wire).is_some());
        // The node has begun to answer on its port, which ends the mapping.
        let mut fake = met(&net, &net.udp());
        assert_eq!(fake.hairpin(&there), unsolicited);
        fake.node_ports.insert((proto::UDP, 4000));
        assert_eq!(fake.hairpin(&back), unsolicited);
        assert_eq!(fake.counters().drops.unsolicited, 2);
        assert!(fake.rev_snat.get(&wire).is_none());
    }
}

#[test]
fn an_endpoint_that_is_given_up_is_the_nodes_again() {
    for net in BOTH {
        let fake = met(&net, &net.udp());
        for (tuple, _) in fake.snat.all() {
            fake.snat.remove(&tuple);
        }
        for (wire, _) in fake.rev_snat.all() {
            fake.rev_snat.remove(&wire);
        }
        let (there, _) = pair(&net, &net.udp());
        assert_eq!(fake.hairpin(&there), Turned::Pass);
    }
}

#[test]
fn only_a_first_packet_begins() {
    for net in BOTH {
        let fake = met(&net, &net.syn());
        let (there, _) = pair(&net, &net.syn());
        for flags in [ACK, SYN | ACK, RST] {
            let packet = Build::tcp(&there.src.to_string(), &there.dst.to_string(), flags);
            assert_eq!(fake.hairpin(&packet), Turned::Pass, "{flags:#x}");
        }
    }
}

#[test]
fn an_error_finds_its_way_back() {
    for net in BOTH {
        let fake = met(&net, &net.udp());
        let (there, back) = pair(&net, &net.udp());
        fake.hairpin(&there);
        fake.hairpin(&back);
        fake.hairpin(&there);
        // With the source that the second pod saw.
        let seen = there.from(net.node).to(&other(&net));
        let error = Build::error(&other(&net), net.node, 3, &seen, 100);
        assert_eq!(fake.hairpin(&error), turned(&other_wire(&net), net.pod));
        let nothing = Build::error(
            &other(&net),
            net.node,
            3,
            &seen.from(&net.node.replace("4000", "9")),
            100,
        );
        assert_eq!(fake.hairpin(&nothing), Turned::Pass);
    }
}

#[test]
fn without_the_option_nothing_is_remembered() {
    let fake = super::opened(&super::V4.udp());
    assert!(fake.wire_endpoints.borrow().is_empty());
}
