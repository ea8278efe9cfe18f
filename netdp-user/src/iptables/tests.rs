use super::{Chain, Ports, Table, restore_input};
use crate::config::{self, Config, Document, Options};
use netdp_common::layout::Family;

fn config(text: &str) -> Config {
    let document = Document {
        name: "c".into(),
        text: text.into(),
        format: config::Format::MasqAgent,
    };
    let options = Options {
        enable_ipv6: true,
        ..Options::default()
    };
    config::load(&[document], &options).unwrap().config
}

fn chances(ranges: &[(u16, u16)]) -> Vec<String> {
    let ports = Ports {
        ranges: ranges.to_vec(),
        random_fully: false,
    };
    let chain = Chain::new("C", Family::V4, &config("nonMasqueradeCIDRs: []"), &ports);
    let udp = chain.rules.iter().filter(|r| r.starts_with("-p udp"));
    udp.map(|rule| {
        let chance = rule.split_once("--probability ").map(|(_, p)| p);
        chance
            .map_or("rest", |p| p.split(' ').next().unwrap())
            .into()
    })
    .collect()
}

#[test]
fn every_port_has_the_same_chance() {
    assert_eq!(chances(&[]), [] as [&str; 0]);
    assert_eq!(chances(&[(1024, 29999)]), ["rest"]);
    assert_eq!(
        chances(&[(1024, 29999), (32768, 65535)]),
        ["0.46929256292", "rest"]
    );
    assert_eq!(
        chances(&[(1024, 29999), (32768, 49151), (61000, 65535)]),
        ["0.58072791388", "0.78317399602", "rest"]
    );
    assert_eq!(
        chances(&[(1024, 1024), (65535, 65535)]),
        ["0.50000000000", "rest"]
    );
}

#[test]
fn the_order_is_the_configurations() {
    let text = "nonMasqueradeCIDRs: [192.168.0.0/16, 10.0.0.0/8, 'fc00::/7']";
    let chain = Chain::new("C", Family::V4, &config(text), &Ports::default());
    let destinations: Vec<_> = chain
        .rules
        .iter()
        .filter_map(|rule| rule.strip_prefix("-d ")?.split(' ').next())
        .collect();
    assert_eq!(
        destinations,
        ["169.254.0.0/16", "192.168.0.0/16", "10.0.0.0/8"]
    );
    let chain = Chain::new("C", Family::V6, &config(text), &Ports::default());
    assert_eq!(chain.rules.len(), 3, "{chain:?}");
    assert!(chain.rules[0].starts_with("-d fe80::/10 "));
}

#[test]
fn the_longest_prefix_goes_first_where_some_are_masqueraded() {
    let text = "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.2.0.0/16]";
    let chain = Chain::new("C", Family::V4, &config(text), &Ports::default());
    let ends: Vec<_> = chain
        .rules
        .iter()
        .map(|r| (r.split(' ').nth(1).unwrap(), r.rsplit(' ').next().unwrap()))
        .collect();
    assert_eq!(
        ends,
        [
            ("169.254.0.0/16", "RETURN"),
            ("10.2.0.0/16", "MASQUERADE"),
            ("10.0.0.0/8", "RETURN"),
            ("comment", "MASQUERADE"),
        ]
    );
}

#[test]
fn what_is_restored_reads_as_the_chain() {
    let chain = Chain::new("C", Family::V4, &config(""), &Ports::default());
    let table = Table::parse(&restore_input(&chain, true));
    let texts: Vec<_> = table.rules("C").iter().map(|rule| &rule.text).collect();
    assert!(texts.iter().copied().eq(&chain.rules));
    assert_eq!(table.rules("POSTROUTING").len(), 1);
}

#[test]
fn counters_are_read() {
    let table = Table::parse("# x\n*nat\n:C - [0:0]\n[3:252] -A C -j RETURN\nCOMMIT\n");
    assert_eq!(table.rules("C")[0].counters, (3, 252));
    assert_eq!(table.rules("C")[0].text, "-j RETURN");
    assert!(table.rules("D").is_empty());
}
