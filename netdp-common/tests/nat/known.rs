//! The bypass cache: packets between cached address pairs pass without a lookup.

use super::{BOTH, Net, becomes};
use netdp_common::layout::{Action, SETTING_BYPASS_CACHE_VALID};
use testkit::build::{ACK, Build};
use testkit::fake::{Fake, Seen};

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
