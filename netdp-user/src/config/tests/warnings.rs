//! What rejects nothing: each warning must name file, line and entry.

use super::*;

/// Accepts `text` with exactly one warning, which begins with `start` and contains every fragment.
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
        accept("resyncInterval: 100ms\nmasqueradeCIDRs: [8.8.8.0/24]").warnings,
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
        "nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true",
        "masqueradeCIDRs: [8.0.0.0/8, 8.8.0.0/16]",
    ] {
        assert_eq!(accept(text).warnings, [], "{text}");
    }
}
