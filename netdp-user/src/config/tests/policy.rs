//! Decisions, hashes, and arbitrary texts.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn decide(config: &Config, address: &str) -> (RuleAction, Option<String>) {
    let decision = config.decide(address.parse().unwrap());
    (
        decision.action,
        decision.rule.map(|rule| rule.prefix.to_string()),
    )
}

#[test]
fn the_longest_prefix_decides() {
    let config = accept("masqueradeCIDRs: [10.0.0.0/29, 10.0.0.5/32]").config;
    let by = |prefix: &str| Some(prefix.to_owned());
    for (address, expected) in [
        ("10.0.0.3", (RuleAction::Masquerade, by("10.0.0.0/29"))),
        ("10.0.0.5", (RuleAction::Masquerade, by("10.0.0.5/32"))),
        ("10.0.0.8", (RuleAction::Bypass, by("10.0.0.0/8"))),
        ("11.0.0.0", (RuleAction::Masquerade, None)),
        ("172.31.255.255", (RuleAction::Bypass, by("172.16.0.0/12"))),
        (
            "169.254.169.254",
            (RuleAction::Bypass, by("169.254.0.0/16")),
        ),
        ("fe80::1", (RuleAction::Bypass, by("fe80::/10"))),
        ("2001:db8::1", (RuleAction::Masquerade, None)),
    ] {
        assert_eq!(decide(&config, address), expected, "{address}");
    }
}

#[test]
fn the_hash_is_of_the_policy() {
    let hash = |docs: &[(&str, &str)]| {
        let docs: Vec<_> = docs.iter().map(|(name, text)| doc(name, text)).collect();
        load(&docs, &V4).unwrap().config.hash()
    };
    let a = (
        "a",
        "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.0.0.0/29]",
    );
    let b = ("b", "nonMasqueradeCIDRs: [1.0.0.0/8]\nresyncInterval: 5s");
    let one = "masqueradeCIDRs: [10.0.0.0/29]\nresyncInterval: 5000ms\n\
               nonMasqueradeCIDRs: [1.0.0.0/8, 10.0.0.0/8, 1.0.0.0/8]";
    assert_eq!(hash(&[a, b]), hash(&[b, a]));
    assert_eq!(hash(&[a, b]), hash(&[("c", one)]));
    let mut hashes = vec![
        hash(&[]),
        hash(&[a]),
        hash(&[b]),
        hash(&[a, b]),
        hash(&[("a", "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.0/29]")]),
        hash(&[("a", "resyncInterval: 5s")]),
        hash(&[("a", "masqLinkLocal: true")]),
        hash(&[("a", "masqLinkLocalIPv6: true")]),
    ];
    let total = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), total);
    assert!(hashes.iter().all(|hash| hash.len() == 16));
}

#[test]
fn the_hash_stays_the_same_between_versions() {
    assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    assert_eq!(defaults(&V4).hash(), "f4fa68e3db0e326c");
}

#[test]
fn a_file_of_the_greatest_size_is_read() {
    let mut text = "cidrLimit: 1000000\nnonMasqueradeCIDRs:\n".to_owned();
    let mut count = 0;
    while text.len() < MAX_DOCUMENT_BYTES - 32 {
        text.push_str(&format!("- {}/32\n", Ipv4Addr::from(0x0b00_0000 + count)));
        count += 1;
    }
    let loaded = accept(&text);
    assert_eq!(loaded.warnings, []);
    assert_eq!(bypasses(&loaded.config).len(), count as usize);
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    // Few bits vary, so that prefixes nest and addresses match them.
    prop_oneof![
        (0u32..16, 0u32..256).prop_map(|(high, low)| Ipv4Addr::from((high << 28) | low).into()),
        (0u128..16, 0u128..256).prop_map(|(high, low)| Ipv6Addr::from((high << 124) | low).into()),
    ]
}

fn any_prefix() -> impl Strategy<Value = IpNet> {
    (any_address(), any::<u8>()).prop_map(|(address, len)| {
        let max = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, len % (max + 1)).unwrap().trunc()
    })
}

fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("4{:032b}", address.to_bits()),
        IpAddr::V6(address) => format!("6{:0128b}", address.to_bits()),
    }
}

/// Decides by definition: shorten the address bit by bit until a list contains the rest.
fn by_definition(lists: &[(IpNet, RuleAction)], address: IpAddr) -> RuleAction {
    let address = bits(address);
    let written = |net: &IpNet| bits(net.addr())[..=usize::from(net.prefix_len())].to_owned();
    let mut left = address.as_str();
    while !left.is_empty() {
        if let Some((_, action)) = lists.iter().find(|(net, _)| written(net) == left) {
            return *action;
        }
        left = &left[..left.len() - 1];
    }
    RuleAction::Masquerade
}

fn list(key: &str, prefixes: &[IpNet]) -> String {
    let quoted: Vec<_> = prefixes
        .iter()
        .map(|prefix| format!("\"{prefix}\""))
        .collect();
    format!("{key}: [{}]\n", quoted.join(", "))
}

proptest! {
    #[test]
    fn decide_is_the_longest_prefix(
        bypass in prop::collection::vec(any_prefix(), 0..20),
        masquerade in prop::collection::vec(any_prefix(), 0..20),
        addresses in prop::collection::vec(any_address(), 1..20),
    ) {
        let masquerade: Vec<_> = masquerade.into_iter().filter(|net| !bypass.contains(net)).collect();
        // Notations that are errors of their own.
        let mapped = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
        prop_assume!(!bypass.iter().chain(&masquerade).any(mapped));
        let text = format!(
            "{}{}masqLinkLocal: true\nmasqLinkLocalIPv6: true\n",
            list("nonMasqueradeCIDRs", &bypass),
            list("masqueradeCIDRs", &masquerade),
        );
        let config = load_one(&text, &V6).unwrap().config;
        let lists: Vec<_> = bypass.iter().map(|net| (*net, RuleAction::Bypass))
            .chain(masquerade.iter().map(|net| (*net, RuleAction::Masquerade))).collect();
        for address in addresses {
            prop_assert_eq!(config.decide(address).action, by_definition(&lists, address), "{}", address);
        }
    }

    #[test]
    fn load_survives_any_text(text: String) {
        let _ = load_one(&text, &V6);
    }

    #[test]
    fn load_survives_near_misses(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        let text = pieces.concat();
        match load_one(&text, &V6) {
            Ok(_) => {}
            Err(rejected) => {
                prop_assert!(!rejected.errors.is_empty());
                let last = text.lines().count() + 1;
                for error in rejected.errors {
                    let line = error.line.unwrap_or(0);
                    prop_assert!((1..=last).contains(&line), "{}", error);
                }
            }
        }
    }
}

/// Parts of configurations, valid and invalid.
const PIECES: &[&str] = &[
    "nonMasqueradeCIDRs",
    "masqueradeCIDRs",
    "resyncInterval",
    "cidrLimit",
    "masqLinkLocal",
    ":",
    ": ",
    "- ",
    "-",
    "[",
    "]",
    "{",
    "}",
    ",",
    ", ",
    "\n",
    "\n  ",
    "\n- ",
    "\r\n",
    "\t",
    " ",
    "10.0.0.0/8",
    "fd00::/8",
    "::",
    "null",
    "~",
    "true",
    "60",
    "5s",
    "\"",
    "'",
    "\\u0035",
    "\\",
    "&a ",
    "*a",
    "!t ",
    "|\n",
    ">-\n",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "? ",
    "<<",
    "\u{feff}",
    "\u{85}",
    "é",
    "\0",
    "@",
    "`",
];

#[test]
fn a_network_is_masqueraded_only_whole() {
    let text = "nonMasqueradeCIDRs: [10.0.0.0/8, 192.168.7.0/24]\nmasqueradeCIDRs: [10.0.0.0/29]";
    let document = Document {
        name: "c".into(),
        text: text.into(),
        format: Format::MasqAgent,
    };
    let config = load(&[document], &Options::default()).unwrap().config;
    for (net, whole) in [
        ("10.0.0.0/29", true),
        ("10.0.0.0/30", true),
        // Its first address is masqueraded.
        ("10.0.0.0/8", false),
        ("10.0.0.0/16", false),
        ("203.0.113.0/24", true),
        // It contains a network that is not.
        ("192.168.0.0/16", false),
    ] {
        assert_eq!(config.masquerades(net.parse().unwrap()), whole, "{net}");
    }
}

/// As many rules as a policy may have, queried for as many destinations: scanning every rule would
/// not terminate in time.
#[test]
fn long_lists_are_queried_often() {
    const MANY: u32 = 100_000;
    let address = |n: u32| Ipv4Addr::from(0x0a00_0000 + n * 4);
    let text: String = (0..MANY)
        .map(|n| format!("- {}/30\n", address(n)))
        .collect();
    let text = format!("cidrLimit: {MANY}\nnonMasqueradeCIDRs:\n{text}");
    let config = accept(&text).config;
    for n in 0..MANY {
        let (inside, outside) = (address(n), address(n + MANY));
        assert_eq!(config.decide(inside.into()).action, RuleAction::Bypass);
        assert_eq!(config.decide(outside.into()).action, RuleAction::Masquerade);
        assert!(config.masquerades(IpAddr::from(outside).into()));
        assert!(!config.masquerades(IpNet::new(inside.into(), 29).unwrap()));
    }
}
