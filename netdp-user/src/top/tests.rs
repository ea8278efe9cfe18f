//! Frames of the screen, compared with what they were when somebody last looked at them.

use super::keys::{Keys, Tab};
use super::sampler::{Sample, UplinkSample};
use super::view::{Sort, View};
use super::{Options, frame};
use crate::datapath::{Destination, Usage, Use};
use crate::pods::{Claim, Names};
use crate::policy::PrefixUse;
use crate::report::{ConfigReport, Report};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use netdp_common::layout::{Counters, DropReason, Traffic, proto};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OPTIONS: Options = Options {
    interval: Duration::from_secs(2),
    sort: Sort::Mappings,
    tab: 0,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn destination(protocol: u32, to: &str, id: u16) -> Destination {
    let address = address(to);
    Destination {
        protocol,
        address,
        id,
        seen_as: match address {
            IpAddr::V4(_) => "10.1.0.10".parse().unwrap(),
            IpAddr::V6(_) => "2001:db8::10".parse().unwrap(),
        },
    }
}

fn used(mappings: u64, new: u64, bytes_out: u64, bytes_in: u64) -> Use {
    Use {
        mappings,
        new,
        bytes_out,
        bytes_in,
    }
}

fn traffic(packets: u64, bytes: u64) -> Traffic {
    Traffic { packets, bytes }
}

/// Returns the sample number `n` of a node whose pods send more and more, ten seconds apart.
fn sample(begin: Instant, n: u64) -> Sample {
    let mut counters = Counters {
        egress_masqueraded: traffic(8_120_000 * n, 21_500_000_000 * n),
        egress_bypassed: traffic(13_000_000 * n, 32_000_000_000 * n),
        ingress_translated: traffic(7_000_000 * n, 1_000_000_000 * n),
        mappings_created: 23_100 * n,
        ..Counters::default()
    };
    *counters.drops.get_mut(DropReason::TcpNoFlow) = 140 * n;
    *counters.drops.get_mut(DropReason::NoFreePort) = 7 * n;
    let busy = destination(proto::TCP, "203.0.113.10", 443);
    let mut usage = Usage::default();
    usage.protocols.tcp = 58_000 + 1_000 * n;
    usage.protocols.udp = 604;
    usage.pods.insert(
        address("172.16.0.9"),
        used(51_377, 19_040, 430_000_000 * n, 33_500_000 * n),
    );
    usage
        .pods
        .insert(address("172.16.0.2"), used(812, 10, 9_000 * n, 1_000 * n));
    usage
        .pods
        .insert(address("2001:db8:1::7"), used(604, 0, 0, 0));
    usage.destinations.insert(
        busy,
        used(56_000 + 1_000 * n, 19_000, 430_000_000 * n, 33_500_000 * n),
    );
    let database = destination(proto::TCP, "10.2.0.17", 5432);
    usage
        .destinations
        .insert(database, used(812, 10, 9_000 * n, 1_000 * n));
    let resolver = destination(proto::UDP, "2001:db8::53", 53);
    usage.destinations.insert(resolver, used(604, 0, 0, 0));
    usage.shares.insert((address("172.16.0.9"), busy), 51_377);
    Sample {
        at: begin + Duration::from_secs(10 * n),
        took: Duration::from_millis(3),
        node: "node-a".into(),
        names: Arc::new(Names::of(
            [Claim {
                address: address("172.16.0.9"),
                namespace: "shop".into(),
                name: "checkout-7f".into(),
                uid: None,
                from: 0,
                until: None,
            }],
            1_000_000,
        )),
        usage,
        counters,
        uplinks: vec![
            UplinkSample {
                name: "eth0".into(),
                counters,
            },
            UplinkSample {
                name: "eth1\u{1b}[2J".into(),
                counters: Counters::default(),
            },
        ],
        capacity: 2_097_152,
        ports: 61_744,
        report: Some(Report {
            config: ConfigReport {
                hash: "a030bc85".into(),
                applied_at: crate::time::now() - 2 * 86_400 - 10,
                ..ConfigReport::default()
            },
            ..Report::default()
        }),
        has_agent: true,
        runs: None,
        no_runs: None,
        prefixes: vec![
            prefix("10.0.0.0/8", 0, 13_000_000 * n),
            prefix("10.2.0.0/24", 1, 0),
            prefix("", 0, 8_120_000 * n),
        ],
        no_prefixes: None,
    }
}

fn prefix(prefix: &str, depth: usize, packets: u64) -> PrefixUse {
    PrefixUse {
        prefix: prefix.parse().ok(),
        depth,
        is_masqueraded: !prefix.ends_with("/8"),
        packets,
        bytes: packets * 1_000,
        flows: if prefix.is_empty() { packets / 10 } else { 0 },
        origin: Some(if prefix.is_empty() {
            "built-in".into()
        } else {
            "kube-system/ip-masq-agent/config:3".into()
        }),
    }
}

fn view() -> View {
    let begin = Instant::now();
    let mut view = View::default();
    for n in 1..=4 {
        view.add(sample(begin, n));
    }
    view
}

fn press(keys: &mut Keys, code: KeyCode) {
    keys.press(KeyEvent::new(code, KeyModifiers::NONE));
}

fn shown(view: &View, keys: &mut Keys, size: (u16, u16)) -> String {
    let text = frame(view, keys, size).unwrap();
    let (columns, rows) = size;
    assert!(text.lines().count() <= usize::from(rows));
    for line in text.lines() {
        assert!(line.chars().count() <= usize::from(columns), "{line}");
    }
    text
}

/// Compares a frame with the file of this name below `frames`; `NETDP_REWRITE_DOCS=1` writes it.
#[track_caller]
fn is_as_before(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/frames");
    let path = path.join(format!("{name}.txt"));
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let before = std::fs::read_to_string(&path).unwrap();
    assert!(before == text, "{name} was\n{before}\nand is\n{text}");
}

#[test]
fn frames_are_as_before() {
    let view = view();
    for (size, name) in [((80, 24), "80x24"), ((40, 15), "40x15")] {
        let mut keys = Keys::new(&OPTIONS);
        for tab in Tab::ALL {
            keys.tab = tab;
            let text = shown(&view, &mut keys, size);
            is_as_before(&format!("{}-{name}", tab.title()), &text);
        }
        press(&mut keys, KeyCode::Char('?'));
        is_as_before(&format!("help-{name}"), &shown(&view, &mut keys, size));
    }
}

#[test]
fn before_the_first_sample_and_without_an_agent_it_says_so() {
    let mut keys = Keys::new(&OPTIONS);
    let text = shown(&View::default(), &mut keys, (80, 24));
    assert!(text.contains("reading the maps"), "{text}");
    let mut view = View::default();
    let mut alone = sample(Instant::now(), 1);
    (alone.has_agent, alone.report) = (false, None);
    view.add(alone);
    let text = shown(&view, &mut keys, (80, 24));
    assert!(text.contains("no agent is running"), "{text}");
    assert!(text.contains("config -"), "{text}");
}

#[test]
fn names_cannot_control_the_terminal() {
    let text = shown(&view(), &mut Keys::new(&OPTIONS), (80, 24));
    assert!(
        !text.contains('\u{1b}') && text.contains("eth1\\u{1b}"),
        "{text}"
    );
}

#[test]
fn every_column_can_be_reached_where_not_all_fit() {
    let view = view();
    let mut keys = Keys::new(&OPTIONS);
    press(&mut keys, KeyCode::Char('2'));
    let mut heads = String::new();
    for _ in 0..20 {
        heads += &shown(&view, &mut keys, (40, 15));
        press(&mut keys, KeyCode::Right);
    }
    for head in [
        "MAPPINGS", "NEW/s", "OUT/s", "IN/s", "PORTS", "FULL IN", "SEEN AS",
    ] {
        assert!(heads.contains(head), "{head}");
    }
    // Presses beyond the last column are not remembered.
    let last = shown(&view, &mut keys, (40, 15));
    press(&mut keys, KeyCode::Left);
    assert_ne!(shown(&view, &mut keys, (40, 15)), last);
}

#[test]
fn keys_sort_filter_scroll_and_pause() {
    let view = view();
    let mut keys = Keys::new(&OPTIONS);
    press(&mut keys, KeyCode::Char('/'));
    for letter in "2001:q".chars() {
        press(&mut keys, KeyCode::Char(letter));
    }
    press(&mut keys, KeyCode::Backspace);
    press(&mut keys, KeyCode::Enter);
    assert!(!keys.is_over(), "q is a letter of the filter");
    let text = shown(&view, &mut keys, (80, 24));
    assert!(
        text.contains("2001:db8:1::7") && !text.contains("172.16.0.9"),
        "{text}"
    );
    press(&mut keys, KeyCode::Char('/'));
    press(&mut keys, KeyCode::Char('x'));
    press(&mut keys, KeyCode::Enter);
    assert!(shown(&view, &mut keys, (80, 24)).contains("no row has these words"));
    press(&mut keys, KeyCode::Esc);
    assert!(shown(&view, &mut keys, (80, 24)).contains("172.16.0.2"));

    for (key, head) in [
        ('s', "NEW/s▾"),
        ('s', "OUT/s▾"),
        ('s', "IN/s▾"),
        ('s', "MAPPINGS▾"),
    ] {
        press(&mut keys, KeyCode::Char(key));
        assert!(shown(&view, &mut keys, (80, 24)).contains(head));
    }

    press(&mut keys, KeyCode::PageDown);
    shown(&view, &mut keys, (80, 24));
    assert_eq!(keys.first_row, 0, "all rows fit");
    press(&mut keys, KeyCode::Char('p'));
    assert!(keys.is_paused() && shown(&view, &mut keys, (80, 24)).contains("PAUSED"));
    press(&mut keys, KeyCode::Char('p'));
    assert!(!keys.is_paused());
    press(&mut keys, KeyCode::BackTab);
    assert!(keys.tab == Tab::Uplinks);
    press(&mut keys, KeyCode::Tab);
    assert!(keys.tab == Tab::Pods);
    keys.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(keys.is_over());
}

#[test]
fn ports_that_run_out_are_foretold() {
    let mut view = view();
    let busy = destination(proto::TCP, "203.0.113.10", 443);
    // 60,000 of 61,744 are used, and 1,000 more every ten seconds.
    assert_eq!(view.full_in(&busy), Some(17));
    assert_eq!(view.worst(address("172.16.0.9")), Some((busy, 51_377)));
    assert_eq!(view.worst(address("172.16.0.2")), None);
    let resolver = destination(proto::UDP, "2001:db8::53", 53);
    assert_eq!(
        view.full_in(&resolver),
        None,
        "nothing is watched that is hardly used"
    );
    let begin = Instant::now();
    view = View::default();
    view.add(sample(begin, 1));
    assert_eq!(view.full_in(&busy), None, "one look has no past");
}
