//! Routes to what is masqueraded make uplinks.

use super::super::LinkLayer;
use super::{Net, names};

/// A node with an uplink, a bridge and a wire to pods.
fn node() -> Net {
    let mut net = Net::new();
    net.link("eth0");
    net.addr("eth0", "10.1.0.4/16");
    net.route4("eth0", "10.1.0.1");
    net.leads("eth0", "10.1.0.0/16", false);
    net.leads("eth0", "0.0.0.0/0", true);
    for pod in ["veth0", "cali0"] {
        net.link(pod).kind = Some("veth".into());
    }
    net.master("cni0", "bridge", &["veth0"]);
    net.addr("cni0", "172.16.0.1/24");
    net.leads("cni0", "172.16.0.0/24", false);
    net.leads("cali0", "172.16.1.7/32", false);
    net
}

#[test]
fn routes_of_any_shape_choose() {
    for (destination, by_gateway) in [
        ("203.0.113.0/24", true),
        ("203.0.113.0/24", false),
        ("203.0.113.7/32", true),
        ("0.0.0.0/1", true),
        ("128.0.0.0/1", false),
        ("0.0.0.0/0", false),
        ("2001:db8::/32", true),
        ("2001:db8::7/128", false),
        ("::/1", false),
        // Bypassed in part.
        ("172.0.0.0/8", true),
    ] {
        for kind in [
            None,
            Some("wireguard"),
            Some("vxlan"),
            Some("tun"),
            Some("vlan"),
        ] {
            let mut net = node();
            assert_eq!(names(&net.by_routes(&[])), ["eth0"]);
            let link = net.link("out0");
            link.kind = kind.map(str::to_owned);
            link.link_layer = LinkLayer::None;
            net.leads("out0", destination, by_gateway);
            let selected = net.by_routes(&[]);
            assert_eq!(names(&selected), ["eth0", "out0"], "{destination} {kind:?}");
            assert_eq!((selected.leaks, selected.guests), (vec![], vec![]));
        }
    }
}

#[test]
fn routes_to_what_is_bypassed_or_not_routed_choose_nothing() {
    let mut net = node();
    net.link("eth1");
    net.link("dummy0").kind = Some("dummy".into());
    net.leads("dummy0", "203.0.113.0/24", false);
    for destination in [
        "172.16.9.0/24",
        "10.1.2.0/24",
        "224.0.0.0/4",
        "fe80::/64",
        "ff00::/8",
    ] {
        net.leads("eth1", destination, true);
        net.leads("lo", "203.0.113.0/24", false);
    }
    assert_eq!(names(&net.by_routes(&[])), ["eth0"]);
    let mut net = node();
    net.link("eth1");
    net.leads("eth1", "2001:db8::/32", true);
    assert_eq!(names(&net.by_role(&[], false)), ["eth0"], "IPv6 is off");
}

#[test]
fn a_wire_with_a_network_is_an_uplink_and_one_with_hosts_is_a_guests() {
    let mut net = node();
    net.link("eth1").kind = Some("veth".into());
    net.leads("eth1", "203.0.113.7/32", false);
    let selected = net.by_routes(&[]);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.guests, ["eth1"]);
    net.leads("eth1", "10.1.9.0/24", false);
    assert_eq!(names(&net.by_routes(&[])), ["eth0", "eth1"]);
}

/// A policy that masquerades pods themselves: what comes back for them leaves by these links.
#[test]
fn links_to_pods_are_never_uplinks_and_said_to_be_left_out() {
    let mut net = node();
    let selected = net.with_bypassed(&[], &[]);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.guests, ["cali0", "cni0"]);
    assert_eq!(selected.leaks, [""; 0]);
    // A pod is a router for others: nothing can be done, and that is said.
    net.leads("cni0", "203.0.113.0/24", true);
    let selected = net.with_bypassed(&[], &[]);
    assert_eq!(names(&selected), ["eth0"]);
    assert!(
        selected.leaks[0].contains("cni0 is no uplink"),
        "{selected:?}"
    );
    assert!(selected.leaks[0].contains("203.0.113.0/24"), "{selected:?}");
    // Where pods are bypassed it can.
    let selected = net.by_routes(&[]);
    assert_eq!(names(&selected), ["eth0", "cni0"]);
    assert_eq!(selected.leaks, [""; 0]);
}

#[test]
fn what_was_an_uplink_is_none_once_it_leads_to_masqueraded_guests() {
    let net = node();
    let keep = |net: &Net, bypassed: &[&str]| {
        let mut selection = net.selection(bypassed, &[]);
        selection.keep = [net.index("cni0")].into();
        super::choose(&net.0, &selection)
    };
    let bypassed = ["172.16.0.0/16"];
    assert_eq!(names(&keep(&net, &bypassed)), ["eth0", "cni0"]);
    assert_eq!(names(&keep(&net, &[])), ["eth0"]);
}

#[test]
fn a_bridge_that_leads_out_of_the_machine_is_an_uplink() {
    let mut net = node();
    net.link("eth1");
    net.link("tap0").kind = Some("tun".into());
    net.master("br0", "bridge", &["eth1", "tap0"]);
    net.leads("br0", "203.0.113.0/24", false);
    assert_eq!(names(&net.by_routes(&[])), ["eth0", "br0"]);
    net.leads("eth1", "198.51.100.0/24", true);
    assert_eq!(
        names(&net.by_routes(&[])),
        ["eth0", "br0"],
        "the port's is the bridge's"
    );
}

#[test]
fn who_names_uplinks_is_told_of_other_ways_out() {
    let mut net = node();
    net.link("wg0").kind = Some("wireguard".into());
    net.leads("wg0", "203.0.113.0/24", false);
    let selected = net.by_routes(&["eth0"]);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.leaks.len(), 1);
    assert!(
        selected.leaks[0].starts_with("wg0 is no uplink, and the node routes to 203.0.113.0/24")
    );
    let selected = net.by_routes(&["eth0", "wg0"]);
    assert_eq!(names(&selected), ["eth0", "wg0"]);
    assert_eq!(selected.leaks, [""; 0]);
    let selected = net.with_bypassed(
        &["10.1.0.0/16", "172.16.0.0/16", "203.0.113.0/24"],
        &["eth0"],
    );
    assert_eq!(selected.leaks, [""; 0]);
}

#[test]
fn what_a_lower_uplink_translates_is_no_leak() {
    let mut net = node();
    net.on("eth0", "eth0.100", "vlan");
    net.leads("eth0.100", "203.0.113.0/24", false);
    net.on("eth0", "mv0", "macvlan");
    net.leads("mv0", "198.51.100.0/24", false);
    assert_eq!(
        net.by_routes(&["eth0"]).leaks,
        [""; 0],
        "it translates what has a tag too"
    );
    net.on("eth0", "eth0.200", "vlan");
    let selected = net.by_routes(&["eth0", "eth0.200"]);
    assert_eq!(
        selected.leaks.len(),
        1,
        "tagged packets of others are left alone"
    );
    assert!(selected.leaks[0].starts_with("eth0.100 "), "{selected:?}");
    // By default each VLAN has its own.
    let selected = net.by_routes(&[]);
    assert_eq!(names(&selected), ["eth0", "eth0.100"]);
    assert!(selected.uplinks[0].untagged && !selected.uplinks[1].untagged);
    assert_eq!(selected.leaks, [""; 0]);
}
