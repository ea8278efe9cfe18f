//! Files, and their effect in ip-masq-agent and netdp.

use super::*;

/// Effect of a file in ip-masq-agent.
#[derive(Clone, Copy)]
pub enum Theirs {
    /// Destinations that are bypassed, besides the link-local ones.
    Cidrs(&'static [&'static str]),
    /// An error is logged and the previous configuration is kept.
    Error,
}

/// Effect of the file in netdp.
#[derive(Clone, Copy)]
pub enum Ours {
    Same,
    /// An error, which docs/migrate.md mentions in these words.
    Error(&'static str),
    /// Destinations that are bypassed, and the words of docs/migrate.md about them.
    Cidrs(&'static [&'static str], &'static str),
    /// The decisions are equal, but there is another difference, in the words of docs/migrate.md.
    Otherwise(&'static str),
}

#[derive(Clone, Copy)]
pub struct Case {
    pub text: &'static str,
    pub opts: Options,
    pub theirs: Theirs,
    pub link_local: bool,
    pub link_local_v6: bool,
    /// Resync interval of netdp, in seconds.
    pub interval: u64,
    pub ours: Ours,
}

pub const CASE: Case = Case {
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

pub const ELEVEN: [&str; 11] = [
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
pub const VALIDATE: &[Case] = &[
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
pub const SYNC: &[Case] = &[
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

/// Cases derived from reading its source.
pub const TRAPS: &[Case] = &[
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
        case(
            "nonMasqueradeCIDRs: [1.0.0.0/8]\n---\nnonMasqueradeCIDRs: [1.2.0.0/16]",
            &["1.0.0.0/8"],
        ),
        Ours::Otherwise("Further YAML documents in the file"),
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
