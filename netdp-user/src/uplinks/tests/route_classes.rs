//! Uplinks by routes to masqueraded destinations.

use super::super::LinkLayer;
use super::{Net, names};

/// Returns a node with an uplink, a bridge and a point-to-point link to pods.
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

/// Whether they are uplinks by then or not.
#[test]
fn routes_of_tables_that_no_rule_leads_to_leak_nothing() {
    for (destination, part) in [
        ("203.0.113.0/24", "203.0.113.0/28"),
        ("2001:db8::/32", "2001:db8::/48"),
    ] {
        let mut net = node();
        net.link("eth1");
        net.leads("eth1", destination, true);
        let named = net.by_routes(&["eth0"]);
        assert!(named.leaks[0].contains(destination), "{named:?}");
        let last = net.0.routes.last_mut().unwrap();
        last.is_led_to = false;
        assert_eq!(net.by_routes(&["eth0"]).leaks, [""; 0]);
        // A rule may come at any time.
        assert_eq!(names(&net.by_routes(&[])), ["eth0", "eth1"]);
        // Another table has a smaller network there.
        net.leads("eth1", part, true);
        let named = net.by_routes(&["eth0"]);
        assert!(named.leaks[0].contains(part), "{named:?}");
    }
}

/// A policy that masquerades pods themselves: replies to them leave by these links.
#[test]
fn links_to_pods_are_never_uplinks_and_reported_as_left_out() {
    let mut net = node();
    let selected = net.with_bypassed(&[], &[]);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.guests, ["cali0", "cni0"]);
    assert_eq!(selected.leaks, [""; 0]);
    // A pod is a router for others: nothing can be done, which is reported.
    net.leads("cni0", "203.0.113.0/24", true);
    let selected = net.with_bypassed(&[], &[]);
    assert_eq!(names(&selected), ["eth0"]);
    assert!(
        selected.leaks[0].contains("cni0 is not an uplink"),
        "{selected:?}"
    );
    assert!(selected.leaks[0].contains("203.0.113.0/24"), "{selected:?}");
    // It can be an uplink if pods are bypassed.
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
fn other_paths_out_are_reported_if_uplinks_are_named() {
    let mut net = node();
    net.link("wg0").kind = Some("wireguard".into());
    net.leads("wg0", "203.0.113.0/24", false);
    let selected = net.by_routes(&["eth0"]);
    assert_eq!(names(&selected), ["eth0"]);
    assert_eq!(selected.leaks.len(), 1);
    assert!(selected.leaks[0].starts_with("wg0 is not an uplink, but the route to 203.0.113.0/24"));
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
    // By default each VLAN has its own uplink.
    let selected = net.by_routes(&[]);
    assert_eq!(names(&selected), ["eth0", "eth0.100"]);
    assert!(selected.uplinks[0].untagged && !selected.uplinks[1].untagged);
    assert_eq!(selected.leaks, [""; 0]);
}

/// The kernel looks a packet up again in the VRF's table, and it leaves by a member.
#[test]
fn a_vrf_device_is_no_uplink_and_its_members_are() {
    let mut net = node();
    net.link("eth1");
    net.master("vrf-red", "vrf", &["eth1"]);
    net.addr("eth1", "10.2.0.4/16");
    net.addr("vrf-red", "10.9.0.4/32");
    for (destination, leaked) in [("198.51.100.0/24", "0.0.0.0/0"), ("2001:db8::/32", "::/0")] {
        let mut net = Net(net.0.clone());
        net.leads("vrf-red", destination, false);
        assert_eq!(names(&net.by_routes(&[])), ["eth0"], "{destination}");
        net.leads("eth1", leaked, true);
        assert_eq!(names(&net.by_routes(&[])), ["eth0", "eth1"]);
        assert_eq!(net.by_routes(&["eth*"]).leaks, [""; 0]);
    }
    // Not by a default route or an address of the node either, nor because it was one before.
    net.route(super::Family::V4, "vrf-red", None, 0);
    let mut selection = net.selection(&["172.16.0.0/16", "10.0.0.0/8"], &[]);
    selection.node_addrs = vec!["10.9.0.4".parse().unwrap()];
    selection.keep = [net.index("vrf-red")].into();
    selection.names = ["vrf-red".to_owned()].into();
    assert_eq!(names(&super::choose(&net.0, &selection)), ["eth0"]);
}

#[test]
fn a_vrf_device_that_is_named_is_left_out_and_reported() {
    let mut net = node();
    net.link("eth1");
    net.master("vrf-red", "vrf", &["eth1"]);
    let selected = net.by_routes(&["eth*", "vrf-*"]);
    assert_eq!(names(&selected), ["eth0", "eth1"]);
    assert_eq!(selected.unmatched, [""; 0]);
    assert_eq!(selected.left_out.len(), 1);
    assert!(
        selected.left_out[0].contains("vrf-red") && selected.left_out[0].contains("eth1"),
        "{selected:?}"
    );
    let reason = net.by_routes(&["vrf-*"]).reason.unwrap();
    assert!(reason.contains("vrf-red"), "{reason}");
    assert_eq!(net.by_routes(&["eth*"]).left_out, [""; 0]);
}

/// If a link has one neighbour, by which all routes lead, that one is a router and no guest.
#[test]
fn a_wire_to_a_router_alone_is_an_uplink() {
    for (router, default) in [("203.0.113.1", "0.0.0.0/0"), ("2001:db8::1", "::/0")] {
        let mut net = node();
        net.link("up1").kind = Some("veth".into());
        let host = format!("{router}/{}", if router.contains(':') { 128 } else { 32 });
        net.leads("up1", &host, false);
        assert_eq!(net.by_routes(&[]).guests, ["up1"]);
        net.leads_by("up1", default, Some(router));
        let selected = net.by_routes(&[]);
        assert_eq!(names(&selected), ["eth0", "up1"], "{router}");
        assert_eq!((selected.leaks, selected.guests), (vec![], vec![]));
        // Others on the link are still guests.
        let other = if router.contains(':') {
            "2001:db8::2/128"
        } else {
            "203.0.113.2/32"
        };
        net.leads("up1", other, false);
        let selected = net.by_routes(&[]);
        assert_eq!(names(&selected), ["eth0"]);
        assert_eq!(
            (selected.leaks.len(), selected.guests),
            (1, vec!["up1".to_owned()])
        );
    }
}

/// The kernel removes a default route with `src` together with its address; the route to the router
/// stays.
#[test]
fn an_uplink_stays_one_while_its_default_route_is_gone() {
    for (kind, ports, direct, router) in [
        ("veth", &[][..], "192.0.2.1/32", "192.0.2.1"),
        ("veth", &[][..], "2001:db8::1/128", "2001:db8::1"),
        ("bridge", &["veth0"][..], "192.0.2.0/24", "192.0.2.1"),
        ("bridge", &["veth0"][..], "2001:db8::/64", "2001:db8::1"),
    ] {
        for main in [true, false] {
            let mut net = Net::new();
            net.link("veth0").kind = Some("veth".into());
            net.master("up0", kind, ports);
            net.leads("up0", direct, false);
            let default = if router.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            };
            net.leads_by("up0", default, Some(router));
            if main && router.contains(':') {
                net.route6("up0", router);
            } else if main {
                net.route4("up0", router);
            }
            let mut selection = net.selection(&["172.16.0.0/16"], &[]);
            let selected = super::choose(&net.0, &selection);
            if !main && kind == "bridge" {
                // Other hosts on the bridge may be guests, which is reported.
                assert_eq!(names(&selected), [""; 0]);
                continue;
            }
            assert_eq!(names(&selected), ["up0"], "{kind} {direct} {main}");
            selection.keep = [net.index("up0")].into();
            selection.with_guests = selected.with_guests;
            net.0.routes.pop();
            net.0.default_routes.clear();
            let selected = super::choose(&net.0, &selection);
            assert_eq!(names(&selected), ["up0"], "{kind} {direct} {main}");
            // Once more: the state is retained meanwhile.
            selection.with_guests = selected.with_guests;
            assert_eq!(names(&super::choose(&net.0, &selection)), ["up0"]);
        }
    }
}
