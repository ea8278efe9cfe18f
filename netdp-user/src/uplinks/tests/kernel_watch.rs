//! The monitor on the real kernel.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::super::{Monitor, Snapshot};
use super::netns::{NODE, expect_change, has_addr, in_namespace, ip, ip6, running, settle, until};

/// Returns whether a rule leads to the table of the route to a destination.
fn led_to(snapshot: &Snapshot, destination: &str) -> Option<bool> {
    let destination = destination.parse().unwrap();
    let mut routes = snapshot.routes.iter();
    let found = routes.find(|route| route.destination == destination);
    found.map(|route| route.is_led_to)
}

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
        let changes: [(&str, Wanted); 14] = [
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
            ("route add 198.51.100.0/24 dev up0 table 100", |s| {
                led_to(s, "198.51.100.0/24") == Some(false)
            }),
            ("rule add from 172.16.0.9 lookup 100", |s| {
                led_to(s, "198.51.100.0/24") == Some(true)
            }),
            ("rule del from 172.16.0.9 lookup 100", |s| {
                led_to(s, "198.51.100.0/24") == Some(false)
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
        settle(&mut monitor).await;
        ip6("rule add from fd00:172::9 lookup 100");
        expect_change(&mut monitor, "a rule of IPv6").await;
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

/// A storm of links, as when many pods start at once: few scans, and no change of the uplink is
/// missed.
#[test]
fn two_thousand_pairs_of_links_take_few_snapshots() {
    const PIECES: usize = 20;
    in_namespace(|| async {
        ip(NODE);
        let mut monitor = Monitor::new().await.unwrap();
        settle(&mut monitor).await;
        let mut storm = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = storm.stdin.take().unwrap();
        // In pieces, so that it lasts for seconds on any machine.
        let pieces = std::thread::spawn(move || {
            for piece in 0..PIECES {
                for n in 0..100 {
                    let id = piece * 100 + n;
                    writeln!(input, "link add va{id} type veth peer name vb{id}").unwrap();
                    writeln!(input, "link set va{id} up").unwrap();
                }
                input.flush().unwrap();
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
        });
        let start = std::time::Instant::now();
        let mut snapshots = 0;
        let mut changed = None;
        let mut seen = None;
        while storm.try_wait().unwrap().is_none() {
            monitor.changed().await.unwrap();
            let snapshot = monitor.snapshot().await.unwrap();
            snapshots += 1;
            if changed.is_none() && snapshot.links.len() > 500 {
                ip("addr add 192.0.2.99/24 dev up0");
                changed = Some(snapshots);
            }
            if seen.is_none() && has_addr(&snapshot, "192.0.2.99") {
                seen = Some(snapshots);
            }
        }
        pieces.join().unwrap();
        // One for each pause, in which the storm seems to be over, and some while it lasts.
        let halves = start.elapsed().as_millis() / 500;
        let most = PIECES + usize::try_from(halves).unwrap() + 5;
        eprintln!("{snapshots} snapshots in {:?}", start.elapsed());
        assert!(
            snapshots <= most,
            "{snapshots} snapshots in {:?}",
            start.elapsed()
        );
        let changed = changed.expect("the storm was over too soon");
        assert_eq!(
            seen,
            Some(changed + 1),
            "the uplink's change, made in look {changed}"
        );
        let all = until(&mut monitor, "all links", |s| s.links.len() == 4005).await;
        assert!(has_addr(&all, "192.0.2.99"));
    });
}
