//! Merge of several files.

use super::*;

#[track_caller]
fn merge(docs: &[(&str, &str)]) -> Loaded {
    let docs: Vec<_> = docs.iter().map(|(name, text)| doc(name, text)).collect();
    load(&docs, &V4).unwrap()
}

#[test]
fn lists_are_united_and_booleans_ored() {
    let loaded = merge(&[
        (
            "a",
            "nonMasqueradeCIDRs: [192.0.2.0/24, 10.0.0.0/8]\nresyncInterval: 5m\n",
        ),
        (
            "b",
            "nonMasqueradeCIDRs: [10.0.0.0/8, 1.0.0.0/8]\nmasqLinkLocal: false\n",
        ),
        (
            "c",
            "masqLinkLocal: true\nresyncInterval: 30s\nmasqueradeCIDRs: [10.0.0.0/29]\n",
        ),
        (
            "d",
            "masqLinkLocal: false\nmasqLinkLocalIPv6: true\nresyncInterval: 0s\n",
        ),
    ]);
    let config = loaded.config;
    assert_eq!(
        prefixes(&config, RuleAction::Bypass),
        ["192.0.2.0/24", "10.0.0.0/8", "1.0.0.0/8"]
    );
    assert_eq!(prefixes(&config, RuleAction::Masquerade), ["10.0.0.0/29"]);
    assert!(config.masq_link_local && config.masq_link_local_ipv6);
    assert_eq!(config.resync_interval, Duration::from_secs(30));
    assert_eq!(config.rules[1].origin.to_string(), "a:1");
    let by: Vec<_> = config.rules[1]
        .also
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(by, ["b:1"]);
    let warnings = lines(&loaded.warnings);
    let starts = [
        "a:2: resyncInterval: 300s has no effect, because c:2 has the shorter 30s",
        "b:2: masqLinkLocal: false has no effect, because c:1 sets true",
        "d:1: masqLinkLocal: false has no effect, because c:1 sets true",
        "d:2: masqLinkLocalIPv6: true has no effect, because IPv6 is off; pass --enable-ipv6",
        "d:3: resyncInterval: \"0s\" is not positive",
    ];
    assert_eq!(warnings.len(), starts.len(), "{warnings:#?}");
    for (warning, start) in warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warning}");
    }
}

#[test]
fn defaults_stay_until_some_file_sets_the_list() {
    let loaded = merge(&[
        ("a", "masqLinkLocal: true"),
        ("b", "masqueradeCIDRs: [10.0.0.0/29]"),
    ]);
    assert_eq!(prefixes(&loaded.config, RuleAction::Bypass), RFC1918);
    let loaded = merge(&[
        ("a", "masqLinkLocal: true"),
        ("b", "nonMasqueradeCIDRs: [1.0.0.0/8]"),
    ]);
    assert_eq!(prefixes(&loaded.config, RuleAction::Bypass), ["1.0.0.0/8"]);
    // An empty list is only remarkable if it stays empty.
    let loaded = merge(&[
        ("a", "nonMasqueradeCIDRs: []"),
        ("b", "nonMasqueradeCIDRs: [1.0.0.0/8]"),
    ]);
    assert_eq!(loaded.warnings, []);
    let loaded = merge(&[
        ("a", "masqLinkLocal: true"),
        ("b", "\nnonMasqueradeCIDRs: []"),
    ]);
    assert_eq!(prefixes(&loaded.config, RuleAction::Bypass), [""; 0]);
    assert!(lines(&loaded.warnings)[0].starts_with("b:2: nonMasqueradeCIDRs is empty"));
}

#[test]
fn contradictions_name_both_places() {
    for (a, b, expected) in [
        (
            "nonMasqueradeCIDRs:\n- 10.0.0.0/8",
            "masqueradeCIDRs: [10.0.0.0/8]",
            "b:1: 10.0.0.0/8 is in masqueradeCIDRs here, but in nonMasqueradeCIDRs at a:2; keep",
        ),
        (
            "masqueradeCIDRs:\n\n- 10.0.0.0/8",
            "nonMasqueradeCIDRs: [10.0.0.0/8]",
            "a:3: 10.0.0.0/8 is in masqueradeCIDRs here, but in nonMasqueradeCIDRs at b:1; keep",
        ),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.0.0.0/8]",
            "",
            "a:2: 10.0.0.0/8 is in masqueradeCIDRs here, but in nonMasqueradeCIDRs at a:1; keep",
        ),
    ] {
        let rejected = load(&[doc("a", a), doc("b", b)], &V4).unwrap_err();
        let errors = lines(&rejected.errors);
        assert!(
            errors.len() == 1 && errors[0].starts_with(expected),
            "{errors:?}"
        );
    }
}

#[test]
fn what_is_written_beats_what_is_built_in() {
    let config = accept("masqueradeCIDRs: [169.254.0.0/16, 10.0.0.0/8, fe80::/10]").config;
    assert_eq!(
        prefixes(&config, RuleAction::Masquerade),
        ["169.254.0.0/16", "10.0.0.0/8", "fe80::/10"]
    );
    assert_eq!(
        prefixes(&config, RuleAction::Bypass),
        ["172.16.0.0/12", "192.168.0.0/16"]
    );
    let loaded = accept("nonMasqueradeCIDRs: [169.254.0.0/16]");
    assert_eq!(loaded.warnings, []);
    assert_eq!(
        prefixes(&loaded.config, RuleAction::Bypass),
        ["fe80::/10", "169.254.0.0/16"]
    );
    assert_eq!(loaded.config.rules[1].origin.to_string(), "c.yaml:1");
}

#[test]
fn one_bad_file_rejects_the_set() {
    let rejected = load(&[doc("a", "masqLinkLocal: true"), doc("b", "{*")], &V4).unwrap_err();
    assert_eq!(rejected.errors.len(), 1);
    assert_eq!(rejected.errors[0].file, "b");
}
