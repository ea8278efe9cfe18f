//! Ports on which the node's own traffic is redirected, from output of the real programs.

use super::super::redirect::{ReachableRedirect, reachable};
use super::super::rule::Ruleset;
use super::super::{iptables, nft};
use crate::iptables::Table;
use netdp_common::layout::Family;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn local() -> BTreeSet<IpAddr> {
    ["10.1.0.10", "fd00:1::10"]
        .map(|ip| ip.parse().unwrap())
        .into()
}

/// Returns `chain: protocol ports …` of each rule that redirects.
fn redirects(set: &Ruleset) -> Vec<String> {
    let text = |rule: ReachableRedirect<'_>| {
        let each = rule.ports.by_protocol();
        let ports: Vec<_> = each
            .filter(|(_, _, ports)| !ports.is_empty())
            .map(|(name, _, ports)| format!("{name} {ports}"))
            .collect();
        format!("{}: {}", rule.chain, ports.join(" "))
    };
    reachable(set).into_iter().map(text).collect()
}

fn saved(rules: &str, family: Family) -> Vec<String> {
    redirects(&iptables::ruleset(&Table::parse(rules), family, &local()))
}

fn listed(listing: &str) -> Vec<String> {
    let listing = serde_json::from_str(listing).unwrap();
    // The output of `list table` contains that of `list chains` for the table.
    let (_, roots) = nft::tables(&listing).into_iter().next().unwrap();
    redirects(&nft::ruleset(&listing, "", roots, &local()))
}

#[test]
fn the_portmap_plugin_with_iptables() {
    for family in [Family::V4, Family::V6] {
        let to = match family {
            Family::V4 => "172.16.0.2",
            Family::V6 => "[fd00:172::2]",
        };
        let rules = format!(
            "\
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"x\\\" id: \\\"--dports 1\\\"\" -m multiport --dports 8080,8081 -j CNI-DN-abc
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment \"dnat name: \\\"x\\\" id: \\\"y\\\"\" -m multiport --dports 8053 -j CNI-DN-abc
-A CNI-DN-abc -s 172.16.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-abc -p tcp -m tcp --dport 8080 -j DNAT --to-destination {to}:80
-A CNI-DN-abc -p tcp -m tcp --dport 8081 -j DNAT --to-destination {to}:81
-A CNI-DN-abc -p udp -m udp --dport 8053 -j DNAT --to-destination {to}:53
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
"
        );
        assert_eq!(
            saved(&rules, family),
            [
                "CNI-DN-abc: tcp 8080",
                "CNI-DN-abc: tcp 8081",
                "CNI-DN-abc: udp 8053"
            ]
        );
    }
}

#[test]
fn the_portmap_plugin_with_nftables() {
    assert_eq!(
        listed(include_str!("portmap.json")),
        [
            "hostip_hostports: tcp 8081",
            "hostports: tcp 8080",
            "hostports: udp 8053"
        ],
        "not the address that is none of the node's"
    );
}

/// Rules of iptables-nft if only nft is there to read them: nft's JSON omits the parameters of
/// extensions.
#[test]
fn iptables_nft_as_nft_prints_it() {
    let found = listed(include_str!("iptables-nft.json"));
    assert_eq!(found, ["CNI-DN-abc: tcp 8080", "CNI-DN-abc: tcp 8081"]);
}

#[test]
fn kube_proxy_with_iptables() {
    let rules = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/kubernetes:https cluster IP\" -m tcp --dport 443 -j KUBE-SVC-K
-A KUBE-SERVICES -d 10.1.0.10/32 -p tcp -m comment --comment \"a/b external IP\" -m tcp --dport 8443 -j KUBE-EXT-B
-A KUBE-SERVICES -d 198.51.100.9/32 -p tcp -m comment --comment \"a/b loadbalancer IP\" -m tcp --dport 9443 -j KUBE-EXT-B
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment \"a/b\" -m tcp --dport 3001 -j KUBE-EXT-B
-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment \"a/c\" -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j KUBE-EXT-B
-A KUBE-NODEPORTS -p sctp -m comment --comment \"a/d\" -m sctp --dport 3002 -j KUBE-EXT-D
-A KUBE-EXT-B -m comment --comment \"masquerade traffic for a/b external destinations\" -j KUBE-MARK-MASQ
-A KUBE-EXT-B -j KUBE-SVC-B
-A KUBE-EXT-D -j KUBE-SEP-D
-A KUBE-SVC-B -d 10.96.0.7/32 ! -i cni0 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-B -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-B1
-A KUBE-SVC-B -j KUBE-SEP-B2
-A KUBE-SVC-K -j KUBE-SEP-K
-A KUBE-SEP-K -p tcp -m tcp -j DNAT --to-destination 10.1.0.10:6443
-A KUBE-SEP-B1 -s 10.244.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-B1 -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:80
-A KUBE-SEP-B2 -p tcp -m tcp -j DNAT --to-destination 10.244.0.6:80
-A KUBE-SEP-D -p sctp -m sctp -j DNAT --to-destination 10.244.0.6:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
";
    assert_eq!(
        saved(rules, Family::V4),
        [
            "KUBE-SEP-B1: tcp 3001,8443",
            "KUBE-SEP-B2: tcp 3001,8443",
            "KUBE-SEP-D: sctp 3002"
        ]
    );
}

#[test]
fn kube_proxy_with_nftables() {
    let endpoint = "ns1/svc1";
    assert_eq!(
        listed(include_str!("kube-proxy.json")),
        [
            format!("endpoint-E1-{endpoint}/tcp/p80__10.180.0.1/80: tcp 3001,8443"),
            format!("endpoint-E2-{endpoint}/sctp/p80__10.180.0.1/80: sctp 3002"),
        ]
    );
}

#[test]
fn docker_and_podman() {
    let rules = "\
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 5000 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 5001 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 10.1.0.10/32 ! -i docker0 -p udp -m udp --dport 5002:5010 -j DNAT --to-destination 172.17.0.2
-A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 5100:5101 -m comment --comment \"dnat name: podman id: 1\" -j NETAVARK-DN-1
-A NETAVARK-DN-1 -p tcp -m tcp --dport 5100:5101 -j DNAT --to-destination 10.88.0.2:5100-5101/5100
";
    assert_eq!(
        saved(rules, Family::V4),
        [
            "DOCKER: tcp 5000",
            "DOCKER: udp 5002-5010",
            "NETAVARK-DN-1: tcp 5100-5101"
        ]
    );
}

#[test]
fn conditions_of_iptables() {
    for (condition, ports) in [
        ("-p tcp -m tcp --dport 80", "tcp 80"),
        ("-p tcp -m tcp ! --dport 2:65535", "tcp 0-1"),
        ("-p tcp -m multiport ! --dports 3:65535,1", "tcp 0,2"),
        ("-p 136 -m multiport --dports 7", "udplite 7"),
        ("-p dccp -m dccp --dport 7", "dccp 7"),
        (
            "-p udp -m iprange --dst-range 10.1.0.9-10.1.0.11 -m udp --dport 9",
            "udp 9",
        ),
        (
            "-p udp -m udp --dport 9 -m addrtype --dst-type UNICAST,LOCAL",
            "udp 9",
        ),
        (
            "-p udp -m udp --dport 9 -m addrtype ! --dst-type BROADCAST",
            "udp 9",
        ),
        ("-d 10.1.0.0/16 -p tcp -m tcp --dport 80", "tcp 80"),
        ("! -d 10.2.0.0/16 -p tcp -m tcp --dport 80", "tcp 80"),
        // Not supported, or no port at all.
        ("-p tcp -m multiport --ports 80", "tcp 0-65535"),
        ("-p tcp -m set --match-set x dst", "tcp 0-65535"),
    ] {
        for target in ["DNAT --to-destination 1.2.3.4:1", "REDIRECT --to-ports 1"] {
            let rules = format!("-A PREROUTING {condition} -j {target}\n");
            assert_eq!(saved(&rules, Family::V4), [format!("PREROUTING: {ports}")]);
        }
    }
    for condition in [
        "-p icmp",
        "-p gre",
        "-d 10.2.0.0/16 -p tcp -m tcp --dport 80",
        "-d 127.0.0.1/32 -p tcp -m tcp --dport 80",
        "! -d 10.1.0.0/16 -p tcp -m tcp --dport 80",
        "-p udp -m iprange --dst-range 10.1.0.11-10.1.0.12 -m udp --dport 9",
        "-m addrtype ! --dst-type LOCAL -p udp -m udp --dport 9",
        "-m addrtype --dst-type BROADCAST -p udp -m udp --dport 9",
    ] {
        let rules = format!("-A PREROUTING {condition} -j DNAT --to-destination 1.2.3.4:1\n");
        assert_eq!(saved(&rules, Family::V4), [""; 0], "{condition}");
    }
}

/// Every kind of condition of native nftables that is supported, and some that are not.
#[test]
fn conditions_of_nftables() {
    assert_eq!(
        listed(include_str!("inward-ip.json")),
        [
            // By `fib daddr type local` on any port.
            "endpoint-A: tcp 0-65535",
            "endpoint-A: tcp 0-65535 udp 0-65535",
            "services: tcp 90-95,99",
            "services: tcp 82-83",
            "services: tcp 81",
            "services: udp 9000-9010",
            "services: tcp 0,65001-65535",
            "services: tcp 65501-65535",
            "services: tcp 7000 udp 7001",
            "services: tcp 77",
            "services: udp 0-65535",
            "services: udplite 5",
            "services: dccp 6",
            "services: tcp 8 udp 8 sctp 8 udplite 8 dccp 8",
            "tp: tcp 8443",
        ]
    );
    assert_eq!(
        listed(include_str!("inward-inet.json")),
        [
            "p: tcp 10,20-30",
            "p: udp 53",
            "p: tcp 0-65535 udp 0-65535 sctp 0-65535 udplite 0-65535 dccp 0-65535",
            "p: tcp 5 udplite 5",
            "p: tcp 8",
            // A type by another interface is not supported.
            "p: tcp 12",
            "p: tcp 13",
        ]
    );
}

#[test]
fn circles_and_many_ways_end() {
    let mut rules = String::from("-A PREROUTING -p tcp -m tcp --dport 80 -j C0\n");
    for n in 0..60 {
        let next = (n + 1) % 60;
        rules += &format!("-A C{n} -j C{next}\n-A C{n} -p tcp -j C{next}\n");
    }
    rules += "-A C59 -j DNAT --to-destination 1.2.3.4\n";
    assert_eq!(saved(&rules, Family::V4), ["C59: tcp 80"]);
}

/// Generates the words of rules, in any order.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "-A",
        "PREROUTING",
        "-j",
        "-g",
        "DNAT",
        "C",
        "!",
        "-p",
        "tcp",
        "--dport",
        "80:",
        "9:1",
        "--dports",
        ",",
        "-d",
        "::/0",
        "10.1.0.10",
        "--dst-range",
        "-",
        "\"",
        "\\",
        "--dst-type",
        "LOCAL",
        "\n",
        "\u{e9}",
        "--comment",
    ]);
    prop::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop::sample::select(vec![
        "match", "left", "right", "op", "payload", "protocol", "field", "vmap", "key", "data",
        "set", "concat", "range", "prefix", "addr", "len", "dnat", "map", "elem", "val", "jump",
        "target", "fib", "flags", "&", "ct", "dir", "xt", "name",
    ]);
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "tcp", "dport", "th", "==", "!=", "<", "@s", "local", "*", "c", "original"
        ])
        .prop_map(serde_json::Value::from),
        any::<u32>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(5, 60, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4).prop_map(|entries| {
                entries
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect()
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_rules_are_read_without_a_panic(text in words(), any in "[ -~\n]{0,80}") {
        for text in [&text, &any] {
            saved(text, Family::V4);
            saved(&format!("-A PREROUTING {text} -j DNAT"), Family::V6);
        }
    }

    #[test]
    fn any_json_is_read_without_a_panic(expressions in prop::collection::vec(json(), 0..4), elements in json()) {
        let listing = serde_json::json!({"nftables": [
            {"chain": {"family": "ip", "table": "t", "name": "c", "type": "nat", "hook": "prerouting"}},
            {"set": {"name": "s", "elem": elements}},
            {"rule": {"chain": "c", "handle": 1, "expr": expressions}},
        ]});
        listed(&listing.to_string());
    }
}
