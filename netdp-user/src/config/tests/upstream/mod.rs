//! Equality of decisions with ip-masq-agent: each case of its own unit tests, of Azure's fork, and
//! those that follow from its source (kubernetes-sigs/ip-masq-agent e3000864). Where netdp differs
//! by choice, the case is marked so, and docs/migrate.md has to explain it.

mod cases;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use cases::{CASE, Case, ELEVEN, Ours, SYNC, TRAPS, Theirs, VALIDATE};

const MIGRATE: &str = include_str!("../../../../../docs/migrate.md");

/// Reports whether ip-masq-agent's chain returns before its MASQUERADE.
fn they_bypass(case: &Case, cidrs: &[&str], destination: IpAddr) -> bool {
    let within = |cidr: &str| cidr.parse::<IpNet>().unwrap().contains(&destination);
    (!case.link_local && within("169.254.0.0/16"))
        || (!case.link_local_v6 && within("fe80::/10"))
        || cidrs.iter().any(|cidr| within(cidr))
}

/// Returns the first and last address of each network of `cidrs`, and their neighbours.
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
        let bypassed = config.decide(address).action == RuleAction::Bypass;
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
    // The file is absent.
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
