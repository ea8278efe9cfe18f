//! Uplinks that lack an address.

use std::collections::BTreeSet;

use netdp_common::layout::Family;

use super::super::{FormerFamilies, MissingAddress, Patterns, Selection, missing_addresses};
use super::{Net, choose};

const PODS: [&str; 2] = ["172.16.0.0/16", "fd00:172::/64"];

/// Returns the findings, where `eth0` and `eth1` had addresses of these families.
fn found(
    net: &Net,
    had: &[(&str, Family)],
    change: impl FnOnce(&mut Selection),
) -> Vec<MissingAddress> {
    let mut selection = net.selection(&PODS, &["eth*"]);
    change(&mut selection);
    let mut known = FormerFamilies::new();
    for (name, family) in had {
        let families: &mut BTreeSet<_> = known.entry((*name).to_owned()).or_default();
        families.insert(*family);
    }
    let uplinks = choose(&net.0, &selection).uplinks;
    missing_addresses(&net.0, &selection, &uplinks, &known)
}

fn eth(count: usize) -> Net {
    let mut net = Net::new();
    for name in ["eth0", "eth1"].iter().take(count) {
        net.link(name);
    }
    net
}

#[test]
fn the_only_address_of_a_family_is_missed_though_its_routes_went_along() {
    for (family, other) in [(Family::V4, "fd00:1::10/64"), (Family::V6, "10.1.0.10/16")] {
        let mut net = eth(1);
        net.addr("eth0", other);
        let missing = found(&net, &[("eth0", family)], |_| ());
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(
            missing[0].severe && missing[0].lost && !missing[0].routed,
            "{missing:?}"
        );
        assert_eq!(
            (missing[0].uplink.as_str(), missing[0].family),
            ("eth0", family)
        );
        let text = missing[0].describe(false);
        assert!(
            text.contains(&format!("eth0 has no {family} address any more")),
            "{text}"
        );
        assert!(text.contains(&format!("{family} packets")), "{text}");
        // An address that never existed is not missed.
        assert_eq!(found(&net, &[], |_| ()), []);
    }
}

#[test]
fn a_family_that_the_node_is_known_by_is_missed_from_the_start() {
    let mut net = eth(1);
    net.addr("eth0", "fd00:1::10/64");
    let known = |selection: &mut Selection| {
        selection.node_addrs = vec!["10.1.0.10".parse().unwrap()];
    };
    // Named uplinks: this family may be meant to leave elsewhere.
    assert_eq!(found(&net, &[], known), []);
    let by_role = |selection: &mut Selection| {
        known(selection);
        selection.patterns = Patterns::default();
        selection.names = BTreeSet::from(["eth0".to_owned()]);
    };
    let missing = found(&net, &[], by_role);
    assert!(
        missing.len() == 1 && missing[0].severe && !missing[0].lost,
        "{missing:?}"
    );
    assert!(!missing[0].describe(false).contains("any more"));
}

#[test]
fn one_of_two_uplinks_is_severe_only_where_routes_lead_by_it() {
    let mut net = eth(2);
    net.addr("eth0", "10.1.0.10/16");
    net.addr("eth0", "fd00:1::10/64");
    let had = [
        ("eth0", Family::V4),
        ("eth1", Family::V4),
        ("eth1", Family::V6),
    ];
    let severe = |missing: &[MissingAddress]| -> Vec<(Family, bool)> {
        missing.iter().map(|it| (it.family, it.severe)).collect()
    };
    let missing = found(&net, &had, |_| ());
    assert_eq!(severe(&missing), [(Family::V4, false), (Family::V6, false)]);
    assert!(
        missing[0]
            .describe(false)
            .contains("no IPv4 route leads there")
    );
    net.leads("eth1", "fd00:2::/64", true);
    let missing = found(&net, &had, |_| ());
    assert_eq!(severe(&missing), [(Family::V4, false), (Family::V6, true)]);
    // With a source of its own the route needs no address of the uplink.
    net.0.routes[0].prefsrc = Some("fd00:1::10".parse().unwrap());
    let missing = found(&net, &had, |_| ());
    assert_eq!(severe(&missing), [(Family::V4, false), (Family::V6, false)]);
}

#[test]
fn an_uplink_that_never_had_an_address_is_reported_if_masqueraded_routes_use_it() {
    let mut net = eth(2);
    net.addr("eth0", "10.1.0.10/16");
    net.leads("eth1", "172.16.5.0/24", true);
    assert_eq!(found(&net, &[], |_| ()), [], "pods are bypassed");
    net.leads("eth1", "10.9.0.0/16", true);
    let missing = found(&net, &[], |_| ());
    assert!(
        missing.len() == 1 && missing[0].routed && !missing[0].severe,
        "{missing:?}"
    );
}

#[test]
fn a_family_that_is_not_masqueraded_is_not_missed() {
    let mut net = eth(1);
    net.addr("eth0", "10.1.0.10/16");
    net.leads("eth0", "::/0", true);
    let off = |selection: &mut Selection| selection.enable_ipv6 = false;
    assert_eq!(found(&net, &[("eth0", Family::V6)], off), []);
}
