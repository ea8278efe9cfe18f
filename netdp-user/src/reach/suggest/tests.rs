use super::{Answer, Suggestion};
use crate::config::{Document, Format as DocumentFormat, Options, load};
use crate::reach::{Counts, Observed, Window};
use crate::report::RuleReport;
use serde_json::json;

fn rule(prefix: &str, action: &str, origin: &str) -> RuleReport {
    RuleReport {
        prefix: prefix.into(),
        action: action.into(),
        origin: origin.into(),
    }
}

/// Returns the suggestion for networks with these attempts of pods, none of them answered, and of
/// the node, all of them answered.
fn suggestion(networks: &[(&str, u64, u64)], rules: &[RuleReport]) -> Suggestion {
    let counts = |&(network, pod_new, node_new): &(&str, u64, u64)| {
        let counts = Counts {
            pod_new,
            node_new,
            node_answered: node_new,
            pod_packets: pod_new,
            ..Counts::default()
        };
        (network.parse().unwrap(), counts)
    };
    let observed: Observed = networks.iter().map(counts).collect();
    let mut window = Window::default();
    window.observe(1_700_000_000, observed);
    Suggestion::new(&window, rules, true)
}

fn broad() -> Vec<RuleReport> {
    vec![
        rule("169.254.0.0/16", "bypass", "built-in"),
        rule("10.0.0.0/8", "bypass", "/etc/config/a:2"),
        rule("10.9.0.0/29", "masquerade", "/etc/config/a:4"),
    ]
}

#[test]
fn adjacent_networks_are_one_prefix_and_no_other_is_added() {
    let networks = [
        ("10.2.0.0/24", 30, 5),
        ("10.2.1.0/24", 30, 5),
        ("10.2.2.0/24", 30, 5),
        ("10.2.3.0/24", 3, 5),
    ];
    let found = suggestion(&networks, &broad());
    assert_eq!(found.answer(), Answer::Some);
    let change = found.change.as_ref().unwrap();
    assert_eq!(
        change.document,
        "masqueradeCIDRs:\n- 10.9.0.0/29\n- 10.2.0.0/23\n- 10.2.2.0/24\n"
    );
    assert!(
        found
            .text()
            .starts_with("3 bypassed networks have no way back to pods: 10.2.0.0/24")
    );
    assert!(found.text().ends_with(&change.document));
}

#[test]
fn entries_that_would_still_bypass_have_to_go() {
    let mut rules = broad();
    rules.push(rule("10.2.0.0/24", "bypass", "/etc/config/a:3"));
    rules.push(rule("10.2.0.128/25", "bypass", "/etc/config/b:1"));
    let found = suggestion(&[("10.2.0.0/24", 30, 5)], &rules);
    let change = found.change.as_ref().unwrap();
    assert_eq!(
        change.document,
        "nonMasqueradeCIDRs:\n- 10.0.0.0/8\nmasqueradeCIDRs:\n- 10.9.0.0/29\n- 10.2.0.0/24\n"
    );
    assert!(
        found
            .text()
            .contains("Remove 10.2.0.0/24 from /etc/config/a:3.")
    );
    let alone = suggestion(&[("10.2.0.0/24", 30, 5)], &rules[3..4]);
    let change = alone.change.unwrap();
    assert_eq!(
        change.document,
        "nonMasqueradeCIDRs: []\nmasqueradeCIDRs:\n- 10.2.0.0/24\n"
    );
}

#[test]
fn the_document_is_read_and_masquerades_the_network() {
    let document = |name: &str, text: &str| Document {
        name: name.into(),
        text: text.into(),
        format: DocumentFormat::MasqAgent,
    };
    let before = document("a", "nonMasqueradeCIDRs: [10.0.0.0/8]\n");
    let rules = vec![rule("10.0.0.0/8", "bypass", "a:1")];
    let found = suggestion(&[("10.2.0.0/24", 30, 5)], &rules);
    let loaded = load(&[before, document("b", &found.yaml())], &Options::default()).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert!(loaded.config.masquerades("10.2.0.0/24".parse().unwrap()));
    assert!(!loaded.config.masquerades("10.2.1.0/24".parse().unwrap()));
}

#[test]
fn too_few_attempts_and_a_node_that_has_not_tried_are_unknown() {
    let few = suggestion(&[("10.2.0.0/24", 19, 5)], &broad());
    assert_eq!(few.answer(), Answer::Unknown);
    assert!(
        few.text().contains("19 attempts to connect to 10.2.0.0/24"),
        "{}",
        few.text()
    );
    let silent = suggestion(&[("10.2.0.0/24", 1_200, 0)], &broad());
    assert_eq!(silent.answer(), Answer::Unknown);
    assert!(silent.text().contains("0 of 1,200"), "{}", silent.text());
    assert!(
        silent.text().contains("netdp probe -n 3 "),
        "{}",
        silent.text()
    );
}

#[test]
fn entries_within_a_suggested_network_are_not_repeated() {
    let found = suggestion(&[("10.9.0.0/24", 30, 5)], &broad());
    let change = found.change.unwrap();
    assert_eq!(change.document, "masqueradeCIDRs:\n- 10.9.0.0/24\n");
}

#[test]
fn json_has_this_shape() {
    let found = suggestion(&[("10.2.0.0/24", 30, 5)], &broad());
    let expected = json!({
        "schema": 1,
        "agent_running": true,
        "at": "2023-11-14T22:13:20Z",
        "window_seconds": 600,
        "most_attempts": 30,
        "most_attempted": "10.2.0.0/24",
        "networks": [{
            "network": "10.2.0.0/24",
            "verdict": "no-way-back",
            "pod_new": 30,
            "pod_answered": 0,
            "pod_packets": 30,
            "node_new": 5,
            "node_answered": 5,
        }],
        "change": {
            "masquerade": ["10.2.0.0/24"],
            "no_longer_bypass": [],
            "document": "masqueradeCIDRs:\n- 10.9.0.0/29\n- 10.2.0.0/24\n",
        },
    });
    assert_eq!(serde_json::to_value(&found).unwrap(), expected);
    let none = serde_json::to_value(suggestion(&[], &broad())).unwrap();
    assert!(none.get("change").is_none(), "{none}");
}
