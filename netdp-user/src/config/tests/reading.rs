//! Contents of files, and their meaning.

use super::*;

struct Case {
    text: &'static str,
    bypass: &'static [&'static str],
    link_local: bool,
    interval: Duration,
}

const DEFAULT: Case = Case {
    text: "",
    bypass: &RFC1918,
    link_local: false,
    interval: Duration::from_secs(60),
};

#[test]
fn what_upstream_accepts_means_the_same() {
    for case in [
        DEFAULT,
        Case {
            text: "  \n\t\n",
            ..DEFAULT
        },
        Case {
            text: "# nothing set\n",
            ..DEFAULT
        },
        Case {
            text: "---\n",
            ..DEFAULT
        },
        Case {
            text: "null",
            ..DEFAULT
        },
        Case {
            text: "{}",
            ..DEFAULT
        },
        Case {
            text: "\u{feff}{}",
            ..DEFAULT
        },
        Case {
            text: "nonMasqueradeCIDRs:\n  - 172.16.0.0/12\n  - 10.0.0.0/8\ncidrLimit: 64\n\
                   masqLinkLocal: true\nresyncInterval: 5s\n",
            bypass: &["172.16.0.0/12", "10.0.0.0/8"],
            link_local: true,
            interval: Duration::from_secs(5),
        },
        Case {
            text: "nonMasqueradeCIDRs:\n  - 192.168.0.0/16\n",
            bypass: &["192.168.0.0/16"],
            ..DEFAULT
        },
        Case {
            text: "masqLinkLocal: true\n",
            link_local: true,
            ..DEFAULT
        },
        Case {
            text: "resyncInterval: 5m\n",
            interval: Duration::from_secs(300),
            ..DEFAULT
        },
        Case {
            text: r#"{
                "nonMasqueradeCIDRs": ["172.16.0.0/12", "10.0.0.0/8"],
                "cidrLimit": 64,
                "masqLinkLocal": true,
                "resyncInterval": "5s"
            }"#,
            bypass: &["172.16.0.0/12", "10.0.0.0/8"],
            link_local: true,
            interval: Duration::from_secs(5),
        },
        Case {
            text: r#"{"nonMasqueradeCIDRs": ["192.168.0.0/16"]}"#,
            bypass: &["192.168.0.0/16"],
            ..DEFAULT
        },
        Case {
            text: r#"{"masqLinkLocal": true}"#,
            link_local: true,
            ..DEFAULT
        },
        Case {
            text: r#"{"resyncInterval": "5m"}"#,
            interval: Duration::from_secs(300),
            ..DEFAULT
        },
        Case {
            text: r#"{"resyncInterval": "\u0035\u006d"}"#,
            interval: Duration::from_secs(300),
            ..DEFAULT
        },
        // JSON indented by tabs, with Windows line ends.
        Case {
            text: "{\r\n\t\"nonMasqueradeCIDRs\":\t[\r\n\t\t\"fc00::/7\"\r\n\t]\r\n}\r\n",
            bypass: &["fc00::/7"],
            ..DEFAULT
        },
        // Keys in any case, as merge tools write them.
        Case {
            text: "nonmasqueradecidrs: [10.0.0.0/8]\nMASQLINKLOCAL: true\nResyncinterval: 1m30s\n",
            bypass: &["10.0.0.0/8"],
            link_local: true,
            interval: Duration::from_secs(90),
        },
        // The booleans of YAML 1.1, anchors and aliases.
        Case {
            text: "masqLinkLocal: yes\n",
            link_local: true,
            ..DEFAULT
        },
        Case {
            text: "masqLinkLocal: Off\n",
            ..DEFAULT
        },
        Case {
            text: "nonMasqueradeCIDRs: [&a 10.0.0.0/8, 0.0.0.0/1]\nmasqueradeCIDRs: []\n",
            bypass: &["10.0.0.0/8", "0.0.0.0/1"],
            ..DEFAULT
        },
        Case {
            text: "nonMasqueradeCIDRs: [0.0.0.0/0]",
            bypass: &["0.0.0.0/0"],
            ..DEFAULT
        },
    ] {
        let config = accept(case.text).config;
        assert_eq!(bypasses(&config), case.bypass, "{:?}", case.text);
        assert_eq!(config.masq_link_local, case.link_local, "{:?}", case.text);
        let link_local = config
            .rules
            .iter()
            .any(|rule| rule.prefix.to_string() == "169.254.0.0/16");
        assert_eq!(link_local, !case.link_local, "{:?}", case.text);
        assert_eq!(config.resync_interval, case.interval, "{:?}", case.text);
        assert!(!config.masq_link_local_ipv6);
    }
}

#[test]
fn link_local_rules_follow_the_flags() {
    let all = |text: &str, opts: &Options| {
        prefixes(&load_one(text, opts).unwrap().config, RuleAction::Bypass)
    };
    let list = "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.0/7]\n";
    let rest = ["10.0.0.0/8", "10.0.0.0/7"];
    for (text, opts, first) in [
        ("", &V6, &["169.254.0.0/16", "fe80::/10"][..]),
        ("", &V4, &["169.254.0.0/16"]),
        ("masqLinkLocal: true", &V6, &["fe80::/10"]),
        ("masqLinkLocal: true", &V4, &[]),
        ("masqLinkLocalIPv6: true", &V6, &["169.254.0.0/16"]),
        ("masqLinkLocalIPv6: true", &V4, &["169.254.0.0/16"]),
        ("masqLinkLocal: true\nmasqLinkLocalIPv6: true", &V6, &[]),
    ] {
        assert_eq!(
            all(&format!("{list}{text}"), opts),
            [first, &rest].concat(),
            "{text:?}"
        );
    }
}

#[test]
fn defaults_are_those_of_no_file() {
    for opts in [V4, V6] {
        let config = defaults(&opts);
        assert_eq!(config, load(&[], &opts).unwrap().config);
        assert_eq!(config, load_one("", &opts).unwrap().config);
        assert_eq!(bypasses(&config), RFC1918);
        assert!(
            config
                .rules
                .iter()
                .all(|rule| rule.origin == Origin::BuiltIn)
        );
    }
}

#[test]
fn the_reserved_ranges_belong_to_the_defaults_only() {
    let opts = Options {
        nomasq_all_reserved_ranges: true,
        default_action: None,
        ..V4
    };
    let reserved = [
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
    ];
    assert_eq!(
        bypasses(&defaults(&opts)),
        [&RFC1918[..], &reserved].concat()
    );
    let own = load_one("nonMasqueradeCIDRs: [10.0.0.0/8]", &opts)
        .unwrap()
        .config;
    assert_eq!(bypasses(&own), ["10.0.0.0/8"]);
}

#[test]
fn origins_name_file_and_line() {
    let text = "# a comment\nnonMasqueradeCIDRs:\n  - 172.16.0.0/16\n\n  - 10.1.0.0/16\n\
                masqueradeCIDRs: [10.1.2.0/24,\n  10.1.3.0/24]\n";
    let config = accept(text).config;
    let origins: Vec<_> = config
        .rules
        .iter()
        .map(|rule| format!("{} {}", rule.prefix, rule.origin))
        .collect();
    assert_eq!(
        origins,
        [
            "169.254.0.0/16 built-in",
            "fe80::/10 built-in",
            "172.16.0.0/16 c.yaml:3",
            "10.1.0.0/16 c.yaml:5",
            "10.1.2.0/24 c.yaml:6",
            "10.1.3.0/24 c.yaml:7",
        ]
    );
}

#[test]
fn a_document_is_small_utf8() {
    let at_limit = vec![b'#'; MAX_DOCUMENT_BYTES];
    assert!(Document::from_bytes("c.yaml".into(), at_limit).is_ok());
    let error = Document::from_bytes("c.yaml".into(), vec![b'#'; MAX_DOCUMENT_BYTES + 1]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("c.yaml: larger than 1 MiB")
    );
    let error = Document::from_bytes("c.yaml".into(), b"masqLinkLocal: true\n# \xe9\n".to_vec());
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("c.yaml:2: not UTF-8")
    );
}
