//! Selection of links.

use netdp_common::layout::Family;

use super::super::{LinkLayer, Patterns, Selection, local_addresses, select};
use super::{Net, names};

fn two_nics() -> Net {
    let mut net = Net::new();
    net.link("eth0");
    net.link("eth1");
    net.link("cni0").kind = Some("bridge".into());
    net.addr("eth0", "10.1.0.4/16");
    net.addr("eth1", "192.168.7.4/24");
    net.addr("cni0", "172.16.0.1/24");
    net.route4("eth0", "10.1.0.1");
    net
}

#[test]
fn the_default_route_chooses() {
    let selected = two_nics().by_role(&[], false);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.reason, None);
}

#[test]
fn every_link_with_a_default_route_is_chosen_whatever_its_metric() {
    let mut net = two_nics();
    net.route(Family::V4, "eth1", Some("192.168.7.1"), 200);
    assert_eq!(names(&net.by_role(&[], false)), ["eth0", "eth1"]);
}

#[test]
fn an_uplink_stays_one_while_it_exists() {
    let mut net = two_nics();
    net.0.default_routes.clear();
    let eth1 = net.0.links.iter().find(|link| link.name == "eth1").unwrap();
    let selection = Selection {
        keep: [eth1.ifindex, 4711].into(),
        ..Selection::default()
    };
    let selected = select(&net.0, &selection);
    assert_eq!(names(&selected), ["eth1"]);
    assert_eq!(selected.reason, None);
}

#[test]
fn an_address_of_the_node_chooses_beside_the_default_route() {
    let selected = two_nics().by_role(&["192.168.7.4", "203.0.113.9"], false);
    assert_eq!(names(&selected), ["eth0", "eth1"]);
}

#[test]
fn an_ipv6_default_route_chooses_only_where_ipv6_is_translated() {
    let mut net = two_nics();
    net.addr("eth1", "2001:db8::4/64");
    net.route6("eth1", "fe80::1");
    assert_eq!(names(&net.by_role(&[], false)), ["eth0"]);
    let selected = net.by_role(&[], true);
    assert_eq!(names(&selected), ["eth0", "eth1"]);
    assert_eq!(selected.uplinks[1].v6, Some("2001:db8::4".parse().unwrap()));
}

#[test]
fn without_ipv6_an_uplink_has_no_ipv6_address() {
    let mut net = two_nics();
    net.addr("eth0", "2001:db8::4/64");
    assert_eq!(net.by_role(&[], false).uplinks[0].v6, None);
}

#[test]
fn loopback_is_never_an_uplink() {
    let mut net = Net::new();
    net.addr("lo", "10.0.0.1/32");
    net.route(Family::V4, "lo", None, 0);
    assert_eq!(names(&net.by_role(&["10.0.0.1"], true)), [""; 0]);
    let selected = net.by_name(&["l*"]);
    assert_eq!(names(&selected), [""; 0]);
    assert_eq!(selected.unmatched, ["l*"]);
}

#[test]
fn the_bond_stands_for_its_members() {
    let mut net = Net::new();
    net.link("eth0");
    net.link("eth1");
    net.master("bond0", "bond", &["eth0", "eth1"]);
    net.addr("eth0", "10.1.0.4/16");
    net.route4("bond0", "10.1.0.1");
    assert_eq!(names(&net.by_role(&["10.1.0.4"], false)), ["bond0"]);
    assert_eq!(names(&net.by_name(&["eth*", "bond0"])), ["bond0"]);
}

#[test]
fn the_bridge_above_the_bond_stands_for_both() {
    let mut net = Net::new();
    net.link("eth0");
    net.master("bond0", "bond", &["eth0"]);
    net.master("br0", "bridge", &["bond0"]);
    net.route4("eth0", "10.1.0.1");
    assert_eq!(names(&net.by_role(&[], false)), ["br0"]);
    assert_eq!(names(&net.by_name(&["eth0", "br0"])), ["br0"]);
}

#[test]
fn a_member_that_is_named_alone_is_taken_at_its_word() {
    let mut net = Net::new();
    net.link("eth0");
    net.master("br0", "bridge", &["eth0"]);
    assert_eq!(names(&net.by_name(&["eth0"])), ["eth0"]);
}

#[test]
fn a_link_in_a_vrf_stays() {
    let mut net = Net::new();
    net.link("eth0");
    net.link("eth1");
    net.master("bond0", "bond", &["eth1"]);
    net.master("vrf-red", "vrf", &["eth0", "bond0"]);
    net.addr("eth0", "10.1.0.4/16");
    net.addr("bond0", "10.2.0.4/16");
    net.route4("eth1", "10.2.0.1");
    assert_eq!(names(&net.by_role(&["10.1.0.4"], false)), ["eth0", "bond0"]);
    assert_eq!(names(&net.by_name(&["eth0", "vrf-*"])), ["eth0"]);
}

#[test]
fn names_and_globs_choose_and_the_unmatched_are_reported() {
    let net = two_nics();
    let selected = net.by_name(&["eth[1-9]", "ens*", "wg0", "cni0"]);
    assert_eq!(names(&selected), ["eth1", "cni0"]);
    assert_eq!(selected.unmatched, ["ens*", "wg0"]);
    assert_eq!(selected.reason, None);
    assert_eq!(
        names(&net.by_name(&["eth"])),
        [""; 0],
        "a name is not a prefix"
    );
    assert_eq!(names(&net.by_name(&["{eth0,eth1}"])), ["eth0", "eth1"]);
}

#[test]
fn a_malformed_glob_is_refused_by_name() {
    let error = Patterns::parse("--uplink", &["eth0", "eth[0"]).unwrap_err();
    assert!(
        format!("{error:#}").contains("--uplink \"eth[0\""),
        "{error:#}"
    );
}

#[test]
fn no_uplink_comes_with_a_reason() {
    let mut net = Net::new();
    net.link("eth0");
    let reason = net.by_role(&[], false).reason.unwrap();
    assert!(reason.contains("IPv4 default route"), "{reason}");
    let reason = net.by_role(&["10.1.0.4"], true).reason.unwrap();
    assert!(
        reason.contains("IPv4 or IPv6") && reason.contains("(10.1.0.4)"),
        "{reason}"
    );
    let reason = net.by_name(&["ens*", "wg0"]).reason.unwrap();
    assert!(reason.contains("--uplink ens*, wg0"), "{reason}");
}

#[test]
fn an_uplink_has_its_state_and_link_layer() {
    let mut net = two_nics();
    net.0.links[1].running = false;
    net.link("wg0").link_layer = LinkLayer::None;
    let uplinks = net.by_name(&["eth0", "wg0"]).uplinks;
    assert_eq!(
        (uplinks[0].up, uplinks[0].link_layer),
        (false, LinkLayer::Ethernet)
    );
    assert_eq!(
        (uplinks[1].up, uplinks[1].link_layer),
        (true, LinkLayer::None)
    );
    assert_eq!(uplinks[1].v4, None);
}

#[test]
fn a_loop_of_masters_does_not_hang() {
    let mut net = Net::new();
    net.link("a");
    net.link("b");
    net.0.links[1].master = Some(3);
    net.0.links[2].master = Some(2);
    net.route4("a", "10.0.0.1");
    assert_eq!(net.by_role(&[], false).uplinks.len(), 1);
}

#[test]
fn local_addresses_are_those_of_every_link() {
    let mut net = two_nics();
    net.addr_with("eth0", "10.1.0.5/16", |addr| addr.flags.secondary = true);
    let local: Vec<String> = local_addresses(&net.0)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        local,
        [
            "10.1.0.4",
            "10.1.0.5",
            "127.0.0.1",
            "172.16.0.1",
            "192.168.7.4",
            "::1"
        ]
    );
}
