//! Documents of k8s-custom-iptables, alone and with ip-masq-agent's.

use super::*;

const BYPASS: Options = Options {
    enable_ipv6: false,
    nomasq_all_reserved_ranges: false,
    default_action: Some(RuleAction::Bypass),
};

const MASQUERADE: Options = Options {
    default_action: Some(RuleAction::Masquerade),
    ..V4
};

#[track_caller]
fn nat(text: &str, opts: &Options) -> Loaded {
    let loaded = load(&[doc("/cfg/nat.rules", text)], opts);
    loaded.unwrap_or_else(|rejected| panic!("{text:?} was rejected: {rejected}"))
}

#[test]
fn a_name_determines_the_format() {
    for name in ["nat.rules", "/cfg/nat.rules", "dir/more.rules"] {
        assert_eq!(Format::of(name), Format::NatRules, "{name}");
    }
    for name in [
        "config",
        "/etc/config/ip-masq-agent",
        "nat.rules/x",
        "rules",
        "nat.rules.yaml",
    ] {
        assert_eq!(Format::of(name), Format::MasqAgent, "{name}");
    }
}

#[test]
fn words_are_networks_to_masquerade() {
    for text in [
        "1.2.3.0/24 4.5.0.0/16",
        "1.2.3.0/24\n4.5.0.0/16\n",
        "  1.2.3.0/24\t\r\n\n 4.5.0.0/16 \n \n",
        "1.2.3.0/24,4.5.0.0/16",
        "1.2.3.0/24, 4.5.0.0/16,",
        "\u{feff}1.2.3.0/24 4.5.0.0/16",
    ] {
        let loaded = nat(text, &MASQUERADE);
        assert_eq!(loaded.warnings, [], "{text:?}");
        assert_eq!(
            prefixes(&loaded.config, RuleAction::Masquerade),
            ["1.2.3.0/24", "4.5.0.0/16"],
            "{text:?}"
        );
        assert_eq!(bypasses(&loaded.config), RFC1918);
    }
    assert_eq!(nat(" \n", &V4).config, defaults(&V4));
    let loaded = nat("fd00::/8 10.0.0.1", &V6);
    assert_eq!(
        prefixes(&loaded.config, RuleAction::Masquerade),
        ["fd00::/8", "10.0.0.1/32"]
    );
}

#[test]
fn what_iptables_took_is_taken_with_a_warning() {
    let loaded = nat("1.2.3.4/24,\n4.5.6.7/16 4.5.0.0/16", &MASQUERADE);
    assert_eq!(
        prefixes(&loaded.config, RuleAction::Masquerade),
        ["1.2.3.0/24", "4.5.0.0/16"]
    );
    assert_eq!(
        lines(&loaded.warnings),
        [
            "/cfg/nat.rules:1: 1.2.3.4/24 has bits set beyond its length; 1.2.3.0/24 is used",
            "/cfg/nat.rules:2: 4.5.6.7/16 has bits set beyond its length; 4.5.0.0/16 is used",
            "/cfg/nat.rules:2: 4.5.0.0/16 is already listed in line 2",
        ]
    );
}

#[test]
fn errors_name_the_line() {
    let text = "10.0.0.0/8\n\nexample.com 10.0.0.0/33\nfd00::/8\n10.0.0.0/8x # words\n";
    let rejected = load(&[doc("nat.rules", text)], &V4).unwrap_err();
    let errors = lines(&rejected.errors);
    let starts = [
        "nat.rules:3: \"example.com\" is not a CIDR",
        "nat.rules:3: \"10.0.0.0/33\" is not a CIDR: the prefix length",
        "nat.rules:4: fd00::/8 is IPv6, which is off; pass --enable-ipv6",
        "nat.rules:5: \"10.0.0.0/8x\" is not a CIDR: the prefix length",
        "nat.rules:5: \"#\" is not a CIDR",
        "nat.rules:5: \"words\" is not a CIDR",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn all_of_a_nat_rule_is_masqueraded() {
    let agent = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.1.2.0/24\n- 10.1.0.0/16\n- 10.2.0.0/16\n\
                 masqueradeCIDRs: [10.2.0.0/24]\n";
    let docs = [
        doc("agent", agent),
        doc("nat.rules", "10.1.0.0/16 10.2.0.0/24"),
    ];
    let loaded = load(&docs, &V4).unwrap();
    let config = &loaded.config;
    assert_eq!(bypasses(config), ["10.0.0.0/8", "10.2.0.0/16"]);
    assert_eq!(
        prefixes(config, RuleAction::Masquerade),
        ["10.2.0.0/24", "10.1.0.0/16"]
    );
    for (address, action) in [
        ("10.1.2.3", RuleAction::Masquerade),
        ("10.1.3.3", RuleAction::Masquerade),
        ("10.2.0.1", RuleAction::Masquerade),
        ("10.2.1.1", RuleAction::Bypass),
        ("10.3.0.1", RuleAction::Bypass),
    ] {
        let decision = config.decide(address.parse().unwrap());
        assert_eq!(decision.action, action, "{address}");
    }
    let both = config.decide("10.2.0.1".parse().unwrap()).rule.unwrap();
    assert_eq!(both.origin.to_string(), "agent:6");
    assert_eq!(both.also[0].to_string(), "nat.rules:1");
    let warnings = lines(&loaded.warnings);
    let starts = [
        "agent:3: nonMasqueradeCIDRs: 10.1.2.0/24 changes nothing, because 10.1.0.0/16 \
         (nat.rules:1) masquerades all of it; move that to masqueradeCIDRs",
        "agent:4: nonMasqueradeCIDRs: 10.1.0.0/16 changes nothing, because 10.1.0.0/16 (nat",
        "agent:5: nonMasqueradeCIDRs: 10.2.0.0/16 changes nothing, because 10.0.0.0/8 (agent:2)",
    ];
    assert_eq!(warnings.len(), starts.len(), "{warnings:#?}");
    for (warning, start) in warnings.iter().zip(starts) {
        assert!(warning.starts_with(start), "{warning}");
    }
}

#[test]
fn other_destinations_follow_the_default_action() {
    let action = |opts: &Options, address: &str| {
        let loaded = nat("192.0.2.0/24 10.1.0.0/16", opts);
        loaded.config.decide(address.parse().unwrap()).action
    };
    for (address, masquerade, bypass) in [
        ("192.0.2.1", RuleAction::Masquerade, RuleAction::Masquerade),
        ("10.1.0.1", RuleAction::Masquerade, RuleAction::Masquerade),
        ("10.2.0.1", RuleAction::Bypass, RuleAction::Bypass),
        ("8.8.8.8", RuleAction::Masquerade, RuleAction::Bypass),
    ] {
        assert_eq!(action(&V4, address), masquerade, "{address}");
        assert_eq!(action(&BYPASS, address), bypass, "{address}");
    }
    let config = nat("192.0.2.0/24", &BYPASS).config;
    assert_eq!(
        prefixes(&config, RuleAction::Bypass),
        ["0.0.0.0/0", "169.254.0.0/16"]
    );
    assert_eq!(config.rules[0].origin.to_string(), "--default-action");
    let v6 = Options {
        enable_ipv6: true,
        ..BYPASS
    };
    let decision = |address: &str| defaults(&v6).decide(address.parse().unwrap()).action;
    assert_eq!(decision("2001:db8::1"), RuleAction::Bypass);
    assert_eq!(decision("192.0.2.1"), RuleAction::Bypass);
}

#[test]
fn a_list_beats_the_default_action() {
    let loaded = load_one(
        "masqueradeCIDRs: [0.0.0.0/0]\nnonMasqueradeCIDRs: []",
        &BYPASS,
    )
    .unwrap();
    assert_eq!(loaded.warnings, []);
    let decision = loaded.config.decide([8, 8, 8, 8].into());
    assert_eq!(decision.action, RuleAction::Masquerade);
}
