//! Sums over flows that are made up.

use super::print::{Summary, write};
use super::sums::Sums;
use super::*;
use crate::datapath::{Flow, FlowState};
use crate::flows::list::Counts;
use crate::flows::tests::{flow, names, timed};
use crate::forecast::PortsPast;
use netdp_common::layout::Addr;
use serde_json::{Value, json};
use std::time::Duration;

/// Returns mappings of two pods to two destinations: a pod's former owner has one of them.
fn flows() -> Vec<Flow> {
    let closed = Flow {
        state: FlowState::TimeWait,
        ..flow(3, 1, 50)
    };
    let mut elsewhere = flow(3, 9, 7);
    elsewhere.tuple.dst = Addr::from_v4([203, 0, 113, 10]);
    let mut flows = vec![flow(2, 40_000, 1000), closed, elsewhere];
    flows.extend((2..4).map(|id| Flow {
        tuple: flow(3, id, 0).tuple,
        ..closed
    }));
    flows
}

fn printed(by: By, format: Format, flows: &[Flow], limit: Option<usize>) -> String {
    printed_after(&PortsPast::default(), by, format, flows, limit)
}

fn printed_after(
    past: &PortsPast,
    by: By,
    format: Format,
    flows: &[Flow],
    limit: Option<usize>,
) -> String {
    let names = names();
    let mut sums = Sums::new(by);
    let policy = Policy::new(["10.2.0.0/24".parse().unwrap()]);
    for flow in flows {
        let owner = timed(&names).owner(&flow.tuple, flow.age);
        sums.add(flow, owner, Some(&policy));
    }
    let summary = Summary {
        by,
        sums: &sums,
        rows: sums.rows(None),
        limit,
        counts: Counts {
            all: flows.len(),
            matching: flows.len(),
        },
        is_filtered: false,
        took: Duration::from_millis(1400),
        ports: (by == By::Destination).then_some(61_744),
        past,
        uplinks: vec![(2, "eth0".into())],
        names: timed(&names),
    };
    let mut out = Vec::new();
    write(&summary, format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn document(by: By) -> Value {
    serde_json::from_str(&printed(by, Format::Json, &flows(), None)).unwrap()
}

#[test]
fn destinations_have_ports_pods_and_the_biggest_pod() {
    let text = printed(By::Destination, Format::Text, &flows(), None);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "5 mappings of 2 pods, 1.1 KiB out, 0 B in, read in 1.4 s",
            " DESTINATION           SEEN AS    PORTS        FULL IN  MAPPINGS  ESTABLISHED  CLOSING  PODS  OUT      IN",
            " tcp 10.2.0.17:443     10.1.0.10  4 of 61,744  -        4         1            3        2     1.1 KiB  0 B",
            " tcp 203.0.113.10:443  10.1.0.10  1 of 61,744  -        1         1            0        1     7 B      0 B",
            "biggest pod at 10.2.0.17:443: 172.16.0.3 (3): a connection for each request, by its 3 closing",
        ]
    );
    let text = printed(By::Destination, Format::Text, &flows(), Some(1));
    assert!(text.contains("\n1 more\n"), "{text}");
}

#[test]
fn ports_that_are_taken_one_after_another_are_full_some_day() {
    let flows = flows();
    let mut sums = Sums::new(By::Destination);
    for flow in &flows {
        sums.add(flow, None, None);
    }
    let rows = sums.rows(None);
    let mut past = PortsPast::default();
    let begin = Instant::now();
    // Of 61,744 ports 30,872 were taken in 20 s, towards the first destination.
    for (seconds, used) in [(0, 0), (20, 30_872)] {
        let first = rows.first().and_then(Row::used);
        let used = first.map(|(to, _)| (to, used));
        past.add_used(begin + Duration::from_secs(seconds), used);
    }
    let text = printed_after(&past, By::Destination, Format::Text, &flows, None);
    assert!(text.contains(" 4 of 61,744  20s "), "{text}");
    assert!(text.contains(" 1 of 61,744  -  "), "{text}");
    let json = printed_after(&past, By::Destination, Format::Json, &flows, None);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["groups"][0]["full_in_seconds"], 20);
    assert_eq!(json["groups"][1].get("full_in_seconds"), None);
}

#[test]
fn json_is_as_documented() {
    let told = document(By::Destination);
    assert_eq!(
        told,
        json!({
            "schema": 1, "by": "destination", "mappings": 5, "matching": 5,
            "read_milliseconds": 1400, "cut": false,
            "groups": [
                {
                    "protocol": "tcp", "destination": "10.2.0.17", "destination_id": 443,
                    "nat_address": "10.1.0.10", "ports": 61_744, "mappings": 4, "established": 1,
                    "closing": 3, "pods": 2, "packets": 4812, "bytes_out": 1150, "bytes_in": 0,
                },
                {
                    "protocol": "tcp", "destination": "203.0.113.10", "destination_id": 443,
                    "nat_address": "10.1.0.10", "ports": 61_744, "mappings": 1, "established": 1,
                    "closing": 0, "pods": 1, "packets": 1203, "bytes_out": 7, "bytes_in": 0,
                },
            ],
        })
    );
    let pods = document(By::Pod);
    assert_eq!(pods["groups"][0]["source"], "172.16.0.3");
    assert_eq!(pods["groups"][0]["destinations"], 2);
    assert_eq!(pods["groups"][1]["pod"]["name"], "old");
    let prefixes = document(By::Prefix);
    assert_eq!(prefixes["groups"][0]["prefix"], "10.2.0.0/24");
    assert_eq!(prefixes["groups"][1]["prefix"], "0.0.0.0/0");
    assert_eq!(document(By::State)["groups"][0]["state"], "TimeWait");
    assert_eq!(document(By::Uplink)["groups"][0]["uplink"], "eth0");
    let lines = printed(By::State, Format::Jsonl, &flows(), None);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((lines.lines().count(), &first["schema"]), (2, &json!(1)));
}

#[test]
fn an_address_that_changed_hands_is_two_pods() {
    let young = Flow {
        age: 1000,
        ..flow(2, 40_001, 1)
    };
    let text = printed(By::Pod, Format::Text, &[flow(2, 40_000, 1), young], None);
    assert!(text.starts_with("2 mappings of 2 pods"), "{text}");
    assert!(text.contains(" shop/new  "), "{text}");
    assert!(text.contains(" shop/old (gone 3m0s)  172.16.0.2"), "{text}");
}

#[test]
fn a_scan_is_added_up_in_bounded_memory_and_says_so() {
    let mut sums = Sums::new(By::Destination);
    for n in 0..70_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let mut flow = flow(2, 1, 1);
        flow.tuple.dst = Addr::from_v4([198, a, b, c]);
        sums.add(&flow, None, None);
    }
    assert!(sums.is_cut);
    assert_eq!(sums.rows(None).len(), 65_536);
    assert_eq!(sums.total.mappings, 70_000);
}
