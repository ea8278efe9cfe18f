//! Relevance of notifications, and their delivery without loss.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteType;
use tokio::time::{Instant, timeout};

use super::super::Monitor;
use super::super::route_classes::RouteFilter;
use super::super::selection::Selection;
use super::super::watch::{self, PAUSES, Pace, announces_uplink};
use super::netns::{expect_change, in_namespace, ip, settle};

/// Serialises a message as the kernel sends it.
fn message(inner: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(inner);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reports whether a notification matters while no links are known.
fn needs_snapshot(datagram: &[u8]) -> bool {
    watch::needs_snapshot(datagram, &RouteFilter::default())
}

#[test]
fn routes_by_links_that_masquerade_already_are_irrelevant() {
    let v4 = || RouteMessageBuilder::<Ipv4Addr>::new();
    let filter = RouteFilter {
        uplinks: [2, 3].into(),
        guests: [9].into(),
    };
    let matters = |inner| watch::needs_snapshot(&message(inner), &filter);
    let default = v4().output_interface(2).build();
    assert!(matters(RouteNetlinkMessage::NewRoute(default.clone())));
    assert!(matters(RouteNetlinkMessage::DelRoute(default)));
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(2);
    assert!(matters(RouteNetlinkMessage::DelRoute(v6.build())));
    // A replacement is announced by the new route alone.
    let blackhole = v4().kind(RouteType::BlackHole).build();
    assert!(matters(RouteNetlinkMessage::NewRoute(blackhole)));
    let net = || v4().destination_prefix(Ipv4Addr::new(10, 244, 1, 0), 24);
    let blackhole = net().kind(RouteType::BlackHole).build();
    assert!(!matters(RouteNetlinkMessage::NewRoute(blackhole)));

    for table in [100, 254, 1000] {
        for (link, news) in [(2, false), (3, false), (4, true), (9, true)] {
            let mut route = net().table_id(table).output_interface(link).build();
            if table > 255 {
                route.header.table = libc::RT_TABLE_COMPAT;
            }
            let relevant = matters(RouteNetlinkMessage::NewRoute(route));
            assert_eq!(relevant, news, "by {link} in table {table}");
        }
    }
    let local = net().table_id(255).output_interface(4).build();
    assert!(!matters(RouteNetlinkMessage::NewRoute(local)));
    // Networks that the node receives without the address, in every table.
    for table in [100, 255] {
        let any_ip = net().kind(RouteType::Local).table_id(table);
        let route = any_ip.output_interface(1).build();
        assert!(matters(RouteNetlinkMessage::NewRoute(route)), "{table}");
    }
    // Host routes to guests come and go all day.
    let pod = || v4().destination_prefix(Ipv4Addr::new(10, 244, 1, 7), 32);
    let route = pod().output_interface(9).build();
    assert!(!matters(RouteNetlinkMessage::NewRoute(route)));
    let route = pod().output_interface(4).build();
    assert!(matters(RouteNetlinkMessage::NewRoute(route)));
    let behind = pod()
        .gateway(Ipv4Addr::new(10, 244, 1, 8))
        .output_interface(9);
    assert!(matters(RouteNetlinkMessage::NewRoute(behind.build())));
    // A source is relevant on any link; so is a route that names none.
    let source = net()
        .pref_source(Ipv4Addr::new(10, 1, 0, 9))
        .output_interface(2);
    assert!(matters(RouteNetlinkMessage::NewRoute(source.build())));
    assert!(matters(RouteNetlinkMessage::NewRoute(net().build())));
    let neighbour = RouteNetlinkMessage::NewNeighbour(NeighbourMessage::default());
    assert!(!matters(neighbour));
}

#[test]
fn all_notifications_of_a_datagram_are_read() {
    let other = message(RouteNetlinkMessage::NewNeighbour(
        NeighbourMessage::default(),
    ));
    let link = message(RouteNetlinkMessage::NewLink(LinkMessage::default()));
    assert!(!needs_snapshot(&[other.clone(), other.clone()].concat()));
    assert!(needs_snapshot(&[other.clone(), link, other].concat()));
    // Malformed messages end the parsing.
    assert!(!needs_snapshot(&[0; 40]));
    assert!(!needs_snapshot(&[]));
}

#[test]
fn dropping_the_wait_loses_no_change() {
    in_namespace(|| async {
        let mut monitor = Monitor::new().await.unwrap();
        // The change is detected, the pause has begun: the worst moment. If the machine itself
        // pauses, the step is repeated.
        for number in 0.. {
            ip(&format!("link add a{number} type veth peer name b{number}"));
            if timeout(PAUSES.0 / 4, monitor.changed()).await.is_err() {
                break;
            }
        }
        expect_change(&mut monitor, "the link").await;
        settle(&mut monitor).await;
        let again = std::pin::pin!(monitor.changed());
        assert!(
            futures::poll!(again).is_pending(),
            "one change must be reported once"
        );
    });
}

/// Returns the number of reports of successive changes, and the longest time that one waits.
fn pace(changes: impl Iterator<Item = u64>) -> (usize, Duration) {
    let start = Instant::now();
    let mut pace = Pace::default();
    let mut due: Option<Instant> = None;
    let (mut reports, mut longest) = (0, Duration::ZERO);
    for milliseconds in changes {
        let now = start + Duration::from_millis(milliseconds);
        if let Some(at) = due.filter(|at| *at <= now) {
            pace.record_report(at);
            due = None;
        }
        if due.is_none() {
            let at = pace.due(now);
            longest = longest.max(at - now);
            reports += 1;
            due = Some(at);
        }
    }
    (reports, longest)
}

#[test]
fn a_storm_is_reported_twice_a_second() {
    // Ten seconds, with a change each millisecond.
    let (reports, longest) = pace(0..10_000);
    assert!((20..=24).contains(&reports), "{reports}");
    assert!(longest <= PAUSES.1, "{longest:?}");
}

#[test]
fn changes_that_are_apart_are_reported_at_once() {
    let (reports, longest) = pace((0..20).map(|n| n * 600));
    assert_eq!(reports, 20);
    assert_eq!(longest, PAUSES.0);
}

#[test]
fn a_new_link_of_an_uplinks_name_is_announced() {
    let link = |name: &str, index| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(name.into()));
        message(RouteNetlinkMessage::NewLink(link))
    };
    let expected = Selection {
        keep: [2].into(),
        names: ["eth0".to_owned()].into(),
        ..Selection::default()
    };
    assert!(announces_uplink(&link("eth0", 3), &expected));
    let burst = [link("veth1", 7), link("eth0", 3)].concat();
    assert!(announces_uplink(&burst, &expected));
    assert!(!announces_uplink(&link("eth0", 2), &expected), "known");
    assert!(!announces_uplink(&link("eth1", 3), &expected));
    assert!(!announces_uplink(&[0; 7], &expected));
}
