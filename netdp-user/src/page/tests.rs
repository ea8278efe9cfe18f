//! The markup of whole pages.

use super::html::{Asked, Content, explained, overview, unexplained};
use super::look::{Look, Ports, Used};
use super::past::tests::past;
use crate::control::AgentStatus;
use crate::datapath::Destination;
use crate::events::{Kind, Note, Recent, What};
use crate::explain::answer::{Answers, Case, End};
use crate::monitor::{Line, Sources};
use crate::policy::history::Record;
use crate::policy::{row, view};
use crate::report::{ConfigReport, Report, Status, UplinkReport};
use netdp_common::layout::{Action, proto};
use std::path::Path;
use std::time::Instant;

/// Returns a name that was made to do harm, longer than anything is shown.
fn hostile() -> String {
    let script = "<script>alert(1)</script>\"' onload='x' &amp; \u{202e}";
    format!("{script}{}", "<b>".repeat(100))
}

/// Returns a look at a node with `rules` rules, of which all strings are `name`.
fn look(name: &str, rules: usize) -> Look {
    let mut view = view();
    let mut written = row("10.2.0.0/24", 3, Action::Masquerade, 91_204_113_009);
    written.origin = Some(name.to_owned());
    written.codes = vec![crate::codes::Code::NeverHit, crate::codes::Code::NoEffect];
    view.rows.resize(rules, written);
    let report = Report {
        uplinks: (0..16)
            .map(|n| UplinkReport {
                name: name.to_owned(),
                ifindex: n,
                attached: "tcx".into(),
                v4: Some([10, 1, 0, 10].into()),
                v6: None,
                up: n % 2 == 0,
            })
            .collect(),
        leaks: vec![name.to_owned(); 60],
        config: ConfigReport {
            warnings: vec![name.to_owned(); 60],
            ..ConfigReport::default()
        },
        ..Report::default()
    };
    let used = |n| Used {
        to: Destination {
            protocol: proto::TCP,
            address: [203, 0, 113, n].into(),
            id: 443,
            seen_as: [10, 1, 0, 10].into(),
        },
        ports: 58_102,
        pods: 14,
        biggest: Some((name.to_owned(), 51_377)),
        full_in: Some(2_460),
    };
    Look {
        at: Instant::now(),
        status: Ok(Status::with(report)),
        policy: Ok(view),
        ports: Ok(Ports {
            of: 61_744,
            used: (0..10).map(used).collect(),
            destinations: 12,
        }),
    }
}

/// Returns as many events as are kept, with a text.
fn events(text: &str) -> Vec<Line> {
    let recent = Recent::default();
    for _ in 0..250 {
        recent.note(What::Finding(Note {
            text: text.to_owned(),
            is_fault: true,
        }));
    }
    let nowhere = Path::new("/nonexistent");
    let sources = Sources {
        bpffs: nowhere,
        state_dir: nowhere,
        cni_dir: nowhere,
    };
    crate::monitor::recent(&recent, &sources)
}

/// Returns the overview of such a node.
fn page(name: &str, rules: usize) -> String {
    let agent = AgentStatus {
        hash: "a030bc85a030bc85".into(),
        source: name.to_owned(),
        uplinks: vec![name.to_owned(); 16],
        unready: vec![name.to_owned(); 20],
        applied_at: 1_000_000 - 2 * 86_400,
        ..AgentStatus::default()
    };
    let record = |n| Record::new((n, name), 1_000_000, name, Vec::new());
    let content = Content {
        node: name.to_owned(),
        now: 1_000_000,
        agent,
        look: &look(name, rules),
        past: &past(360),
        events: events(name),
        heard: vec![Kind::Begin],
        records: Some((1..=50).map(record).collect()),
        every: Some(5),
    };
    overview(&content).into_string()
}

#[test]
fn nothing_that_others_named_is_markup() {
    let name = hostile();
    let asked = Asked {
        node: name.clone(),
        from: &name,
        to: &name,
        protocol: "tcp",
    };
    let answers = Answers::new(true, Vec::new(), Vec::new());
    for markup in [
        page(&name, 300),
        explained(&asked, &answers).into_string(),
        unexplained(&asked, &name).into_string(),
    ] {
        for harm in ["<script", "<b>", "\"'", "\u{202e}"] {
            let at = markup.find(harm);
            assert_eq!(
                at,
                None,
                "{harm}: {}",
                markup.get(at.unwrap_or(0)..).unwrap_or_default()
            );
        }
        assert!(markup.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;"));
    }
}

#[test]
fn a_page_has_at_most_200_kilobytes_however_much_there_is() {
    let name = "kube-system/ip-masq-agent/config:12345, and more of it ".repeat(3);
    let markup = page(&name, 100_000);
    let size = markup.len();
    assert!(size <= 200_000, "{size}");
    // Events take what is left.
    assert!(size > 190_000, "{size}");
    assert!(markup.contains(" events of 200, the newest first"));
}

#[test]
fn headings_are_in_order_and_each_table_and_drawing_is_described() {
    let markup = page("eth0", 5);
    let headings = markup.match_indices("<h").filter_map(|(at, _)| {
        let level = markup.get(at + 2..at + 3)?;
        level.parse::<u32>().ok()
    });
    let headings: Vec<_> = headings.collect();
    assert_eq!(headings.first(), Some(&1));
    assert!(
        headings.iter().skip(1).all(|level| *level > 1),
        "{headings:?}"
    );
    assert!(
        headings.windows(2).all(|two| two[1] <= two[0] + 1),
        "{headings:?}"
    );
    let count = |of: &str| markup.matches(of).count();
    assert_eq!(count("<table"), count("<caption>"));
    assert_eq!(count("<svg"), count(" role=\"img\" aria-label=\""));
    for never in ["style=\"", "<script", "http://", "https://"] {
        assert_eq!(count(never) - usize::from(never == "http://"), 0, "{never}");
    }
}

#[test]
fn the_first_sentence_says_what_is_in_force() {
    let markup = page("eth0", 5);
    for words in [
        "eth0 is not ready",
        "Policy <code>a030bc85</code> from eth0 has been in force on eth0, eth0",
        "for 2d0h",
        "58,102 of 61,744",
        "41m0s",
        "everything else",
        "Do: ",
        "The newest 200 events",
        "It listens now, to begin.",
    ] {
        assert!(markup.contains(words), "{words}: {markup}");
    }
}

#[test]
fn a_form_remembers_what_was_asked() {
    let to = End::parse("10.2.0.17:443").unwrap();
    let names = crate::pods::Names::of([], 0);
    assert_eq!(Case::of(&[], &[to], 17, &names).unwrap().len(), 1);
    let asked = Asked {
        node: "node-a".into(),
        from: "shop/cart",
        to: "10.2.0.17:443",
        protocol: "udp",
    };
    let markup = unexplained(&asked, "no pod of this node has that name").into_string();
    for words in [
        "value=\"shop/cart\"",
        "value=\"10.2.0.17:443\"",
        "<option value=\"udp\" selected>",
        "no pod of this node has that name",
    ] {
        assert!(markup.contains(words), "{words}: {markup}");
    }
}
