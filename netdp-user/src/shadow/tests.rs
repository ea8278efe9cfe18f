use super::Summary;
use super::compare::{Comparison, Expected, Node, RouteLookup, compare};
use super::netfilter::{NetfilterOutcome, NetfilterRules, evaluate};
use super::report::{Example, ShadowReport};
use crate::config::{self, Document, Format, Options};
use crate::iptables::Table;
use crate::nf_conntrack::{Flow, NfTuple};
use crate::uplinks::{LinkLayer, Uplink};
use std::net::IpAddr;

const NODE: &str = "192.0.2.9";

/// Routes by which everything outside 10.0.0.0/8 leaves by the uplink.
struct DirectRoutes;

impl RouteLookup for DirectRoutes {
    fn egress_interface(&mut self, _: IpAddr, to: IpAddr, _: bool) -> Option<u32> {
        let pods: ipnet::IpNet = "10.0.0.0/8".parse().unwrap();
        (!pods.contains(&to)).then_some(2)
    }

    fn source(&mut self, _: IpAddr, _: u32) -> Option<IpAddr> {
        None
    }
}

impl NetfilterRules for NetfilterOutcome {
    fn outcome(&mut self, _: &Flow) -> NetfilterOutcome {
        self.clone()
    }
}

fn node(nonmasquerade: &str) -> Node {
    let document = Document {
        name: "c".into(),
        text: format!("nonMasqueradeCIDRs: [{nonmasquerade}]"),
        format: Format::MasqAgent,
    };
    let uplink = Uplink {
        ifindex: 2,
        name: "eth0".into(),
        link_layer: LinkLayer::Ethernet,
        v4: Some([192, 0, 2, 9].into()),
        v6: None,
        up: true,
        untagged: false,
        only_v4: false,
        only_v6: false,
    };
    Node {
        config: config::load(&[document], &Options::default())
            .unwrap()
            .config,
        local: [NODE.parse().unwrap()].into(),
        uplinks: [(2, uplink)].into(),
        enable_ipv6: false,
    }
}

/// Makes a flow from `source` to `destination`, translated to `target`, which sees it as from `seen`.
fn flow(source: &str, destination: &str, target: &str, seen: &str) -> Flow {
    let tuple = |source: &str, destination: &str, source_id, destination_id| NfTuple {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        source_id,
        destination_id,
    };
    Flow {
        protocol: 6,
        original: tuple(source, destination, 40_000, 443),
        reply: tuple(target, seen, 443, 50_000),
        answered: false,
        timeout: 10,
        tcp: None,
        picked_up: false,
    }
}

fn compared(flow: &Flow, node: &Node, mut outcome: NetfilterOutcome) -> Comparison {
    compare(
        flow,
        &Expected::of(flow, node, &mut DirectRoutes),
        node,
        &mut outcome,
    )
}

#[test]
fn the_same_packets_agree() {
    let unused = || NetfilterOutcome::Unknown("nobody asks".into());
    let node = node("172.16.0.0/12");
    for (flow, how) in [
        (flow("10.0.0.1", "8.8.8.8", "8.8.8.8", NODE), "masqueraded"),
        // A service: the policy applies to the backend behind it.
        (
            flow("10.0.0.1", "10.96.0.1", "8.8.8.8", NODE),
            "masqueraded",
        ),
        (
            flow("10.0.0.1", "8.8.8.8", "172.16.0.1", "10.0.0.1"),
            "bypassed",
        ),
        (
            flow("192.0.2.77", NODE, "10.0.0.1", "192.0.2.77"),
            "not by an uplink",
        ),
        // A different port, as with --random-fully, is no difference.
        (flow(NODE, "8.8.8.8", "8.8.8.8", NODE), "the node's own"),
        (
            flow("10.0.0.1", "224.0.0.5", "224.0.0.5", "10.0.0.1"),
            "not by an uplink",
        ),
    ] {
        assert_eq!(
            compared(&flow, &node, unused()),
            Comparison::Agrees(how),
            "{flow:?}"
        );
    }
}

/// Routes by the uplink, which name a source.
struct NamedSource(&'static str);

impl RouteLookup for NamedSource {
    fn egress_interface(&mut self, _: IpAddr, _: IpAddr, _: bool) -> Option<u32> {
        Some(2)
    }

    fn source(&mut self, _: IpAddr, _: u32) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

#[test]
fn the_source_is_the_one_that_the_datapath_chooses() {
    let mut node = node("172.16.0.0/12");
    node.local.insert("192.0.2.30".parse().unwrap());
    let flow = flow("10.0.0.1", "8.8.8.8", "8.8.8.8", NODE);
    let seen = |node: &Node, source| Expected::of(&flow, node, &mut NamedSource(source)).source;
    assert_eq!(seen(&node, "192.0.2.30"), "192.0.2.30".parse().ok());
    assert_eq!(
        seen(&node, "203.0.113.1"),
        NODE.parse().ok(),
        "not the node's"
    );
    let uplink = node.uplinks.get_mut(&2).unwrap();
    uplink.only_v4 = true;
    assert_eq!(seen(&node, "192.0.2.30"), NODE.parse().ok(), "not asked");
    node.uplinks.get_mut(&2).unwrap().v4 = None;
    let refused = Expected::of(&flow, &node, &mut NamedSource("192.0.2.30"));
    assert_eq!(refused.source, None);
    assert_eq!(refused.because, "eth0 has no address to masquerade with");
}

#[test]
fn what_is_out_of_scope_does_not_leave_by_an_uplink() {
    let node = node("172.16.0.0/12");
    for (from, to, why) in [
        (
            "10.0.0.1",
            "224.0.0.5",
            "multicast, broadcast or link-local",
        ),
        ("fd00::1", "2001:db8::1", "IPv6 without --enable-ipv6"),
    ] {
        let flow = flow(from, to, to, from);
        let expected = Expected::of(&flow, &node, &mut NamedSource(NODE));
        assert_eq!(expected.source, from.parse().ok());
        assert_eq!((expected.because.as_str(), expected.leaves), (why, false));
    }
}

#[test]
fn masquerading_by_another_rule_is_no_difference() {
    let node = node("172.16.0.0/12");
    let marked = flow("192.0.2.77", NODE, "172.16.0.1", NODE);
    let not = NetfilterOutcome::Untranslated("-d 172.16.0.0/12 -j RETURN".into());
    let agrees = Comparison::Agrees("masqueraded by a third-party rule, which stays");
    assert_eq!(compared(&marked, &node, not.clone()), agrees);
    // Translated to an address that is not the node's: netdp would take it for a pod.
    let foreign = flow("10.0.0.1", "8.8.8.8", "8.8.8.8", "198.51.100.7");
    assert!(matches!(
        compared(&foreign, &node, not),
        Comparison::Differs { .. }
    ));
}

#[test]
fn a_difference_names_prefix_and_rule() {
    let node = node("8.8.8.0/24");
    let masqueraded = flow("10.0.0.1", "8.8.8.8", "8.8.8.8", NODE);
    let rule = NetfilterOutcome::Masqueraded("-A X -j MASQUERADE".into());
    let differs = |netdp: &str, netfilter: &str| Comparison::Differs {
        netdp: netdp.into(),
        netfilter: netfilter.into(),
    };
    assert_eq!(
        compared(&masqueraded, &node, rule.clone()),
        differs(
            "bypass: 8.8.8.0/24 (c:1)",
            "masquerade as 192.0.2.9: -A X -j MASQUERADE"
        )
    );
    let left = flow("10.0.0.1", "9.9.9.9", "9.9.9.9", "10.0.0.1");
    assert_eq!(
        compared(
            &left,
            &node,
            NetfilterOutcome::Untranslated("-A X -j RETURN".into())
        ),
        differs(
            "masquerade as 192.0.2.9: no prefix covers it",
            "bypass: -A X -j RETURN"
        )
    );
    // The chain translates the node's own traffic and traffic between pods; netdp does neither.
    for (from, to, why) in [
        (NODE, "9.9.9.9", "the node's own traffic"),
        ("10.0.0.1", "10.0.0.2", "it does not leave by an uplink"),
    ] {
        let flow = flow(from, to, to, "192.0.2.10");
        let expected = format!("bypass: {why}");
        assert_eq!(
            compared(&flow, &node, rule.clone()),
            differs(&expected, "masquerade as 192.0.2.10: -A X -j MASQUERADE")
        );
    }
    let mut sealed = left;
    sealed.protocol = 51;
    assert!(matches!(
        compared(&sealed, &node, NetfilterOutcome::Untranslated(String::new())),
        Comparison::Differs { netdp, .. } if netdp.starts_with("drop: ")
    ));
}

#[test]
fn the_chain_is_walked_as_the_kernel_does() {
    let table = Table::parse(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:X - [0:0]\n\
         [0:0] -A POSTROUTING -m comment --comment \"say: -j X\" -m addrtype ! --dst-type LOCAL -j X\n\
         [0:0] -A POSTROUTING -d 172.16.3.0/24 -m comment --comment \"custom-iptables-1: x\" -j MASQUERADE\n\
         [0:0] -A X -d 172.16.0.0/12 -m comment --comment \"-d 0.0.0.0/0 -j MASQUERADE\" -j RETURN\n\
         [0:0] -A X ! -d 9.9.0.0/16 -p udp -j RETURN\n\
         [0:0] -A X -s 10.0.0.0/8 -j MASQUERADE --random-fully\nCOMMIT\n",
    );
    let to = |target: &str| flow("10.0.0.1", target, target, "10.0.0.1");
    let walked = |flow: &Flow| match evaluate(&table, "X", flow) {
        NetfilterOutcome::Masqueraded(rule) => format!("masquerade {rule}"),
        NetfilterOutcome::Untranslated(rule) => format!("not {rule}"),
        NetfilterOutcome::Unknown(why) => why,
    };
    assert!(walked(&to("172.16.0.1")).starts_with("not -A X -d 172.16.0.0/12"));
    assert!(walked(&to("172.16.3.1")).starts_with("masquerade -A POSTROUTING -d 172.16.3.0/24"));
    assert!(walked(&to("8.8.8.8")).starts_with("masquerade -A X -s 10.0.0.0/8"));
    let mut udp = to("8.8.8.8");
    udp.protocol = 17;
    assert!(walked(&udp).starts_with("not -A X ! -d 9.9.0.0/16"));
    udp = to("9.9.1.1");
    udp.protocol = 17;
    assert!(walked(&udp).starts_with("masquerade"));
    let other = flow("192.0.2.77", "8.8.8.8", "8.8.8.8", "192.0.2.77");
    assert_eq!(walked(&other), "not no rule of X matches");
    let none = evaluate(&Table::default(), "X", &other);
    assert_eq!(
        none,
        NetfilterOutcome::Untranslated("there is no chain X".into())
    );
}

#[test]
fn a_report_is_bounded() {
    let mut report = ShadowReport::default();
    assert_eq!(report.summary(), Summary::Unknown);
    report.record_agreement("masqueraded");
    assert_eq!(report.summary(), Summary::Alike);
    let example = Example::new(&flow("10.0.0.1", "8.8.8.8", "8.8.8.8", NODE), None);
    for kind in 0..300 {
        for _ in 0..10 {
            report.record_difference(kind.to_string(), "rule".into(), example.clone());
        }
    }
    assert_eq!(report.summary(), Summary::Different);
    assert_eq!((report.flows, report.differing), (3001, 3000));
    assert_eq!(report.differences.len(), 100);
    assert_eq!(report.differences[0].flows, 10);
    assert_eq!(report.differences[0].examples.len(), 5);
}
