//! The caches of address pairs: packets between bypassed pairs pass without a lookup, and new flows
//! between masqueraded pairs look up little.

use super::{BOTH, Net, becomes};
use netdp_common::layout::{Action, DropReason, SETTING_ANY_SOURCE, SETTING_BYPASS_CACHE_VALID};
use testkit::build::{ACK, Build, SYN};
use testkit::fake::{Fake, Origin, Seen, tuple_of};

/// Returns a node that bypasses the server and has no older mapping.
fn bypassing(net: &Net) -> Fake {
    let mut fake = Fake::new();
    fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
    let server = net.server_ip.trim_matches(['[', ']']);
    let len = if server.contains(':') { 128 } else { 32 };
    fake.rule(&format!("{server}/{len}"), Action::Bypass);
    fake
}

/// Starts a new epoch, as the agent does with each change.
fn change(fake: &mut Fake) {
    fake.policy.clear();
    fake.settings.flags &= !SETTING_BYPASS_CACHE_VALID;
    fake.settings.epoch += 1;
}

#[test]
fn both_directions_learn_from_each_other() {
    for net in BOTH {
        for outwards in [true, false] {
            let fake = bypassing(&net);
            let out = Build::tcp(net.pod, net.server, ACK);
            let back = Build::tcp(net.server, net.pod, ACK);
            if outwards {
                assert_eq!(fake.out(&out), Seen::Pass);
            } else {
                assert_eq!(fake.back(&back), Seen::Pass);
            }
            assert_eq!(fake.pairs().len(), 1);
            // Nothing else is looked up any more.
            let mut fake = fake;
            fake.policy.clear();
            assert_eq!(fake.out(&out), Seen::Pass);
            assert_eq!(fake.back(&back), Seen::Pass);
            assert_eq!(fake.pairs().len(), 1);
            assert!((fake.asked_len() + fake.live_len() == 0));
        }
    }
}

#[test]
fn a_change_ends_what_is_known() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        assert_eq!(fake.out(&net.syn()), Seen::Pass);
        change(&mut fake);
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        // Nor is the old entry valid again once no mapping is sticky.
        fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
    }
}

/// Requirement 6.4: the mapping is older than the policy.
#[test]
fn nothing_is_known_while_mappings_are_sticky() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        let policy = std::mem::take(&mut fake.policy);
        change(&mut fake);
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        fake.policy = policy;
        fake.settings.epoch += 1;
        let other = Build::udp(net.pod, net.server);
        assert_eq!(fake.out(&other), Seen::Pass);
        assert!(fake.pairs().is_empty());
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
    }
}

#[test]
fn the_nodes_own_traffic_and_masqueraded_flows_are_not_remembered() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        assert_eq!(fake.out(&Build::udp(net.node, net.server)), Seen::Pass);
        assert_eq!(fake.counters().egress_host.packets, 1);
        fake.policy.clear();
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        assert!(fake.pairs().is_empty());
    }
}

#[test]
fn fragments_are_looked_into() {
    for net in BOTH {
        let fake = bypassing(&net);
        assert_eq!(fake.out(&net.udp()), Seen::Pass);
        assert_eq!(fake.out(&net.udp().first()), Seen::Pass);
        assert_eq!(fake.fragments_len(), 1, "the later ones must find it");
    }
}

/// Returns a SYN of the pod's next port.
fn another(net: &Net, n: u16) -> Build {
    let mut pod: std::net::SocketAddr = net.pod.parse().expect("an endpoint");
    pod.set_port(pod.port() + n);
    Build::tcp(&pod.to_string(), net.server, SYN)
}

fn is_masqueraded(seen: &Seen) -> bool {
    matches!(seen, Seen::As(_))
}

#[test]
fn later_flows_between_masqueraded_addresses_look_up_no_policy() {
    for net in BOTH {
        let mut fake = Fake::new();
        assert!(is_masqueraded(&fake.out(&another(&net, 0))));
        // Behind the agent's back, so that the epoch stays.
        let server = net.server_ip.trim_matches(['[', ']']).to_owned();
        let len = if server.contains(':') { 128 } else { 32 };
        fake.rule(&format!("{server}/{len}"), Action::Bypass);
        assert!(is_masqueraded(&fake.out(&another(&net, 1))));
        fake.settings.epoch += 1;
        assert_eq!(fake.out(&another(&net, 2)), Seen::Pass);
        assert_eq!(fake.known_masqueraded.borrow().len(), 1);
    }
}

#[test]
fn a_pod_that_is_known_is_not_forged_from_another_interface() {
    for net in BOTH {
        let fake = Fake::new();
        assert!(is_masqueraded(&fake.out(&another(&net, 0))));
        fake.ingress_ifindex.set(8);
        fake.origins
            .borrow_mut()
            .insert(tuple_of(&another(&net, 0)).src, Origin::Elsewhere);
        assert_eq!(
            fake.out(&another(&net, 1)),
            Seen::Drop(DropReason::ForgedSource)
        );
        fake.ingress_ifindex.set(7);
        assert!(is_masqueraded(&fake.out(&another(&net, 2))));
    }
}

#[test]
fn an_address_that_becomes_the_nodes_is_no_longer_a_pods() {
    for net in BOTH {
        let mut fake = Fake::new();
        assert!(is_masqueraded(&fake.out(&another(&net, 0))));
        fake.local.insert(tuple_of(&another(&net, 0)).src);
        fake.settings.epoch += 1;
        assert_eq!(fake.out(&another(&net, 1)), Seen::Pass);
        assert_eq!(fake.counters().egress_host.packets, 1);
    }
}

#[test]
fn what_is_withheld_is_asked_of_the_policy_each_time() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.rule(
            if net.pod.starts_with('[') {
                "::/0"
            } else {
                "0.0.0.0/0"
            },
            Action::Withhold,
        );
        for n in 0..2 {
            assert_eq!(
                fake.out(&another(&net, n)),
                Seen::Drop(DropReason::IpsecPolicy)
            );
        }
        assert!(fake.known_masqueraded.borrow().is_empty());
    }
}

#[test]
fn known_flows_count_for_the_rule_that_decided() {
    for net in BOTH {
        let mut fake = Fake::new();
        let v4 = !net.pod.starts_with('[');
        fake.rule("192.0.2.0/24", Action::Bypass);
        fake.rule(if v4 { "0.0.0.0/0" } else { "::/0" }, Action::Masquerade);
        for n in 0..3 {
            assert!(is_masqueraded(&fake.out(&another(&net, n))));
        }
        assert_eq!(fake.rule_hits.borrow()[&1].flows, 3);
        assert_eq!(fake.rule_hits.borrow().len(), 1);
    }
}

/// While sources are not checked, a forged one passes; that says nothing about it once they are.
#[test]
fn nothing_is_known_of_sources_that_were_not_checked() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_ANY_SOURCE;
        fake.origins
            .borrow_mut()
            .insert(tuple_of(&another(&net, 0)).src, Origin::Elsewhere);
        assert!(is_masqueraded(&fake.out(&another(&net, 0))));
        // Without another epoch.
        fake.settings.flags &= !SETTING_ANY_SOURCE;
        assert_eq!(
            fake.out(&another(&net, 1)),
            Seen::Drop(DropReason::ForgedSource)
        );
    }
}

/// While the bypass cache may not be used, its pairs count and are no hits.
#[test]
fn pairs_count_while_they_are_no_hits() {
    for net in BOTH {
        let mut fake = bypassing(&net);
        fake.settings.flags &= !SETTING_BYPASS_CACHE_VALID;
        for n in 0..3 {
            assert_eq!(fake.out(&another(&net, n)), Seen::Pass);
        }
        assert!(fake.pairs().is_empty(), "none is a hit");
        assert!(fake.rule_hits.borrow().is_empty(), "counted in the pair");
        // Once it may be used, the pair becomes one of this epoch, and its hits go to the rule.
        fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
        assert_eq!(fake.out(&another(&net, 3)), Seen::Pass);
        assert_eq!(fake.pairs()[0].hits.packets, 1);
        assert_eq!(fake.pairs()[0].packets(), 4);
        assert_eq!(fake.rule_hits.borrow()[&0].bypassed.packets, 3);
    }
}
