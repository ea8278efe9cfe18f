//! Orders, formats and headings, over flows that are made up.

use super::list::{Counts, First, Order, Sort, heading};
use super::rows::RowWriter;
use super::*;
use crate::datapath::{Flow, FlowState, Kept, KeptReason, KeptState};
use crate::pods::Claim;
use netdp_common::layout::proto;
use serde_json::{Value, json};

/// The time of the look: 2026-11-28 10:20:00 UTC.
const AT: u64 = 1_795_861_200_000;

/// Returns ticks for seconds, rounded up.
fn ticks(seconds: u64) -> u32 {
    u32::try_from((seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT)).unwrap()
}

pub(super) fn flow(pod: u8, id: u16, bytes: u64) -> Flow {
    let source = Addr::from_v4([172, 16, 0, pod]);
    let destination = Addr::from_v4([10, 2, 0, 17]);
    Flow {
        tuple: Tuple::new(source, destination, id, 443, proto::TCP),
        nat_address: Addr::from_v4([10, 1, 0, 10]),
        nat_id: id,
        uplink: 2,
        state: FlowState::Established,
        age: ticks(300),
        idle: ticks(4),
        packets_out: 1200,
        packets_in: 3,
        bytes_out: Some(bytes),
        bytes_in: None,
    }
}

/// Returns the names of a pod that is there, and of its predecessor, which ended three minutes before
/// the look.
pub(super) fn names() -> Names {
    let claim = |name: &str, from, until| Claim {
        address: "172.16.0.2".parse().unwrap(),
        namespace: "shop".into(),
        name: name.into(),
        uid: Some(format!("uid-{name}")),
        from,
        until,
    };
    let ended = claim("old", AT - 900_000, Some(AT - 180_000));
    Names::of([ended, claim("new", AT - 120_000, None)], AT)
}

pub(super) fn timed(names: &Names) -> Timed<'_> {
    Timed { names, at: AT }
}

fn printed(format: Format, flows: &[Flow]) -> String {
    let names = names();
    let mut out = Vec::new();
    let mut writer = RowWriter::new(format, timed(&names), None, &mut out);
    writer.print_all(flows, "the heading").unwrap();
    String::from_utf8(out).unwrap()
}

fn options(sort: Option<Sort>, is_filtered: bool) -> Options {
    Options {
        filter: Filter {
            protocol: is_filtered.then_some(6),
            ..Filter::default()
        },
        view: View::List,
        sort,
        limit: None,
        watch: None,
        format: Format::Text,
        cni_dir: PathBuf::new(),
    }
}

#[test]
fn json_is_as_documented() {
    let young = Flow {
        age: ticks(60),
        ..flow(2, 40_001, 100)
    };
    let text = printed(Format::Json, &[flow(2, 40_000, 1_234_567), young]);
    let document: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "protocol": "tcp",
        "source": "172.16.0.2",
        "source_id": 40_000,
        "destination": "10.2.0.17",
        "destination_id": 443,
        "nat_address": "10.1.0.10",
        "nat_id": 40_000,
        "state": "Established",
        "age_seconds": 300,
        "idle_seconds": 4,
        "packets_out": 1200,
        "packets_in": 3,
        "bytes_out": 1_234_567,
        "began_at": "2026-11-28T10:14:59.957Z",
        "pod": {
            "namespace": "shop",
            "name": "old",
            "uid": "uid-old",
            "ended_at": "2026-11-28T10:17:00.000Z",
        },
    });
    assert_eq!(document["schema"], 1);
    assert_eq!(document["flows"][0], expected);
    let pod = json!({ "namespace": "shop", "name": "new", "uid": "uid-new" });
    assert_eq!(document["flows"][1]["pod"], pod);
    let keys = document.as_object().unwrap().keys();
    assert_eq!(keys.collect::<Vec<_>>(), ["flows", "schema"]);

    let nothing: Value = serde_json::from_str(&printed(Format::Json, &[])).unwrap();
    assert_eq!(nothing, json!({ "schema": 1, "flows": [] }));

    let lines = printed(Format::Jsonl, &[flow(3, 1, 2), flow(3, 2, 2)]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines.len(), &lines[1]["schema"]), (2, &json!(1)));
    assert_eq!(
        (&lines[1]["source_id"], lines[1].get("pod")),
        (&json!(2), None)
    );
}

#[test]
fn text_is_a_table_below_the_answer() {
    let wide = Flow {
        packets_out: 1_234_567,
        ..flow(3, 7, 12)
    };
    let text = printed(Format::Text, &[flow(2, 40_000, 1_234_567), wide]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "the heading",
            " PROTO  POD               DESTINATION    SEEN AS          STATE        AGE   IDLE  OUT        IN  BYTES OUT  BYTES IN  NAME",
            " tcp    172.16.0.2:40000  10.2.0.17:443  10.1.0.10:40000  Established  5m0s  4s    1,200      3   1.2 MiB    -         shop/old (gone 3m0s)",
            " tcp    172.16.0.3:7      10.2.0.17:443  10.1.0.10:7      Established  5m0s  4s    1,234,567  3   12 B       -         -",
        ]
    );
    assert_eq!(printed(Format::Text, &[]), "the heading\n");
}

#[test]
fn csv_has_as_many_cells_as_heads() {
    let text = printed(Format::Csv, &[flow(2, 40_000, 5), flow(3, 1, 2)]);
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.len() == 20), "{text}");
    let at = |head: &str| rows[0].iter().position(|cell| *cell == head).unwrap();
    assert_eq!((rows[1][at("pod")], rows[2][at("pod")]), ("old", ""));
    assert_eq!(
        (rows[1][at("bytes_out")], rows[1][at("bytes_in")]),
        ("5", "")
    );
    assert_eq!(rows[1][at("pod_ended_at")], "2026-11-28T10:17:00.000Z");
    assert_eq!(rows[1][at("pod_disputed")], "false");
}

#[test]
fn the_first_of_an_order_are_those_of_sorting_all() {
    let mut flows: Vec<_> = (0..500_u16)
        .map(|n| Flow {
            idle: u32::from(n % 13),
            age: u32::from(n % 7) + 100,
            packets_in: u64::from(n % 5),
            ..flow((n % 3) as u8, n.wrapping_mul(7919), u64::from(n % 31))
        })
        .collect();
    let by = |sort: Option<Sort>, flow: &Flow| match sort {
        Some(Sort::Bytes) => flow.bytes(),
        Some(Sort::Packets) => flow.packets(),
        Some(Sort::Age) => u64::from(flow.age),
        Some(Sort::Idle) => u64::from(flow.idle),
        Some(Sort::Rate) | None => 0,
    };
    for sort in [
        None,
        Some(Sort::Bytes),
        Some(Sort::Packets),
        Some(Sort::Age),
        Some(Sort::Idle),
    ] {
        let mut first = First::new(Order::new(sort, None), 20);
        flows.iter().for_each(|flow| first.push(flow));
        let first = first.into_sorted();
        flows.sort_by_key(|flow| {
            let (src, id) = (*flow.tuple.src.octets(), flow.tuple.src_id);
            (std::cmp::Reverse(by(sort, flow)), src, id)
        });
        assert_eq!(first, flows[..20], "{sort:?}");
        flows.reverse();
    }
    let mut first = First::new(Order::new(None, None), 20);
    first.push(&flows[0]);
    assert_eq!(first.into_sorted().len(), 1, "fewer than the limit");
}

#[test]
fn rates_have_a_column_and_decide_the_order() {
    let mut rates = Rates::default();
    let begin = Instant::now();
    rates.begin(begin);
    let before = [flow(2, 1, 8_000), flow(2, 2, 500)];
    before.iter().for_each(|flow| rates.see(flow));
    rates.begin(begin + Duration::from_secs(2));
    let now = [flow(2, 1, 8_000), flow(2, 2, 2_548), flow(2, 3, 7)];
    let mut first = First::new(Order::new(Some(Sort::Rate), Some(&rates)), 20);
    now.iter().for_each(|flow| first.push(flow));
    let flows = first.into_sorted();
    let ids: Vec<_> = flows.iter().map(|flow| flow.nat_id).collect();
    assert_eq!(ids, [2, 1, 3]);
    let names = names();
    let printed = |format| {
        let mut out = Vec::new();
        let mut writer = RowWriter::new(format, timed(&names), Some(&rates), &mut out);
        writer.print_all(&flows, "the heading").unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = printed(Format::Text);
    let ends: Vec<_> = text
        .lines()
        .skip(1)
        .map(|line| line.rsplit("  ").next().unwrap().trim())
        .collect();
    assert_eq!(ends, ["RATE", "1.0 KiB/s", "0 B/s", "-"], "{text}");
    let csv = printed(Format::Csv);
    let ends: Vec<_> = csv
        .lines()
        .map(|line| line.rsplit(',').next().unwrap())
        .collect();
    assert_eq!(ends, ["bytes_per_second", "1024", "0", ""]);
    let json: Value = serde_json::from_str(&printed(Format::Json)).unwrap();
    assert_eq!(json["flows"][0]["bytes_per_second"], 1024);
    assert_eq!(json["flows"][2].get("bytes_per_second"), None);
}

#[test]
fn the_heading_tells_how_much_of_what_is_shown() {
    let heading = |all, matching, shown, sort, is_filtered| {
        let counts = Counts { all, matching };
        heading(counts, shown, &options(sort, is_filtered))
    };
    let bytes = Some(Sort::Bytes);
    assert_eq!(heading(1, 1, 1, None, false), "1 mapping");
    assert_eq!(heading(4000, 4000, 4000, None, false), "4,000 mappings");
    assert_eq!(
        heading(4000, 4000, 3, bytes, false),
        "3 of 4,000 mappings, most bytes first"
    );
    assert_eq!(
        heading(4000, 31, 31, None, true),
        "31 of 4,000 mappings match"
    );
    assert_eq!(
        heading(4000, 31, 3, bytes, true),
        "3 of the 31 that match, of 4,000 mappings, most bytes first"
    );
}

#[test]
fn kept_flows_have_their_reasons_as_codes() {
    let names = names();
    let kept = |reason, state, id| Kept {
        tuple: flow(2, id, 0).tuple,
        reason,
        state,
        idle: ticks(4),
    };
    let flows = vec![
        kept(KeptReason::Either, KeptState::Closed, 3),
        kept(KeptReason::BeganOutside, KeptState::Unanswered, 1),
        kept(KeptReason::BypassedEarlier, KeptState::Answered, 2),
    ];
    let print = |format, limit| {
        let mut out = Vec::new();
        kept::write(&mut out, timed(&names), format, 3, flows.clone(), limit).unwrap();
        String::from_utf8(out).unwrap()
    };
    let document: Value = serde_json::from_str(&print(Format::Json, None)).unwrap();
    assert_eq!(
        document["kept"][0],
        json!({
            "protocol": "tcp",
            "source": "172.16.0.2",
            "source_id": 1,
            "destination": "10.2.0.17",
            "destination_id": 443,
            "state": "unanswered",
            "idle_seconds": 4,
            "codes": ["NDP601"],
            "pod": { "namespace": "shop", "name": "new", "uid": "uid-new" },
        })
    );
    let codes: Vec<_> = document["kept"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["codes"])
        .collect();
    let expected = [
        json!(["NDP601"]),
        json!(["NDP602"]),
        json!(["NDP601", "NDP602"]),
    ];
    assert_eq!(codes, expected.iter().collect::<Vec<_>>());
    let text = print(Format::Text, None);
    assert!(
        text.starts_with("3 flows keep their pod's address\n"),
        "{text}"
    );
    assert!(
        text.contains("bypassed by an earlier policy (NDP602)"),
        "{text}"
    );
    let text = print(Format::Text, Some(1));
    assert!(text.starts_with("1 of 3 flows that keep"), "{text}");
    assert_eq!(print(Format::Jsonl, Some(2)).lines().count(), 2);
}
