//! Snapshots, and selections from them, on the real kernel.

use std::net::IpAddr;
use std::process::Command;

use netdp_common::layout::Family;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVrf, LinkAttribute, LinkInfo, LinkMessage,
};

use super::super::model::AddressScope;
use super::super::snapshot::vrf_table;
use super::super::{LinkLayer, Monitor, Patterns, Selection, local_addresses, select};
use super::names;
use super::netns::{NODE, in_namespace, ip, ip6, running, until};

#[test]
fn a_snapshot_shows_links_addresses_and_default_routes() {
    in_namespace(|| async {
        let mut monitor = Monitor::new().await.unwrap();
        ip(NODE);
        ip("link add br0 type bridge\nlink set br0 addrgenmode none\nlink set up1peer master br0");
        ip(
            "route add default via 10.1.0.1 dev up0 src 10.1.0.5 metric 50
            route add default metric 60 nexthop via 192.0.2.1 dev up0 nexthop via 10.9.0.2 dev up1
            route add 198.51.100.0/24 via 10.1.0.1
            route add default via 10.1.0.1 table 100
            route add blackhole default metric 70
            route add ::/0 via 2001:db8::1 dev up0
            route add local 198.18.0.0/24 dev lo
            route add local 198.19.0.0/24 dev lo table 100
            route add local 2001:db8:19::/64 dev lo table 100
            route add local default dev lo table 101
            route add local ::/0 dev lo table 101",
        );
        let snapshot = until(&mut monitor, "up0 runs", |snapshot| {
            running(snapshot, "up0")
        })
        .await;

        let link = |name: &str| {
            snapshot
                .links
                .iter()
                .find(|link| link.name == name)
                .unwrap()
        };
        let (up0, up1) = (link("up0"), link("up1"));
        assert_eq!(up0.kind.as_deref(), Some("veth"));
        assert_eq!((up0.link_layer, up0.master), (LinkLayer::Ethernet, None));
        assert!(link("lo").loopback && !up0.loopback);
        assert_eq!(link("up1peer").master, Some(link("br0").ifindex));
        assert_eq!(link("br0").kind.as_deref(), Some("bridge"));

        let addr = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            snapshot.addrs.iter().find(|addr| addr.addr == ip).unwrap()
        };
        assert!(!addr("10.1.0.4").flags.secondary && addr("10.1.0.5").flags.secondary);
        assert!(addr("10.1.0.4").ifindex == up0.ifindex);
        assert_eq!(
            (addr("10.1.0.4").prefix_len, addr("127.0.0.1").scope),
            (16, AddressScope::Host)
        );
        assert_eq!(
            addr("10.9.0.1").prefix_addr,
            "10.9.0.2".parse::<IpAddr>().unwrap()
        );
        assert_eq!(addr("2001:db8::4").scope, AddressScope::Universe);
        assert!(!addr("2001:db8::4").flags.tentative && !addr("2001:db8::4").flags.temporary);

        let routes: Vec<_> = snapshot
            .default_routes
            .iter()
            .map(|route| {
                let text = |ip: Option<IpAddr>| ip.map_or("-".into(), |ip| ip.to_string());
                (
                    route.family,
                    route.ifindex,
                    text(route.gateway),
                    text(route.prefsrc),
                    route.metric,
                )
            })
            .collect();
        let (i0, i1) = (up0.ifindex, up1.ifindex);
        let wanted = [
            (Family::V4, i0, "10.1.0.1".into(), "10.1.0.5".into(), 50),
            (Family::V4, i0, "192.0.2.1".into(), "-".into(), 60),
            (Family::V4, i1, "10.9.0.2".into(), "-".into(), 60),
            (Family::V6, i0, "2001:db8::1".into(), "-".into(), 1024),
        ];
        assert_eq!(routes, wanted);

        // Excludes the routes of a transparent proxy.
        let mut any_ip: Vec<String> = snapshot.any_ip.iter().map(ToString::to_string).collect();
        any_ip.sort();
        let wanted = ["198.18.0.0/24", "198.19.0.0/24", "2001:db8:19::/64"];
        assert_eq!(any_ip, wanted);

        let local = local_addresses(&snapshot);
        let local: Vec<String> = local.iter().map(ToString::to_string).collect();
        let wanted = [
            "10.1.0.4",
            "10.1.0.5",
            "10.9.0.1",
            "127.0.0.1",
            "192.0.2.10",
            "::1",
            "2001:db8::4",
            "fd00::4",
        ];
        assert_eq!(local, wanted);
    });
}

#[test]
fn routes_are_led_to_by_rules_of_their_family() {
    in_namespace(|| async {
        let monitor = Monitor::new().await.unwrap();
        ip(NODE);
        ip("route add 198.51.100.0/24 dev up0
            route add 198.51.101.0/24 dev up0 table 100
            route add 198.51.102.0/24 dev up0 table 70000
            route add 2001:db8:100::/48 dev up0
            route add 2001:db8:101::/48 dev up0 table 100
            route add 2001:db8:102::/48 dev up0 table 70000
            rule add from 172.16.0.9 lookup 100");
        ip6("rule add from fd00:172::9 fwmark 1 lookup 70000");
        let snapshot = monitor.snapshot().await.unwrap();
        let led_to = |destination: &str| {
            let destination = destination.parse().unwrap();
            let mut routes = snapshot.routes.iter();
            let found = routes.find(|route| route.destination == destination);
            found.unwrap().is_led_to
        };
        for (destination, expected) in [
            ("198.51.100.0/24", true),
            ("198.51.101.0/24", true),
            ("198.51.102.0/24", false),
            ("2001:db8:100::/48", true),
            ("2001:db8:101::/48", false),
            ("2001:db8:102::/48", true),
        ] {
            assert_eq!(led_to(destination), expected, "{destination}");
        }
    });
}

/// A rule for VRFs leads to all their tables.
#[test]
fn the_table_of_a_vrf_device_is_known() {
    let mut message = LinkMessage::default();
    assert_eq!(vrf_table(&message), None);
    let data = InfoData::Vrf(vec![InfoVrf::TableId(1000)]);
    let infos = vec![LinkInfo::Kind(InfoKind::Vrf), LinkInfo::Data(data)];
    message.attributes.push(LinkAttribute::LinkInfo(infos));
    assert_eq!(vrf_table(&message), Some(1000));
}

#[test]
fn selection_works_on_data_of_the_kernel() {
    in_namespace(|| async {
        let mut monitor = Monitor::new().await.unwrap();
        ip(NODE);
        ip("route add default via 10.1.0.1 dev up0\nroute add ::/0 via 2001:db8::1 dev up0");
        let snapshot = until(&mut monitor, "both run", |snapshot| {
            running(snapshot, "up0") && running(snapshot, "up1")
        })
        .await;

        let mut selection = Selection {
            enable_ipv6: true,
            ..Selection::default()
        };
        let selected = select(&snapshot, &selection);
        assert_eq!(names(&selected), ["up0"]);
        let up0 = &selected.uplinks[0];
        assert_eq!(up0.v4, Some("10.1.0.4".parse().unwrap()));
        assert_eq!(up0.v6, Some("2001:db8::4".parse().unwrap()));
        assert!(up0.up);

        selection.node_addrs = vec!["10.9.0.1".parse().unwrap()];
        let selected = select(&snapshot, &selection);
        assert_eq!(names(&selected), ["up0", "up1"]);
        assert_eq!(selected.uplinks[1].v4, Some("10.9.0.1".parse().unwrap()));

        selection.patterns = Patterns::parse("--uplink", &["up?peer", "wg0"]).unwrap();
        let selected = select(&snapshot, &selection);
        assert_eq!(names(&selected), ["up0peer", "up1peer"]);
        assert_eq!(selected.unmatched, ["wg0"]);
    });
}

/// Returns the source that the kernel gives to a packet of its own, by the same functions that
/// MASQUERADE calls, as long as no route names one.
fn kernels_choice(destination: &str) -> IpAddr {
    let output = Command::new("ip")
        .args(["-o", "route", "get", destination])
        .output()
        .unwrap();
    let route = String::from_utf8(output.stdout).unwrap();
    let mut words = route.split_whitespace().skip_while(|word| *word != "src");
    let source = words.nth(1).and_then(|source| source.parse().ok());
    source.unwrap_or_else(|| panic!("no source address in {route:?}"))
}

#[test]
fn the_address_is_the_one_that_the_kernel_chooses() {
    let v4 = "route add default via 10.1.0.1 dev up0 onlink";
    let v6 = "route add ::/0 via fe80::1 dev up0";
    let networks = [
        "addr add 192.0.2.10/24 dev up0\naddr add 10.1.0.4/16 dev up0\naddr add 10.1.0.5/16 dev up0
            addr add fd00::4/64 dev up0 nodad\naddr add 2001:db8::4/64 dev up0 nodad",
        "addr add 169.254.3.4/16 scope link dev up0\naddr add 192.0.2.10/24 dev up0
            addr add 2001:db8::4/64 dev up0 nodad\naddr add fd00::4/64 dev up0 nodad",
        "addr add 192.0.2.10/24 dev up0\naddr add 192.0.2.20 peer 10.1.0.1/32 dev up0
            addr add fd00::4/64 dev up0 nodad
            addr add 2001:db8::4/64 dev up0 nodad preferred_lft 0",
        "addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo
            addr add 169.254.3.4/16 scope link dev up0\naddr add fe80::4/64 dev up0 nodad",
    ];
    for network in networks {
        in_namespace(move || async move {
            let mut monitor = Monitor::new().await.unwrap();
            ip("link set lo up
                link add up0 type veth peer name peer
                link set up0 addrgenmode none
                link set peer up
                link set up0 up");
            ip(network);
            ip(&format!("{v4}\n{v6}"));
            let snapshot = until(&mut monitor, "up0 runs", |s| running(s, "up0")).await;
            let selection = Selection {
                enable_ipv6: true,
                ..Selection::default()
            };
            let uplinks = select(&snapshot, &selection).uplinks;
            let chosen = [
                uplinks[0].v4.map(IpAddr::from),
                uplinks[0].v6.map(IpAddr::from),
            ];
            let wanted = ["203.0.113.9", "2600::9"].map(|to| Some(kernels_choice(to)));
            assert_eq!(chosen, wanted, "with\n{network}");
        });
    }
}
