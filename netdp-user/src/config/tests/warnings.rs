//! Warnings, which reject nothing: each must name file, line and entry.

use super::*;

/// Asserts that `text` is accepted with exactly one warning, which begins with `start` and contains
/// every fragment.
#[track_caller]
fn warns(text: &str, start: &str, fragments: &[&str]) -> Config {
    let loaded = accept(text);
    let warnings = lines(&loaded.warnings);
    let [warning] = warnings.as_slice() else {
        panic!("{text:?}: not one: {warnings:#?}")
    };
    assert!(warning.starts_with(start), "{text:?}: {warning}");
    for fragment in fragments {
        assert!(warning.contains(fragment), "{text:?}: {warning}");
    }
    loaded.config
}

#[test]
fn warnings_reject_nothing() {
    let config = warns(
        "nonMasqueradeCIDRs: []",
        "c.yaml:1: nonMasqueradeCIDRs is empty",
        &["all destinations are masqueraded"],
    );
    assert_eq!(bypasses(&config), [""; 0]);
    let config = warns(
        "resyncInterval: 0s",
        "c.yaml:1: resyncInterval: \"0s\" is not positive",
        &["60s"],
    );
    assert_eq!(config.resync_interval, DEFAULT_RESYNC_INTERVAL);
    let config = warns(
        "\nresyncInterval: -5m",
        "c.yaml:2: resyncInterval: \"-5m\" is not",
        &["60s"],
    );
    assert_eq!(config.resync_interval, DEFAULT_RESYNC_INTERVAL);
    let config = warns(
        "resyncInterval: 1ms",
        "c.yaml:1: resyncInterval: \"1ms\" is too short",
        &["100ms"],
    );
    assert_eq!(config.resync_interval, MIN_RESYNC_INTERVAL);
    let config = warns(
        "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 1.0.0.0/8\n- 10.0.0.0/8\n",
        "c.yaml:4: nonMasqueradeCIDRs[2]: 10.0.0.0/8 is already listed in line 2",
        &[],
    );
    assert_eq!(bypasses(&config), ["10.0.0.0/8", "1.0.0.0/8"]);
    let config = warns(
        "masqueradeCIDRs:\n",
        "c.yaml:1: masqueradeCIDRs is null",
        &["[]"],
    );
    assert_eq!(bypasses(&config), RFC1918);
    warns(
        "masqLinkLocal: ~",
        "c.yaml:1: masqLinkLocal is null",
        &["false"],
    );
    warns("cidrLimit: null", "c.yaml:1: cidrLimit is null", &["64"]);
    assert_eq!(
        accept("resyncInterval: 100ms\nmasqueradeCIDRs: [10.8.8.0/24]").warnings,
        []
    );
}

#[test]
fn unknown_keys_are_warned_of() {
    for (key, nearest) in [
        ("nonMasqueradeCIDR", "did you mean nonMasqueradeCIDRs?"),
        ("nonMasqCIDRs", "did you mean nonMasqueradeCIDRs?"),
        ("masqueradeCidr", "did you mean masqueradeCIDRs?"),
        ("masqLinkLokal", "did you mean masqLinkLocal?"),
        ("masqLinkLocalIpv4", "did you mean masqLinkLocalIPv6?"),
        ("resyncIntervall", "did you mean resyncInterval?"),
        ("resync_interval", "did you mean resyncInterval?"),
        ("cidrLimits", "did you mean cidrLimit?"),
        (
            "zzz",
            "the known keys are nonMasqueradeCIDRs, masqueradeCIDRs,",
        ),
        ("7", "the known keys are"),
    ] {
        let text = format!("masqLinkLocal: true\n{key}: [1, {{a: b}}]\n");
        let start = format!("c.yaml:2: unknown key \"{key}\" is ignored; {nearest}");
        let config = warns(&text, &start, &[]);
        assert_eq!(bypasses(&config), RFC1918);
    }
    let long = format!("{}: 1", "nonMasqueradeCIDRs".repeat(20));
    assert!(
        accept(&long).warnings[0]
            .message
            .contains("the known keys are")
    );
}

#[test]
fn a_bypass_within_a_bypass_is_warned_of() {
    let shadowed = "nonMasqueradeCIDRs:\n- 10.1.0.0/16\n- 10.0.0.0/8\n";
    let start = "c.yaml:2: nonMasqueradeCIDRs: 10.1.0.0/16 changes nothing";
    warns(shadowed, start, &["10.0.0.0/8 (c.yaml:3) contains it"]);
    let link_local = "nonMasqueradeCIDRs:\n- 169.254.169.254/32\n";
    let start = "c.yaml:2: nonMasqueradeCIDRs: 169.254.169.254/32 changes nothing";
    warns(link_local, start, &["169.254.0.0/16 (built-in)"]);
    // With an exception between the two, or siblings, or the other family, there is no shadow.
    for text in [
        "nonMasqueradeCIDRs: [10.0.0.0/8, 10.1.1.0/24]\nmasqueradeCIDRs: [10.1.0.0/16]",
        "nonMasqueradeCIDRs: [10.0.0.0/9, 10.128.0.0/9, 10.0.0.0/7]\nmasqueradeCIDRs: [10.0.0.0/8]",
        "nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']",
        // They replace built-in rules.
        "masqueradeCIDRs: [10.0.0.0/8, 169.254.0.0/16, 'fe80::/10']",
    ] {
        assert_eq!(accept(text).warnings, [], "{text}");
    }
}

#[test]
fn a_masquerade_that_changes_nothing_is_warned_of() {
    for (text, expected) in [
        (
            "masqueradeCIDRs: [10.0.0.0/29, 10.0.0.0/30]",
            "masqueradeCIDRs: 10.0.0.0/30 changes nothing, because 10.0.0.0/29 (c.yaml:1) contains",
        ),
        (
            "masqueradeCIDRs: [8.8.8.0/24]",
            "masqueradeCIDRs: 8.8.8.0/24 changes nothing, because destinations that no list covers",
        ),
    ] {
        warns(text, &format!("c.yaml:1: {expected}"), &[]);
    }
    let loaded = load(&[doc("nat.rules", "8.8.0.0/16 8.8.8.0/24")], &V4).unwrap();
    let expected = "nat.rules:1: NAT rule: 8.8.8.0/24 changes nothing, because 8.8.0.0/16";
    assert!(lines(&loaded.warnings)[0].starts_with(expected));
}

#[test]
fn link_local_surprises_are_warned_of() {
    for (text, start) in [
        (
            "masqLinkLocal: true\nnonMasqueradeCIDRs: [169.254.0.0/16]",
            "c.yaml:1: masqLinkLocal: true has no effect, because 169.254.0.0/16 (c.yaml:2)",
        ),
        (
            "masqLinkLocalIPv6: true\nnonMasqueradeCIDRs: ['fe00::/8']",
            "c.yaml:1: masqLinkLocalIPv6: true has no effect, because fe00::/8 (c.yaml:2)",
        ),
    ] {
        warns(text, start, &[]);
    }
    let all = load(&[doc("nat.rules", "\n0.0.0.0/0")], &V4).unwrap();
    assert_eq!(all.config.rules.len(), 1, "{:?}", all.config.rules);
    let expected = "nat.rules:2: 0.0.0.0/0 masquerades 169.254.0.0/16, too";
    let warnings = lines(&all.warnings);
    assert!(warnings[0].starts_with(expected), "{warnings:?}");
    let bypass = Options {
        default_action: Some(RuleAction::Bypass),
        ..V4
    };
    let loaded = load_one("masqLinkLocal: true", &bypass).unwrap();
    let expected = "c.yaml:1: masqLinkLocal: true has no effect, because 0.0.0.0/0 (--default-act";
    assert!(lines(&loaded.warnings)[0].starts_with(expected));
}

#[test]
fn a_masqueraded_cluster_is_warned_of() {
    let cluster = |text: &str, pods: &str, services: &str| {
        let nets = |text: &str| -> Vec<IpNet> {
            let words = text.split_whitespace();
            words.map(|net| net.parse().unwrap()).collect()
        };
        let cluster_cidrs = ClusterCidrs {
            pod_cidrs: nets(pods),
            service_cidrs: nets(services),
            ..ClusterCidrs::default()
        };
        let loaded = load_for_cluster(&[doc("c", text)], &V4, &cluster_cidrs).unwrap();
        lines(&loaded.warnings)
    };
    let own = "nonMasqueradeCIDRs: [192.168.0.0/17, 192.168.128.0/17]\nmasqueradeCIDRs:\n- 192.168.3.0/24\n";
    for (text, pods, services, expected) in [
        ("", "10.1.0.0/16 172.20.0.0/16", "10.96.0.0/12", ""),
        (
            "",
            "100.64.0.0/10",
            "",
            "policy: the pod CIDR 100.64.0.0/10 is masqueraded because no",
        ),
        (
            "",
            "",
            "34.0.0.0/8",
            "policy: the service CIDR 34.0.0.0/8 is masqueraded because no list",
        ),
        (
            own,
            "192.168.3.0/28",
            "",
            "policy: the pod CIDR 192.168.3.0/28 is masqueraded by 192.168.3.0/24 (c:3)",
        ),
        (
            own,
            "192.168.0.0/17",
            "",
            "c:3: 192.168.3.0/24, in the pod CIDR 192.168.0.0/17, is masq",
        ),
        // Two halves make a whole; IPv6 is off.
        (
            "nonMasqueradeCIDRs: [10.0.0.0/9, 10.128.0.0/9]",
            "10.0.0.0/8 fd00::/64",
            "",
            "",
        ),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/9]",
            "10.0.0.0/8",
            "",
            "policy: the pod CIDR 10.0.0.0/8 is",
        ),
    ] {
        let warnings = cluster(text, pods, services);
        assert_eq!(
            warnings.len(),
            usize::from(!expected.is_empty()),
            "{warnings:?}"
        );
        assert!(
            warnings.iter().all(|w| w.starts_with(expected)),
            "{warnings:?}"
        );
    }
}

#[test]
fn nat_rules_alone_leave_the_default_action_open() {
    let nat = doc("nat.rules", "10.0.0.0/24");
    let warnings = |docs: &[Document], default_action| {
        let opts = Options {
            default_action,
            ..V4
        };
        lines(&load(docs, &opts).unwrap().warnings)
    };
    let alone = warnings(std::slice::from_ref(&nat), None);
    assert!(
        alone[0].starts_with("policy: there are NAT rules"),
        "{alone:?}"
    );
    for action in [RuleAction::Bypass, RuleAction::Masquerade] {
        assert!(warnings(std::slice::from_ref(&nat), Some(action)).is_empty());
    }
    assert!(warnings(&[nat, doc("config", "")], None).is_empty());
    assert!(warnings(&[doc("nat.rules", "\n")], None).is_empty());
}
