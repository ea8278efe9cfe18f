//! The same decisions as ip-masq-agent: each case of its own unit tests, of Azure's fork, and those
//! that follow from its source (kubernetes-sigs/ip-masq-agent e3000864). Where netdp differs by
//! choice, the case says so, and docs/migrate.md has to.

use super::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const MIGRATE: &str = include_str!("../../../../docs/migrate.md");

/// What ip-masq-agent makes of a file.
#[derive(Clone, Copy)]
enum Theirs {
    /// Destinations that it leaves alone, besides the link-local ones.
    Cidrs(&'static [&'static str]),
    /// It complains and keeps what it has.
    Error,
}

/// What netdp makes of it.
#[derive(Clone, Copy)]
enum Ours {
    Same,
    /// An error, which docs/migrate.md mentions in these words.
    Error(&'static str),
    /// These destinations are left alone; docs/migrate.md mentions it in these words.
    Cidrs(&'static [&'static str], &'static str),
    /// The same decisions, but something else is different.
    Otherwise(&'static str),
}

#[derive(Clone, Copy)]
struct Case {
    text: &'static str,
    opts: Options,
    theirs: Theirs,
    link_local: bool,
    link_local_v6: bool,
    /// What netdp uses, in seconds.
    interval: u64,
    ours: Ours,
}

const CASE: Case = Case {
    text: "",
    opts: V6,
    theirs: Theirs::Cidrs(&RFC1918),
    link_local: false,
    link_local_v6: false,
    interval: 60,
    ours: Ours::Same,
};

const RESERVED: Options = Options {
    nomasq_all_reserved_ranges: true,
    ..V4
};

const ELEVEN: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];

const fn case(text: &'static str, cidrs: &'static [&'static str]) -> Case {
    Case {
        text,
        theirs: Theirs::Cidrs(cidrs),
        ..CASE
    }
}

const fn error(text: &'static str) -> Case {
    Case {
        text,
        theirs: Theirs::Error,
        ..CASE
    }
}

const fn differs(case: Case, ours: Ours) -> Case {
    Case { ours, ..case }
}

/// `validate()` of ip-masq-agent_test.go.
const VALIDATE: &[Case] = &[
    case("nonMasqueradeCIDRs: []", &[]),
    case(
        "nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16]",
        &RFC1918,
    ),
    error("nonMasqueradeCIDRs: [abcdefg]"),
    error("nonMasqueradeCIDRs: [10.0.0.0/8, abcdefg]"),
    error("nonMasqueradeCIDRs: [10.256.0.0/16]"),
    error("nonMasqueradeCIDRs: [10.0.0.1/8]"),
];

/// `syncConfig()`, with IPv6 on as there, and the rules that `syncMasqRules()` and
/// `syncMasqRulesIPv6()` make.
const SYNC: &[Case] = &[
    Case {
        text: "nonMasqueradeCIDRs:\n  - 172.16.0.0/12\n  - 10.0.0.0/8\ncidrLimit: 64\n\
               masqLinkLocal: true\nresyncInterval: 5s\n",
        theirs: Theirs::Cidrs(&["172.16.0.0/12", "10.0.0.0/8"]),
        link_local: true,
        interval: 5,
        ..CASE
    },
    case(
        "nonMasqueradeCIDRs:\n  - 192.168.0.0/16\n",
        &["192.168.0.0/16"],
    ),
    Case {
        text: "masqLinkLocal: true\n",
        link_local: true,
        ..CASE
    },
    Case {
        text: "resyncInterval: 5m\n",
        interval: 300,
        ..CASE
    },
    error("*"),
    Case {
        text: r#"{"nonMasqueradeCIDRs": ["172.16.0.0/12", "10.0.0.0/8"], "cidrLimit": 64, "masqLinkLocal": true, "resyncInterval": "5s"}"#,
        theirs: Theirs::Cidrs(&["172.16.0.0/12", "10.0.0.0/8"]),
        link_local: true,
        interval: 5,
        ..CASE
    },
    case(
        r#"{"nonMasqueradeCIDRs": ["192.168.0.0/16"]}"#,
        &["192.168.0.0/16"],
    ),
    Case {
        text: r#"{"masqLinkLocal": true}"#,
        link_local: true,
        ..CASE
    },
    Case {
        text: r#"{"resyncInterval": "5m"}"#,
        interval: 300,
        ..CASE
    },
    Case {
        text: r#"{"resyncInterval": "\u0035\u006d"}"#,
        interval: 300,
        ..CASE
    },
    error("{*"),
    case(
        r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8", "fc00::/7"]}"#,
        &["10.0.0.0/8", "fc00::/7"],
    ),
    Case {
        text: "nonMasqueradeCIDRs: [10.0.0.0/8, 'fc00::/7']\nmasqLinkLocalIPv6: true",
        theirs: Theirs::Cidrs(&["10.0.0.0/8", "fc00::/7"]),
        link_local_v6: true,
        ..CASE
    },
    Case {
        opts: RESERVED,
        theirs: Theirs::Cidrs(&ELEVEN),
        ..CASE
    },
    Case {
        opts: RESERVED,
        text: "masqLinkLocal: false",
        theirs: Theirs::Cidrs(&ELEVEN),
        ..CASE
    },
    Case {
        opts: RESERVED,
        ..case("nonMasqueradeCIDRs: [1.0.0.0/8]", &["1.0.0.0/8"])
    },
];

/// What follows from reading its source.
const TRAPS: &[Case] = &[
    CASE,
    case("null", &RFC1918),
    case("{}", &RFC1918),
    case("# nothing\n", &RFC1918),
    case("nonmasqueradecidrs: [1.0.0.0/8]", &["1.0.0.0/8"]),
    case("NONMASQUERADECIDRS: [1.0.0.0/8]", &["1.0.0.0/8"]),
    case("nonMasqueradeCIDR: [1.0.0.0/8]", &RFC1918),
    case("nonMasqueradeCIDRs: [1.0.0.0/8, 1.0.0.0/8]", &["1.0.0.0/8"]),
    case("nonMasqueradeCIDRs: [0.0.0.0/0]", &["0.0.0.0/0"]),
    case("nonMasqueradeCIDRs: [10.0.0.0/08]", &["10.0.0.0/8"]),
    case(
        "nonMasqueradeCIDRs: [10.1.0.0/16, 10.0.0.0/8]",
        &["10.0.0.0/8"],
    ),
    case("cidrLimit: null\nmasqLinkLocal: null", &RFC1918),
    case(
        "cidrLimit: 1\nnonMasqueradeCIDRs: [1.0.0.0/8]",
        &["1.0.0.0/8"],
    ),
    Case {
        text: "masqLinkLocal: yes",
        link_local: true,
        ..CASE
    },
    error("nonMasqueradeCIDRs: 10.0.0.0/8"),
    error("nonMasqueradeCIDRs: [null]"),
    error("nonMasqueradeCIDRs:\n-\n- 10.0.0.0/8"),
    error("nonMasqueradeCIDRs: ['']"),
    error("nonMasqueradeCIDRs: [' 10.0.0.0/8']"),
    error("nonMasqueradeCIDRs: [10.0.0.0]"),
    error("nonMasqueradeCIDRs: [010.0.0.0/8]"),
    error("nonMasqueradeCIDRs: ['fe80::%eth0/64']"),
    error("cidrLimit: 0\nnonMasqueradeCIDRs: [1.0.0.0/8]"),
    error("cidrLimit: -1\nnonMasqueradeCIDRs: []"),
    error("cidrLimit: '64'"),
    error("masqLinkLocal: 'true'"),
    error("resyncInterval: 60"),
    error("resyncInterval: null"),
    error("resyncInterval: 5 minutes"),
    error("[]"),
    error("just words"),
    Case {
        opts: V4,
        ..error("nonMasqueradeCIDRs: ['fc00::/7']")
    },
    differs(
        case("nonMasqueradeCIDRs:\n", &[]),
        Ours::Error("`nonMasqueradeCIDRs:` without a value is an error"),
    ),
    differs(
        case("nonMasqueradeCIDRs: null", &[]),
        Ours::Error("`nonMasqueradeCIDRs:` without a value is an error"),
    ),
    differs(
        case(
            "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']",
            &["10.0.0.0/8"],
        ),
        Ours::Error("An IPv4-mapped IPv6 CIDR"),
    ),
    differs(
        case(
            r#"{"masqLinkLocal": true, "masqLinkLocal": false}"#,
            &RFC1918,
        ),
        Ours::Error("A key that is set twice"),
    ),
    differs(
        case("masqLinkLocal: false\n---\nmasqLinkLocal: true", &RFC1918),
        Ours::Error("A second YAML document"),
    ),
    differs(
        case("nonMasqueradeCIDRs: [!!str 1.0.0.0/8]", &["1.0.0.0/8"]),
        Ours::Error("YAML tags"),
    ),
    differs(
        error("cidrLimit: 2"),
        Ours::Cidrs(
            &RFC1918,
            "The default CIDRs do not count against `cidrLimit`",
        ),
    ),
    differs(
        case("resyncInterval: 0s", &RFC1918),
        Ours::Otherwise("A `resyncInterval` that is not positive"),
    ),
    differs(
        case("resyncInterval: -5m", &RFC1918),
        Ours::Otherwise("A `resyncInterval` that is not positive"),
    ),
];

/// Whether ip-masq-agent's chain returns before its MASQUERADE.
fn they_bypass(case: &Case, cidrs: &[&str], destination: IpAddr) -> bool {
    let within = |cidr: &str| cidr.parse::<IpNet>().unwrap().contains(&destination);
    (!case.link_local && within("169.254.0.0/16"))
        || (!case.link_local_v6 && within("fe80::/10"))
        || cidrs.iter().any(|cidr| within(cidr))
}

/// The first and last address of each network of `cidrs`, and their neighbours.
fn probes(cidrs: &[&str]) -> Vec<IpAddr> {
    let nets = cidrs.iter().chain(&ELEVEN).copied();
    let nets = nets.chain(["169.254.0.0/16", "fe80::/10", "1.0.0.0/8", "::ffff:0:0/96"]);
    nets.flat_map(|net| {
        let net: IpNet = net.parse().unwrap();
        match (net.network(), net.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|bits| Ipv4Addr::from(bits).into())
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|bits| Ipv6Addr::from(bits).into())
            }
            _ => unreachable!("a network is of one family"),
        }
    })
    .collect()
}

#[track_caller]
fn same_decisions(case: &Case, config: &Config, cidrs: &[&str]) {
    for address in probes(cidrs) {
        if address.is_ipv6() && !case.opts.enable_ipv6 {
            continue;
        }
        let bypassed = config.decide(address).action == Action::Bypass;
        let expected = they_bypass(case, cidrs, address);
        assert_eq!(bypassed, expected, "{:?}: {address}", case.text);
    }
    let interval = Duration::from_secs(case.interval);
    assert_eq!(config.resync_interval, interval, "{:?}", case.text);
}

#[track_caller]
fn documented(words: &str) {
    let document = MIGRATE.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(document.contains(words), "docs/migrate.md lacks: {words}");
}

#[test]
fn decisions_are_those_of_ip_masq_agent() {
    for case in VALIDATE.iter().chain(SYNC).chain(TRAPS) {
        let loaded = load_one(case.text, &case.opts);
        let accepted = |cidrs| match &loaded {
            Ok(loaded) => same_decisions(case, &loaded.config, cidrs),
            Err(rejected) => panic!("{:?} is rejected: {rejected}", case.text),
        };
        match (case.theirs, case.ours) {
            (Theirs::Cidrs(cidrs), Ours::Same) => accepted(cidrs),
            (Theirs::Error, Ours::Same) => {
                assert!(loaded.is_err(), "{:?} is accepted", case.text);
            }
            (Theirs::Cidrs(_), Ours::Error(words)) => {
                assert!(loaded.is_err(), "{:?} is accepted", case.text);
                documented(words);
            }
            (Theirs::Error, Ours::Cidrs(cidrs, words)) => {
                accepted(cidrs);
                documented(words);
            }
            (Theirs::Cidrs(cidrs), Ours::Otherwise(words)) => {
                accepted(cidrs);
                documented(words);
            }
            _ => panic!("{:?}: no such difference", case.text),
        }
    }
    // An absent file.
    same_decisions(&CASE, &load(&[], &V6).unwrap().config, &RFC1918);
}

#[test]
fn decisions_are_those_of_azures_fork() {
    let two = [
        doc(
            "ip-masq-agent",
            "nonmasqueradecidrs:\n- 1.0.0.0/8\nmasqlinklocal: true\n",
        ),
        doc(
            "ip-masq-agent-2",
            "nonMasqueradeCIDRs: [2.0.0.0/8]\nmasqLinkLocal: false\n",
        ),
    ];
    let united = Case {
        link_local: true,
        ..CASE
    };
    let config = load(&two, &V6).unwrap().config;
    same_decisions(&united, &config, &["1.0.0.0/8", "2.0.0.0/8"]);
    let reversed: Vec<_> = two.iter().rev().cloned().collect();
    let reversed = load(&reversed, &V6).unwrap().config;
    assert_eq!(reversed.hash(), config.hash());
    for text in ["- ", "- ''", "- null"] {
        let list = format!("nonMasqueradeCIDRs:\n{text}\n");
        let rejected = load(&[two[0].clone(), doc("ip-masq-b", &list)], &V6).unwrap_err();
        assert!(rejected.errors[0].file == "ip-masq-b", "{rejected}");
    }
    // They bypass nothing here.
    let config = load(&[doc("ip-masq-agent", "masqLinkLocal: true")], &V6)
        .unwrap()
        .config;
    same_decisions(&united, &config, &RFC1918);
    documented("Azure's agent takes a file without a list for an empty list");
    documented("Azure's agent leaves out files whose name does not begin with `ip-masq`");
}
