//! Source addresses of uplinks.

use std::net::{Ipv4Addr, Ipv6Addr};

use netdp_common::layout::Family;

use super::super::model::{AddressScope, LinkAddr};
use super::super::{SourceChoice, SourceQuery};
use super::Net;

fn eth0() -> Net {
    let mut net = Net::new();
    net.link("eth0");
    net
}

fn v4(net: &Net) -> Option<Ipv4Addr> {
    net.by_name(&["eth0"]).uplinks[0].v4
}

fn v6(net: &Net) -> Option<Ipv6Addr> {
    net.by_name(&["eth0"]).uplinks[0].v6
}

fn ip<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> Option<T> {
    Some(text.parse().unwrap())
}

#[test]
fn v4_is_the_primary_on_the_gateways_subnet() {
    let mut net = eth0();
    net.addr("eth0", "192.0.2.10/24");
    net.addr("eth0", "10.1.0.4/16");
    net.addr_with("eth0", "10.1.0.5/16", |addr| addr.flags.secondary = true);
    assert_eq!(v4(&net), ip("192.0.2.10"), "no route: the first");
    net.route4("eth0", "10.1.0.1");
    assert_eq!(v4(&net), ip("10.1.0.4"));
}

#[test]
fn v4_is_the_first_primary_where_no_subnet_holds_the_gateway() {
    let mut net = eth0();
    net.addr_with("eth0", "198.51.100.9/24", |addr| {
        addr.flags.secondary = true;
    });
    net.addr_with("eth0", "169.254.3.4/16", |addr| {
        addr.scope = AddressScope::Link;
    });
    net.addr("eth0", "192.0.2.10/24");
    net.addr("eth0", "10.1.0.4/16");
    net.route4("eth0", "203.0.113.1");
    assert_eq!(v4(&net), ip("192.0.2.10"));
}

#[test]
fn v4_goes_by_the_best_route_of_this_link_alone() {
    let mut net = eth0();
    net.link("eth1");
    net.addr("eth0", "192.0.2.10/24");
    net.addr("eth0", "10.1.0.4/16");
    net.addr("eth0", "10.2.0.4/16");
    net.route(Family::V4, "eth1", Some("10.1.0.1"), 0);
    net.route(Family::V4, "eth0", Some("10.1.0.1"), 200);
    net.route(Family::V4, "eth0", Some("10.2.0.1"), 100);
    assert_eq!(v4(&net), ip("10.2.0.4"));
}

#[test]
fn v4_of_a_point_to_point_link_is_the_local_end() {
    let mut net = eth0();
    net.addr("eth0", "192.0.2.10/24");
    net.addr_with("eth0", "10.9.0.1/32", |addr| {
        addr.prefix_addr = ip("10.9.0.2").unwrap();
    });
    net.route4("eth0", "10.9.0.2");
    assert_eq!(v4(&net), ip("10.9.0.1"));
}

#[test]
fn v4_by_an_ipv6_router_is_the_first_primary() {
    let mut net = eth0();
    net.addr("eth0", "192.0.2.10/24");
    net.addr("eth0", "10.1.0.4/16");
    net.route4("eth0", "fe80::1");
    assert_eq!(v4(&net), ip("192.0.2.10"));
}

#[test]
fn a_link_without_addresses_borrows_from_loopback_and_nowhere_else() {
    let mut net = eth0();
    net.link("eth1");
    net.addr("eth1", "10.2.0.4/16");
    net.addr("eth1", "2001:db8:2::4/64");
    net.addr_with("eth0", "169.254.3.4/16", |addr| {
        addr.scope = AddressScope::Link;
    });
    net.addr_with("eth0", "fe80::4/64", |addr| addr.scope = AddressScope::Link);
    assert_eq!((v4(&net), v6(&net)), (None, None));
    net.addr("lo", "192.0.2.1/32");
    net.addr("lo", "2001:db8::1/128");
    assert_eq!((v4(&net), v6(&net)), (ip("192.0.2.1"), ip("2001:db8::1")));
}

#[test]
fn in_a_vrf_it_borrows_from_the_vrf_device() {
    let mut net = eth0();
    net.master("red", "vrf", &["eth0"]);
    net.addr("lo", "192.0.2.1/32");
    assert_eq!(v4(&net), None);
    net.addr("red", "192.0.2.2/32");
    net.addr("red", "2001:db8::2/128");
    assert_eq!((v4(&net), v6(&net)), (ip("192.0.2.2"), ip("2001:db8::2")));
}

/// An address with its prefix length, and its deviations from the default.
type Candidate = (&'static str, fn(&mut LinkAddr));

/// Adds the addresses in every order, and returns the selected one, which must not depend on it.
fn v6_of(addrs: &[Candidate]) -> Option<Ipv6Addr> {
    let choice = |addrs: &[Candidate]| {
        let mut net = eth0();
        net.route6("eth0", "2001:db8:a::1");
        for (cidr, change) in addrs {
            net.addr_with("eth0", cidr, change);
        }
        v6(&net)
    };
    let mut addrs = addrs.to_vec();
    let first = choice(&addrs);
    for _ in 1..addrs.len() {
        addrs.rotate_left(1);
        assert_eq!(choice(&addrs), first, "the order decided");
    }
    first
}

const PLAIN: fn(&mut LinkAddr) = |_| ();
const DEPRECATED: fn(&mut LinkAddr) = |addr| addr.flags.deprecated = true;
const TEMPORARY: fn(&mut LinkAddr) = |addr| addr.flags.temporary = true;
const TENTATIVE: fn(&mut LinkAddr) = |addr| addr.flags.tentative = true;
const DUPLICATE: fn(&mut LinkAddr) = |addr| addr.flags.dadfailed = true;
const LINK_LOCAL: fn(&mut LinkAddr) = |addr| addr.scope = AddressScope::Link;

#[test]
fn v6_is_global_in_scope_and_known_to_be_unique() {
    assert_eq!(v6_of(&[("fe80::1/64", LINK_LOCAL)]), None);
    assert_eq!(
        v6_of(&[("2001:db8::1/64", TENTATIVE), ("2001:db8::2/64", DUPLICATE)]),
        None
    );
    let addrs = [
        ("fe80::1/64", LINK_LOCAL),
        ("2001:db8:a::2/64", TENTATIVE),
        ("2001:db8:a::3/64", DUPLICATE),
        ("fd00::4/64", DEPRECATED),
    ];
    assert_eq!(v6_of(&addrs), ip("fd00::4"));
}

#[test]
fn v6_prefers_in_the_order_of_rfc_6724() {
    let preferred = [("2001:db8:a::1/64", DEPRECATED), ("fd00::2/64", PLAIN)];
    assert_eq!(
        v6_of(&preferred),
        ip("fd00::2"),
        "preferred before deprecated"
    );
    let global = [("fd00::1/64", PLAIN), ("2001:db8::2/64", TEMPORARY)];
    assert_eq!(
        v6_of(&global),
        ip("2001:db8::2"),
        "global before unique-local"
    );
    let public = [("2001:db8:a::1/64", TEMPORARY), ("2001:db8::2/64", PLAIN)];
    assert_eq!(v6_of(&public), ip("2001:db8::2"), "public before temporary");
    let near = [("2001:db8::1/64", PLAIN), ("2001:db8:a::2/64", PLAIN)];
    assert_eq!(v6_of(&near), ip("2001:db8:a::2"), "the gateway's /64");
}

#[test]
fn v6_falls_to_the_first_listed_where_nothing_else_decides() {
    let mut net = eth0();
    net.route6("eth0", "fe80::1");
    net.addr("eth0", "2001:db8::2/64");
    net.addr("eth0", "2001:db8::1/64");
    assert_eq!(v6(&net), ip("2001:db8::2"));
}

/// Returns the sources published to the programs: interface, source address or next hop, and
/// result.
fn source_lines(net: &Net, known: &[&str]) -> Vec<String> {
    let mut selection = net.selection(&[], &["eth0"]);
    selection.node_addrs = known.iter().map(|ip| ip.parse().unwrap()).collect();
    let selected = super::choose(&net.0, &selection);
    let line = |(query, choice): (&SourceQuery, &SourceChoice)| {
        let named = if query.named { "named" } else { "next" };
        format!("{} {named} {} {}", query.link, query.net, choice.addr)
    };
    selected.sources.iter().map(line).collect()
}

#[test]
fn a_known_address_comes_first_among_equals() {
    let mut net = eth0();
    net.addr("eth0", "10.1.0.99/32");
    net.addr("eth0", "10.1.0.4/32");
    net.addr("eth0", "2001:db8::99/128");
    net.addr("eth0", "2001:db8::4/128");
    net.route4("eth0", "10.1.0.1");
    let chosen = |net: &Net, known: &[&str]| {
        let mut selection = net.selection(&[], &["eth0"]);
        selection.node_addrs = known.iter().map(|ip| ip.parse().unwrap()).collect();
        let uplink = super::choose(&net.0, &selection).uplinks.remove(0);
        (uplink.v4, uplink.v6)
    };
    assert_eq!(chosen(&net, &[]), (ip("10.1.0.99"), ip("2001:db8::99")));
    let known = ["10.1.0.4", "2001:db8::4"];
    assert_eq!(chosen(&net, &known), (ip("10.1.0.4"), ip("2001:db8::4")));
    let v6 = [
        "2 named 2001:db8::4/128 2001:db8::4",
        "2 named 2001:db8::99/128 2001:db8::4",
    ];
    assert_eq!(source_lines(&net, &known), v6);
    // An address on the gateway's network takes precedence.
    net.addr("eth0", "10.1.0.5/24");
    assert_eq!(chosen(&net, &known).0, ip("10.1.0.5"));
}

#[test]
fn sources_are_by_network_and_by_what_routes_name() {
    let mut net = eth0();
    net.addr("eth0", "10.8.0.4/16");
    net.addr("eth0", "10.9.0.4/16");
    net.addr_with("eth0", "10.9.0.5/16", |addr| addr.flags.secondary = true);
    net.addr_with("eth0", "2001:db8::7/64", |addr| addr.flags.temporary = true);
    net.addr("eth0", "2001:db8::4/64");
    net.addr("eth0", "fd00::4/64");
    net.addr_with("eth0", "2001:db8::9/64", |addr| addr.flags.tentative = true);
    net.leads("eth0", "203.0.113.0/24", true);
    net.0.routes[0].prefsrc = ip("192.0.2.1");
    net.0.any_ip.push("198.18.0.0/24".parse().unwrap());
    let wanted = [
        "0 next 198.18.0.0/24 198.18.0.0",
        "2 next 10.8.0.0/16 10.8.0.4",
        "2 next 10.9.0.0/16 10.9.0.4",
        "2 next 2001:db8::/64 2001:db8::4",
        "2 next fd00::/64 fd00::4",
        "2 named 192.0.2.1/32 192.0.2.1",
        "2 named 2001:db8::4/128 2001:db8::4",
        "2 named 2001:db8::7/128 2001:db8::4",
        "2 named fd00::4/128 fd00::4",
    ];
    assert_eq!(source_lines(&net, &[]), wanted);
}

/// Programs have to look up routes once a second source appears, in its family only.
#[test]
fn an_uplink_has_one_source_until_another_is_possible() {
    let only = |net: &Net| {
        let mut uplinks = super::choose(&net.0, &net.selection(&[], &["eth0"])).uplinks;
        let uplink = uplinks.remove(0);
        (uplink.only_v4, uplink.only_v6)
    };
    let mut net = eth0();
    assert_eq!(only(&net), (false, false), "there is none");
    net.addr("eth0", "10.8.0.4/16");
    net.addr("eth0", "2001:db8::4/64");
    net.addr_with("eth0", "10.8.0.5/16", |addr| addr.flags.secondary = true);
    assert_eq!(only(&net), (true, true));
    let mut second = net.clone();
    second.addr("eth0", "10.9.0.4/16");
    assert_eq!(only(&second), (false, true), "on another network");
    let mut second = net.clone();
    second.addr("eth0", "fd00::4/64");
    assert_eq!(only(&second), (true, false), "of another scope");
    let mut named = net.clone();
    named.leads("eth0", "203.0.113.0/24", true);
    named.0.routes[0].prefsrc = ip("10.8.0.5");
    assert_eq!(only(&named), (false, true), "a route names it");
    net.on("eth0", "eth0.100", "vlan");
    net.addr("eth0.100", "10.100.0.4/24");
    assert_eq!(only(&net), (false, true), "a VLAN device above has one");
}

/// Packets of a VLAN device that is no uplink get its address at the lower device.
#[test]
fn a_vlan_device_has_sources_where_it_is_translated() {
    let mut net = eth0();
    net.addr("eth0", "10.1.0.4/16");
    net.on("eth0", "eth0.100", "vlan");
    net.addr("eth0.100", "10.100.0.4/24");
    let at = |net: &Net, uplinks: &[&str]| {
        let selected = super::choose(&net.0, &net.selection(&[], uplinks));
        let by_vlan = |(query, choice): (&SourceQuery, &SourceChoice)| {
            (query.link == 3).then(|| (query.net.to_string(), choice.via))
        };
        selected
            .sources
            .iter()
            .filter_map(by_vlan)
            .collect::<Vec<_>>()
    };
    let entry = |net: &str, via| (net.to_owned(), via);
    let wanted = [
        entry("0.0.0.0/0", 2),
        entry("10.100.0.0/24", 2),
        entry("::/0", 2),
    ];
    assert_eq!(at(&net, &["eth0"]), wanted);
    assert_eq!(
        at(&net, &["eth0", "eth0.100"]),
        [("10.100.0.0/24".to_owned(), 3)]
    );
    net.on("eth0", "eth0.200", "vlan");
    assert_eq!(at(&net, &["eth0", "eth0.200"]), [], "left alone there");
}

/// Towards a link-local router, or one in no network of the device, its best address is used.
#[test]
fn a_vlan_device_has_a_source_for_every_router() {
    let mut net = eth0();
    net.addr("eth0", "10.1.0.4/16");
    net.addr("eth0", "2001:db8::4/64");
    net.on("eth0", "eth0.100", "vlan");
    let any = |net: &Net| -> Vec<String> {
        let lines = source_lines(net, &[]).into_iter();
        lines
            .filter(|line| line.starts_with("3 next ") && line.contains("/0 "))
            .collect()
    };
    assert_eq!(any(&net), [""; 0], "it has none of its own");
    net.addr("eth0.100", "10.100.0.4/32");
    let v4 = "3 next 0.0.0.0/0 10.100.0.4";
    // The next hop may be an IPv6 router too.
    assert_eq!(any(&net), [v4, "3 next ::/0 10.100.0.4"]);
    net.addr("eth0.100", "2001:db8:100::4/64");
    net.addr_with("eth0.100", "fe80::4/64", LINK_LOCAL);
    assert_eq!(any(&net), [v4, "3 next ::/0 2001:db8:100::4"]);
    // The uplink's own address is used for that.
    let uplinks = source_lines(&net, &[]);
    assert!(
        !uplinks
            .iter()
            .any(|line| line.starts_with("2 next ") && line.contains("/0 "))
    );
}

/// An address that comes back after another one of its subnet has taken its place is secondary.
#[test]
fn a_known_address_counts_although_it_is_secondary() {
    let mut net = eth0();
    net.addr("eth0", "10.1.0.99/16");
    net.addr_with("eth0", "10.1.0.4/16", |addr| addr.flags.secondary = true);
    net.route4("eth0", "10.1.0.1");
    let chosen = |net: &Net, known: &str| {
        let mut selection = net.selection(&[], &["eth0"]);
        selection.node_addrs = vec![known.parse().unwrap()];
        super::choose(&net.0, &selection).uplinks[0].v4
    };
    assert_eq!(chosen(&net, "10.1.0.4"), ip("10.1.0.4"));
    assert_eq!(
        source_lines(&net, &["10.1.0.4"]),
        ["2 next 10.1.0.0/16 10.1.0.4"]
    );
    assert_eq!(chosen(&net, "10.1.0.7"), ip("10.1.0.99"));
    assert_eq!(
        source_lines(&net, &["10.1.0.7"]),
        ["2 next 10.1.0.0/16 10.1.0.99"]
    );
    // The router's network still takes precedence.
    net.addr("eth0", "10.2.0.4/16");
    net.0.default_routes.clear();
    net.route4("eth0", "10.2.0.1");
    assert_eq!(chosen(&net, "10.1.0.4"), ip("10.2.0.4"));
}
