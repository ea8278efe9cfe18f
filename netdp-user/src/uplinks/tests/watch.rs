//! Which notifications count, and that none is lost on the way to the caller.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteType;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::super::watch::{Changes, PAUSES, Pace, matters};

fn message(inner: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
    NetlinkMessage::from(inner)
}

#[test]
fn a_lost_notification_counts() {
    let overrun = NetlinkPayload::Overrun(Vec::new());
    assert!(matters(&NetlinkMessage::new(
        NetlinkHeader::default(),
        overrun
    )));
}

#[test]
fn only_default_routes_of_the_main_table_count() {
    let v4 = || RouteMessageBuilder::<Ipv4Addr>::new();
    let default = v4().build();
    assert!(matters(&message(RouteNetlinkMessage::NewRoute(
        default.clone()
    ))));
    assert!(matters(&message(RouteNetlinkMessage::DelRoute(default))));
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    assert!(matters(&message(RouteNetlinkMessage::DelRoute(v6))));
    // A replacement is announced by the new route alone.
    let blackhole = v4().kind(RouteType::BlackHole).build();
    assert!(matters(&message(RouteNetlinkMessage::NewRoute(blackhole))));

    let pods = v4()
        .destination_prefix(Ipv4Addr::new(10, 244, 1, 0), 24)
        .build();
    assert!(!matters(&message(RouteNetlinkMessage::NewRoute(pods))));
    for table in [100, 1000] {
        let other = v4().table_id(table).build();
        assert!(
            !matters(&message(RouteNetlinkMessage::NewRoute(other))),
            "table {table}"
        );
    }
    let neighbour = RouteNetlinkMessage::NewNeighbour(NeighbourMessage::default());
    assert!(!matters(&message(neighbour)));
}

#[tokio::test]
async fn dropping_the_wait_loses_no_change() {
    let (mark, receiver) = watch::channel(());
    let mut changes = Changes::new(receiver);
    mark.send_replace(());
    {
        // The change is seen, the pause has begun: the worst moment.
        let wait = std::pin::pin!(changes.next());
        assert!(futures::poll!(wait).is_pending());
    }
    timeout(Duration::from_secs(5), changes.next())
        .await
        .expect("the change was lost")
        .unwrap();
    let again = std::pin::pin!(changes.next());
    assert!(
        futures::poll!(again).is_pending(),
        "one change must be reported once"
    );
}

#[tokio::test]
async fn a_closed_socket_is_an_error() {
    let (mark, receiver) = watch::channel(());
    drop(mark);
    let error = Changes::new(receiver).next().await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error:#}");
}

/// How many reports there are of changes one after the other, and the longest time that one waits.
fn pace(changes: impl Iterator<Item = u64>) -> (usize, Duration) {
    let start = Instant::now();
    let mut pace = Pace::default();
    let mut due: Option<Instant> = None;
    let (mut reports, mut longest) = (0, Duration::ZERO);
    for milliseconds in changes {
        let now = start + Duration::from_millis(milliseconds);
        if let Some(at) = due.filter(|at| *at <= now) {
            pace.reported(at);
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
    // Ten seconds, a change each millisecond.
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
