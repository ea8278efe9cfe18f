//! The monitor on the real kernel.

use std::fmt::Write as _;

use super::super::{Monitor, Snapshot};
use super::netns::{NODE, expect_change, has_addr, in_namespace, ip, running, settle, until};

#[test]
fn every_kind_of_change_is_reported() {
    in_namespace(|| async {
        let mut monitor = Monitor::new().await.unwrap();
        ip(NODE);
        until(&mut monitor, "all run", |snapshot| {
            ["up0", "up0peer", "up1", "up1peer"]
                .iter()
                .all(|name| running(snapshot, name))
        })
        .await;

        type Wanted = fn(&Snapshot) -> bool;
        let changes: [(&str, Wanted); 11] = [
            ("addr add 192.0.2.77/24 dev up0", |s| {
                has_addr(s, "192.0.2.77")
            }),
            ("addr del 192.0.2.77/24 dev up0", |s| {
                !has_addr(s, "192.0.2.77")
            }),
            ("addr add 2001:db8::7/64 dev up0 nodad", |s| {
                has_addr(s, "2001:db8::7")
            }),
            ("addr del 2001:db8::7/64 dev up0", |s| {
                !has_addr(s, "2001:db8::7")
            }),
            ("route add default via 10.1.0.1", |s| {
                s.default_routes.len() == 1
            }),
            ("route replace default via 192.0.2.1", |s| {
                s.default_routes[0].gateway == "192.0.2.1".parse().ok()
            }),
            ("route del default", |s| s.default_routes.is_empty()),
            ("route add ::/0 via 2001:db8::1", |s| {
                s.default_routes.len() == 1
            }),
            ("link set up1 down", |s| !running(s, "up1")),
            ("link set up1 name other1", |s| {
                s.links.iter().any(|link| link.name == "other1")
            }),
            ("link del other1", |s| {
                s.links.iter().all(|link| link.name != "other1")
            }),
        ];
        for (command, wanted) in changes {
            settle(&mut monitor).await;
            ip(command);
            expect_change(&mut monitor, command).await;
            until(&mut monitor, command, wanted).await;
        }
    });
}

#[test]
fn a_flood_that_overruns_the_socket_is_reported_and_survived() {
    in_namespace(|| async {
        let mut monitor = Monitor::new().await.unwrap();
        ip(NODE);
        settle(&mut monitor).await;

        let mut flood = String::new();
        for third in 0..8 {
            for fourth in 1..=250 {
                writeln!(flood, "addr add 10.200.{third}.{fourth}/32 dev up0").unwrap();
            }
        }
        // The runtime does not run meanwhile, so nothing reads the socket.
        ip(&flood);
        let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let drops: u64 = sockets
            .lines()
            .skip(1)
            .map(|line| {
                line.split_whitespace()
                    .nth(8)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum();
        assert!(
            drops > 0,
            "the flood was too small to overrun the socket:\n{sockets}"
        );

        expect_change(&mut monitor, "the overrun").await;
        until(&mut monitor, "all addresses", |snapshot| {
            has_addr(snapshot, "10.200.7.250")
        })
        .await;

        settle(&mut monitor).await;
        ip("addr del 10.200.7.250/32 dev up0");
        expect_change(&mut monitor, "a change after the overrun").await;
    });
}
