//! Which notifications count, and that none is lost on the way to the caller.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::RouteType;
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::watch::{Changes, matters};

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
    let mut changes = Changes(receiver);
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
    let error = Changes(receiver).next().await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error:#}");
}
