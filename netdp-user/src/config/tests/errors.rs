//! Errors: each must name file, line and entry.

use super::*;

/// Asserts that `text` is rejected with exactly one error, which begins with `start` and contains
/// every fragment.
#[track_caller]
fn rejects(text: &str, opts: &Options, start: &str, fragments: &[&str]) {
    let rejected = match load_one(text, opts) {
        Err(rejected) => rejected,
        Ok(loaded) => panic!("{text:?} was accepted: {loaded:?}"),
    };
    let errors = lines(&rejected.errors);
    let [error] = errors.as_slice() else {
        panic!("{text:?}: not one error: {errors:#?}")
    };
    assert!(error.starts_with(start), "{text:?}: {error}");
    for fragment in fragments {
        assert!(error.contains(fragment), "{text:?}: {error}");
    }
}

#[test]
fn text_that_is_no_mapping() {
    for (text, start, fragments) in [
        (
            "*",
            "c.yaml:1: not valid YAML or JSON:",
            &["alphabetic or numeric"][..],
        ),
        ("{*", "c.yaml:1: not valid YAML or JSON:", &[]),
        (
            "{*a: 1}",
            "c.yaml:1: not valid YAML or JSON:",
            &["unknown anchor"],
        ),
        ("# x\n{\"a\": 1", "c.yaml:2: not valid", &[]),
        (
            "{\n\"masqLinkLocal\" true\n}",
            "c.yaml:2: not valid YAML or JSON:",
            &[],
        ),
        ("{} x", "c.yaml:1: not valid YAML or JSON:", &[]),
        (
            "masqLinkLocal: true\nx:\n\t- y\n",
            "c.yaml:3: not valid YAML or JSON:",
            &["tab"],
        ),
        (
            "- 10.0.0.0/8",
            "c.yaml:1: expected a mapping",
            &["found a list"],
        ),
        (
            "abcdefg",
            "c.yaml:1: expected a mapping",
            &["found the string \"abcdefg\""],
        ),
        (
            "42",
            "c.yaml:1: expected a mapping",
            &["found the number 42"],
        ),
        (
            "{}\n---\n- 10.0.0.0/8\n",
            "c.yaml:3: expected a mapping",
            &["found a list"],
        ),
        (
            "a: &a 1\n---\nb: *a\n",
            "c.yaml:3: an alias",
            &["another document"],
        ),
        (
            "masqLinkLocal: !!bool true",
            "c.yaml:1: YAML tags",
            &["remove the tag"],
        ),
        ("a: &a [*a]", "c.yaml:1: an alias", &[]),
        (
            "a: &a {cidrLimit: 1}\n<<: *a\n",
            "c.yaml:2: <<: merge keys",
            &[],
        ),
        (
            "? [a]\n: 1\n",
            "c.yaml:1: expected a key, found a list",
            &[],
        ),
        (
            "a:\n- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -",
            "c.yaml:2: nested",
            &["32"],
        ),
    ] {
        rejects(text, &V6, start, fragments);
    }
}

#[test]
fn bad_entries() {
    let list = |entry: &str| format!("nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - {entry}\n");
    for (entry, fragments) in [
        ("abcdefg", &["\"abcdefg\" is not a CIDR"][..]),
        ("10.256.0.0/16", &["\"10.256.0.0/16\" is not a CIDR"]),
        (
            "10.0.0.1/8",
            &[
                "\"10.0.0.1/8\" is not aligned",
                "10.0.0.1,",
                "write 10.0.0.0/8",
            ],
        ),
        (
            "192.168.1.7",
            &[
                "\"192.168.1.7\" has no prefix length",
                "write 192.168.1.7/32",
            ],
        ),
        (
            "fd00::1",
            &["\"fd00::1\" has no prefix length", "write fd00::1/128"],
        ),
        (
            "\"fd00::\"",
            &["\"fd00::\" has no prefix length", "write fd00::/128"],
        ),
        (
            "fd00::",
            &["expected a CIDR, found a mapping", "must be quoted"],
        ),
        (
            "\"::ffff:10.0.0.0/104\"",
            &["IPv4-mapped", "write 10.0.0.0/8"],
        ),
        ("10.0.0.0/33", &["from 0 to 32"]),
        ("", &["is blank"]),
        ("null", &["is blank"]),
        ("~", &["is blank"]),
        ("\"\"", &["is blank"]),
        ("' '", &["is blank"]),
        ("10", &["expected a CIDR, found the number 10"]),
        ("10.5", &["found the number 10.5"]),
        ("true", &["found the boolean true"]),
        ("[10.1.0.0/16]", &["found a list"]),
        ("{cidr: 10.1.0.0/16}", &["found a mapping"]),
    ] {
        rejects(
            &list(entry),
            &V6,
            "c.yaml:3: nonMasqueradeCIDRs[1]: ",
            fragments,
        );
    }
    let json = "{\n\"masqueradeCIDRs\": [\n\"10.0.0.0/29\",\nnull]}";
    rejects(json, &V6, "c.yaml:4: masqueradeCIDRs[1]: ", &["is blank"]);
    let json = "{\n\"masqueradeCIDRs\": [\n\"10.0.0.0/29\",\n\"\"]}";
    rejects(json, &V6, "c.yaml:4: masqueradeCIDRs[1]: ", &["is blank"]);
    let v6 = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- fc00::/7\n";
    rejects(
        v6,
        &V4,
        "c.yaml:3: nonMasqueradeCIDRs[1]: fc00::/7 is IPv6",
        &["--enable-ipv6"],
    );
    // The family does not matter if the notation is wrong already.
    let mapped = "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']";
    rejects(
        mapped,
        &V4,
        "c.yaml:1: nonMasqueradeCIDRs[0]: ",
        &["write 10.0.0.0/8"],
    );
}

#[test]
fn bad_values() {
    for (text, start, fragments) in [
        (
            "x: 1\nnonMasqueradeCIDRs:\n",
            "c.yaml:2: nonMasqueradeCIDRs is null",
            &[
                "ip-masq-agent would masquerade everything",
                "write []",
                "remove the key",
            ][..],
        ),
        (
            "{\"nonMasqueradeCIDRs\": null}",
            "c.yaml:1: nonMasqueradeCIDRs is null",
            &["write []"],
        ),
        (
            "nonMasqueradeCIDRs: 10.0.0.0/8",
            "c.yaml:1: nonMasqueradeCIDRs: expected a list",
            &["found the string \"10.0.0.0/8\""],
        ),
        (
            "masqueradeCIDRs: {a: b}",
            "c.yaml:1: masqueradeCIDRs: expected a list",
            &["found a mapping"],
        ),
        (
            "masqLinkLocal: 1",
            "c.yaml:1: masqLinkLocal: expected true or false",
            &["found the number 1"],
        ),
        (
            "masqLinkLocal: 'true'",
            "c.yaml:1: masqLinkLocal: expected true",
            &["found the string \"true\""],
        ),
        (
            "masqLinkLocalIPv6: []",
            "c.yaml:1: masqLinkLocalIPv6: expected true",
            &["found a list"],
        ),
        (
            "resyncInterval:\n",
            "c.yaml:1: resyncInterval: expected a duration",
            &["found null"],
        ),
        (
            "\nresyncInterval: 60",
            "c.yaml:2: resyncInterval: expected a duration",
            &["\"60s\"", "found the number 60"],
        ),
        (
            "resyncInterval: 0",
            "c.yaml:1: resyncInterval: expected a duration",
            &["found the number 0"],
        ),
        (
            "resyncInterval: true",
            "c.yaml:1: resyncInterval: ",
            &["found the boolean true"],
        ),
        (
            "resyncInterval: '60'",
            "c.yaml:1: resyncInterval: \"60\" is not a duration",
            &["unit is missing"],
        ),
        (
            "resyncInterval: 1d",
            "c.yaml:1: resyncInterval: \"1d\" is not a duration",
            &["\"d\" is not a unit"],
        ),
        (
            "resyncInterval: soon",
            "c.yaml:1: resyncInterval: \"soon\" is not a duration",
            &[],
        ),
        (
            "resyncInterval: [5s]",
            "c.yaml:1: resyncInterval: expected",
            &["found a list"],
        ),
        (
            "cidrLimit: -1",
            "c.yaml:1: cidrLimit: expected a whole number",
            &["found the number -1"],
        ),
        (
            "cidrLimit: 6.4",
            "c.yaml:1: cidrLimit: expected a whole number",
            &["found the number 6.4"],
        ),
        (
            "cidrLimit: '64'",
            "c.yaml:1: cidrLimit: expected",
            &["found the string \"64\""],
        ),
        (
            "cidrLimit: 0100",
            "c.yaml:1: cidrLimit: expected",
            &["found the number 0100"],
        ),
        (
            "cidrLimit: many",
            "c.yaml:1: cidrLimit: expected",
            &["found the string \"many\""],
        ),
        (
            "cidrLimit: 1\ncidrLimit: 2",
            "c.yaml:2: the key \"cidrLimit\" is already set in line 1",
            &[],
        ),
        (
            "masqLinkLocal: true\nmasqlinklocal: true",
            "c.yaml:2: the key \"masqlinklocal\" is already set in line 1",
            &[],
        ),
        (
            "{\"cidrLimit\": 1,\n\"cidrLimit\": 1}",
            "c.yaml:2: the key \"cidrLimit\" is already",
            &[],
        ),
        (
            "foo: 1\nfoo: 2",
            "c.yaml:2: the key \"foo\" is already set in line 1",
            &[],
        ),
    ] {
        rejects(text, &V6, start, fragments);
    }
}

#[test]
fn the_limit_counts_both_lists_of_one_file() {
    let cidrs = |from: usize, to: usize| {
        (from..to)
            .map(|n| format!("  - 10.0.{n}.0/24\n"))
            .collect::<String>()
    };
    let both = |split: usize, total: usize| {
        format!(
            "nonMasqueradeCIDRs:\n{}masqueradeCIDRs:\n{}",
            cidrs(0, split),
            cidrs(split, total)
        )
    };
    accept(&both(60, 64));
    rejects(
        &both(60, 65),
        &V6,
        "c.yaml:1: 65 CIDRs are listed",
        &["cidrLimit allows 64", "raise"],
    );
    accept(&format!("{}cidrLimit: 65\n", both(60, 65)));
    rejects(
        &format!("cidrLimit: 3\n{}", both(2, 4)),
        &V6,
        "c.yaml:2: 4 CIDRs",
        &["allows 3"],
    );
    rejects(
        "masqueradeCIDRs: [1.0.0.0/8]\ncidrLimit: 0",
        &V6,
        "c.yaml:1: 1 CIDRs",
        &["allows 0"],
    );
    // Repetitions count, defaults do not, and another file has a limit of its own.
    let twice = "cidrLimit: 1\nmasqueradeCIDRs: [1.0.0.0/8, 1.0.0.0/8]";
    rejects(twice, &V6, "c.yaml:2: 2 CIDRs", &["allows 1"]);
    accept("cidrLimit: 0\n");
    assert!(load(&[doc("a", &both(60, 64)), doc("b", &both(60, 64))], &V6).is_ok());
}

#[test]
fn all_errors_are_reported() {
    let text = "masqLinkLocal: 7\nnonMasqueradeCIDRs:\n- x\n- 10.0.0.0/8\n- 10.0.0.1/8\n\
                resyncInterval: 5\n";
    let docs = [doc("a.yaml", text), doc("b.yaml", ""), doc("c.yaml", "\n*")];
    let rejected = load(&docs, &V6).unwrap_err().to_string();
    let starts = [
        "a.yaml:1: masqLinkLocal",
        "a.yaml:3: nonMasqueradeCIDRs[0]",
        "a.yaml:5: nonMasqueradeCIDRs[2]",
        "a.yaml:6: resyncInterval",
        "c.yaml:2: not valid",
    ];
    assert_eq!(rejected.lines().count(), starts.len(), "{rejected}");
    for (line, start) in rejected.lines().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn long_text_is_cut() {
    let long = "é".repeat(100_000);
    for text in [
        format!("nonMasqueradeCIDRs: [{long}]"),
        format!("nonMasqueradeCIDRs: {long}"),
        format!("resyncInterval: 1{long}"),
        format!("resyncInterval: '{long}'"),
        format!("cidrLimit: {}", "9".repeat(1000)),
        format!("? {long}\n: 1\n? {long}\n: 2\n"),
    ] {
        let rejected = load_one(&text, &V6).unwrap_err();
        assert!(rejected.to_string().len() < 500, "{rejected}");
    }
}

#[test]
fn a_policy_that_has_no_room_in_the_kernel_is_refused() {
    let mut docs = Vec::new();
    for part in 0..12_u32 {
        let mut text = String::from("cidrLimit: 100000\nnonMasqueradeCIDRs:\n");
        for n in part * 84_000..(part + 1) * 84_000 {
            let [_, a, b, c] = n.to_be_bytes();
            text.push_str(&format!("- 1{}.{a}.{b}.{c}/32\n", part % 3));
        }
        docs.push(doc(&format!("{part}.yaml"), &text));
    }
    let rejected = load(&docs, &V4).unwrap_err();
    let message = rejected.to_string();
    assert_eq!(rejected.errors.len(), 1);
    assert!(
        message.contains("1008001 CIDRs") && message.contains("1000000"),
        "{message}"
    );
    docs.pop();
    assert_eq!(load(&docs, &V4).unwrap().config.rules.len(), 924_001);
}
