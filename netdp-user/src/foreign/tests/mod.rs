mod redirect;

use super::assess::{Assessor, NatContext, Translator};
use super::{early_drop, iptables, nft, owner, rule::Ruleset, walk};
use crate::config::{Origin, Rule, RuleAction, Rules};
use crate::iptables::Table;
use netdp_common::layout::Family;

fn prefix(text: &str, action: RuleAction) -> Rule {
    Rule {
        prefix: text.parse().unwrap(),
        action,
        origin: Origin::BuiltIn,
        also: Vec::new(),
    }
}

fn with(rules: &Rules, more: Rule) -> Rules {
    rules.iter().cloned().chain([more]).collect()
}

/// Returns ip-masq-agent's defaults, two uplinks, and pods in the known network 10.244.0.0/16.
fn context(translator: Translator) -> NatContext {
    let bypass = [
        "169.254.0.0/16",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fe80::/10",
    ];
    NatContext {
        translator,
        rules: bypass
            .into_iter()
            .map(|p| prefix(p, RuleAction::Bypass))
            .collect(),
        uplinks: vec!["eth0".into(), "eth1".into()],
        wire: vec!["192.0.2.10".parse().unwrap()],
        pods: vec!["10.244.0.0/16".parse().unwrap()],
        local: ["192.0.2.10".parse().unwrap()].into(),
        enable_ipv6: true,
    }
}

fn chain() -> Translator {
    Translator::Chain("IP-MASQ-AGENT".into())
}

fn assess(set: &Ruleset, after: bool, context: &NatContext) -> Vec<(String, bool, String)> {
    let mut assessor = Assessor::new(context);
    let mut assessed = Vec::new();
    walk::translating(set, |rule| {
        let assessment = assessor.assess(rule, after);
        let owner = owner::owner(rule.path, &rule.rule.text).to_owned();
        assessed.push((owner, assessment.conflict, assessment.why));
    });
    assessed
}

fn saved(rules: &str) -> Ruleset {
    iptables::ruleset(&Table::parse(rules), Family::V4, &Default::default())
}

/// Returns the only rule that translates, as both modes see it: owner, conflict with eBPF, conflict
/// with the chain, reason (the chain's).
fn one(rules: &str) -> (String, bool, bool, String) {
    let set = saved(rules);
    let ebpf = assess(&set, false, &context(Translator::Ebpf));
    let chains = assess(&set, false, &context(chain()));
    assert_eq!((ebpf.len(), chains.len()), (1, 1), "{rules}: {chains:?}");
    let (owner, conflict, why) = chains[0].clone();
    (owner, ebpf[0].1, conflict, why)
}

#[test]
fn services_marks_are_harmless() {
    let rules = "\
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
";
    let why = "applies only to packets that carry the mark 0x4000/0x4000";
    assert_eq!(one(rules), ("kube-proxy".into(), false, false, why.into()));
    // Without the first rule everything would be translated.
    let (_, ebpf, chains, _) = one(&rules.replace("! --mark", "--mark"));
    assert!(ebpf && chains);
}

#[test]
fn a_mark_that_is_required_is_harmless() {
    for rules in [
        "-A POSTROUTING -m mark --mark 0x40000/0xff0000 -j ts-x\n-A ts-x -j MASQUERADE\n",
        "-A POSTROUTING -m mark ! --mark 0x0/0xf -j MASQUERADE\n",
    ] {
        let (_, ebpf, chains, why) = one(rules);
        assert!(!ebpf && !chains, "{rules}: {why}");
    }
}

#[test]
fn cni_chains_are_in_conflict() {
    let (owner, ebpf, chains, why) = one("\
-A POSTROUTING -s 10.244.0.5/32 -m comment --comment \"name: \\\"x\\\" id: \\\"y\\\"\" -j CNI-0123456789abcdef
-A CNI-0123456789abcdef -d 10.244.0.0/24 -m comment --comment \"name\" -j ACCEPT
-A CNI-0123456789abcdef ! -d 224.0.0.0/4 -m comment --comment \"name\" -j MASQUERADE
");
    assert_eq!(owner, "a CNI plugin");
    assert!(ebpf && chains);
    assert_eq!(
        why,
        "translates packets to 10.0.0.0/8, 172.16.0.0/12, 169.254.0.0/16 and 1 more, which the \
         configuration bypasses"
    );
}

#[test]
fn a_second_agent_that_decides_the_same_is_harmless_to_the_chain() {
    let rules = "\
-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ
-A IP-MASQ -d 169.254.0.0/16 -j RETURN
-A IP-MASQ -d 10.0.0.0/8 -j RETURN
-A IP-MASQ -d 172.16.0.0/12 -j RETURN
-A IP-MASQ -d 192.168.0.0/16 -j RETURN
-A IP-MASQ -j MASQUERADE
";
    let (owner, ebpf, chains, why) = one(rules);
    assert_eq!(owner, "GKE");
    assert!(ebpf, "netfilter comes before the programs");
    assert!(!chains, "{why}");
    let (.., chains, why) = one(&rules.replace("172.16.0.0/12", "172.16.0.0/13"));
    assert!(chains);
    assert!(
        why.starts_with("translates packets to 172.16.0.0/12, "),
        "{why}"
    );
}

#[test]
fn flannel_calico_kind_and_aws_are_in_conflict() {
    for (owner, rules) in [
        (
            "flannel",
            "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n",
        ),
        (
            "Calico",
            "-A POSTROUTING -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-nat-outgoing -m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE\n",
        ),
        (
            "kind",
            "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j KIND-MASQ-AGENT
-A KIND-MASQ-AGENT -d 10.244.0.0/16 -j RETURN
-A KIND-MASQ-AGENT -j MASQUERADE\n",
        ),
        (
            "the AWS VPC CNI plugin",
            "-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.5 --random-fully\n",
        ),
        (
            "k8s-custom-iptables",
            "-A POSTROUTING -d 10.9.0.0/16 -m comment --comment \"custom-iptables-1700000000: 10.9.0.0/16\" -j MASQUERADE\n",
        ),
    ] {
        let (found, ebpf, chains, why) = one(rules);
        assert_eq!(found, owner);
        assert!(ebpf && chains, "{owner}: {why}");
    }
}

#[test]
fn prefixes_that_are_masqueraded_anyway_do_not_matter_to_the_chain() {
    let set = saved("-A POSTROUTING -d 10.9.0.0/16 -j MASQUERADE\n");
    let mut context = context(chain());
    context.rules = with(
        &context.rules,
        prefix("10.9.0.0/16", RuleAction::Masquerade),
    );
    assert!(!assess(&set, false, &context)[0].1);
    context.rules = with(&context.rules, prefix("10.9.7.0/24", RuleAction::Bypass));
    let (_, conflict, why) = &assess(&set, false, &context)[0];
    assert!(conflict);
    assert!(why.contains(" 10.9.7.0/24,"), "{why}");
}

#[test]
fn container_engines_translate_their_own() {
    let docker = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
    let mut unknown = context(Translator::Ebpf);
    unknown.pods.clear();
    for context in [context(Translator::Ebpf), unknown.clone()] {
        let (owner, conflict, why) = &assess(&saved(docker), false, &context)[0];
        assert_eq!(owner, "Docker");
        assert!(!conflict, "{why}");
    }
    // A bridge of unknown ownership.
    let bridge = docker.replace("docker0", "cni0");
    let (_, conflict, why) = &assess(&saved(&bridge), false, &unknown)[0];
    assert!(conflict);
    assert!(why.contains("--pod-cidr"), "{why}");
    // Docker's network is that of the pods.
    let mut same = unknown;
    same.pods = vec!["172.16.0.0/12".parse().unwrap()];
    assert!(assess(&saved(docker), false, &same)[0].1);
}

#[test]
fn what_is_not_on_its_way_out_is_harmless() {
    for rules in [
        "-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE\n",
        "-A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE\n",
        "-A POSTROUTING -o cni0 -j MASQUERADE\n",
        "-A POSTROUTING ! -o eth+ -j MASQUERADE\n",
        "-A POSTROUTING -m addrtype --src-type LOCAL -j MASQUERADE\n",
        "-A POSTROUTING -m addrtype --dst-type LOCAL -j MASQUERADE\n",
        "-A POSTROUTING -m conntrack --ctstatus DNAT -j MASQUERADE\n",
    ] {
        let (_, ebpf, chains, why) = one(rules);
        assert!(!ebpf && !chains, "{rules}: {why}");
    }
    for rules in [
        "-A POSTROUTING -o eth1 -j MASQUERADE\n",
        "-A POSTROUTING -o eth+ -j MASQUERADE\n",
        "-A POSTROUTING ! -o eth0 -j MASQUERADE\n",
        "-A POSTROUTING -m addrtype ! --src-type LOCAL -j MASQUERADE\n",
    ] {
        assert!(one(rules).1, "{rules}");
    }
}

#[test]
fn another_source_is_a_conflict_unless_netdp_comes_first() {
    let excluded = "-d 169.254.0.0/16 -j RETURN\n-A C -d 10.0.0.0/8 -j RETURN\n-A C -d 172.16.0.0/12 -j RETURN\n-A C -d 192.168.0.0/16 -j RETURN\n";
    let snat = |to: &str| {
        saved(&format!(
            "-A POSTROUTING -j C\n-A C {excluded}-A C -j SNAT --to-source {to}\n"
        ))
    };
    let context = context(chain());
    assert!(assess(&snat("203.0.113.9"), false, &context)[0].1);
    assert!(!assess(&snat("203.0.113.9"), true, &context)[0].1);
    assert!(
        !assess(&snat("192.0.2.10"), false, &context)[0].1,
        "the node's own"
    );
    assert!(!assess(&snat("192.0.2.10:1024-2047"), false, &context)[0].1);
}

#[test]
fn rules_that_nothing_leads_to_do_not_count_and_circles_end() {
    let set = saved("-A A -j MASQUERADE\n-A POSTROUTING -j B\n-A B -j C\n-A C -j B\n");
    assert_eq!(assess(&set, false, &context(Translator::Ebpf)), []);
}

const NFT: &str = include_str!("nft.json");
const NFT_TEXT: &str = include_str!("nft.txt");

/// A table as printed by nft, with every kind of condition that is supported.
#[test]
fn native_rules_are_read() {
    let listing = serde_json::from_str(NFT).unwrap();
    let tables = nft::tables(&listing);
    let (name, roots) = tables.into_iter().next().unwrap();
    assert_eq!((name.family.as_str(), name.name.as_str()), ("inet", "x"));
    assert_eq!(
        (roots.outward.as_slice(), roots.inward.len()),
        (&["p".to_owned()][..], 0)
    );
    let set = nft::ruleset(&listing, NFT_TEXT, roots, &Default::default());
    let mut texts = Vec::new();
    let mut excluded = Vec::new();
    walk::translating(&set, |rule| {
        texts.push(rule.rule.text.as_str());
        excluded.push(
            ["10.0.0.0/8", "11.0.0.0/8"].map(|net| rule.excluded.covers(&net.parse().unwrap())),
        );
    });
    let found = assess(&set, false, &context(Translator::Ebpf));
    let assessed: Vec<_> = texts
        .iter()
        .zip(&found)
        .map(|(text, (_, conflict, why))| (*text, *conflict, why.as_str()))
        .collect();
    let before = "translates packets before they reach netdp, so that netdp's options and status \
                  do not apply to them";
    assert_eq!(
        assessed,
        [
            (
                "ip saddr 172.17.0.0/16 oifname != \"docker0\" masquerade",
                false,
                "applies only to the containers on docker0, 172.17.0.0/16"
            ),
            (
                "ip saddr { 10.1.0.0/16, 10.244.0.1 } ip daddr != { 10.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16 } snat ip to 1.2.3.4",
                true,
                before
            ),
            (
                "ct status dnat masquerade",
                false,
                "applies only to packets that a service has redirected"
            ),
            (
                "meta mark & 0x00004000 != 0x00000000 masquerade",
                false,
                "applies only to packets that carry the mark 0x4000"
            ),
            (
                "ip6 saddr fd00::/64 oifname \"eth*\" masquerade",
                true,
                "translates packets to fe80::/10, which the configuration bypasses"
            ),
        ]
    );
    assert_eq!(excluded[4], [true, false]);
}

#[test]
fn exceptions_in_a_chain_apply_to_that_chain_only() {
    let rules = "\
-A POSTROUTING -d 10.0.0.0/8 -j RETURN
-A POSTROUTING -j A
-A POSTROUTING -j MASQUERADE
-A A -d 172.16.0.0/12 -j RETURN
-A A -d 10.0.0.0/8 -j RETURN
-A A -j MASQUERADE
";
    let assessed = assess(&saved(rules), false, &context(Translator::Ebpf));
    let why = |prefixes: &str| {
        format!("translates packets to {prefixes}, which the configuration bypasses")
    };
    let assessed: Vec<_> = assessed.into_iter().map(|(.., why)| why).collect();
    assert_eq!(
        assessed,
        [
            why("169.254.0.0/16, 192.168.0.0/16"),
            why("172.16.0.0/12, 169.254.0.0/16, 192.168.0.0/16")
        ]
    );
}

/// Returns the `n`th of more networks than real rule sets contain.
fn nth(n: u32) -> String {
    format!("{}/30", std::net::Ipv4Addr::from(0x0a00_0000 + n * 4))
}

/// As many rules as a policy may have, matched against as many, in every shape that queries the
/// policy: comparing each with each would not terminate in time.
#[test]
fn long_lists_are_assessed_by_long_lists() {
    const MANY: u32 = 100_000;
    let context = NatContext {
        rules: (0..MANY)
            .map(|n| prefix(&nth(n), RuleAction::Bypass))
            .collect(),
        ..context(Translator::Ebpf)
    };
    let lines = |line: &dyn Fn(u32) -> String| saved(&(0..MANY).map(line).collect::<String>());
    let conflicts = |set: &Ruleset| {
        let assessed = assess(set, false, &context);
        assessed
            .iter()
            .filter(|(_, conflict, why)| *conflict && why.contains("configuration bypasses"))
            .count()
    };
    let by_destination = lines(&|n| format!("-A POSTROUTING -d {} -j MASQUERADE\n", nth(n)));
    assert_eq!(conflicts(&by_destination), MANY as usize);
    let by_source = lines(&|n| {
        let source = std::net::Ipv4Addr::from(0x0af4_0000 + n % 256);
        format!("-A POSTROUTING -s {source}/32 -j MASQUERADE\n")
    });
    assert_eq!(conflicts(&by_source), MANY as usize);
    // Half of them exempt prefixes that the other half would have translated.
    let excluded = lines(&|n| match n % 2 {
        0 => format!("-A POSTROUTING -d {} -j RETURN\n", nth(n)),
        _ => format!("-A POSTROUTING -d {} -j MASQUERADE\n", nth(n - 1)),
    });
    assert_eq!(conflicts(&excluded), 0);
    // A chain with jumps from many places.
    let jumps = lines(&|n| match n % 2 {
        0 => format!("-A POSTROUTING -d {} -j RETURN\n", nth(n)),
        _ => format!("-A POSTROUTING -d {} -j A\n", nth(n)),
    });
    let mut jumps = jumps;
    jumps
        .chains
        .extend(saved("-A A -j MASQUERADE\n").chains.remove_entry("A"));
    assert_eq!(conflicts(&jumps), MANY as usize / 2);
    // A set on either side of a condition.
    for not in [true, false] {
        let nets = (0..MANY).map(|n| nth(n).parse().unwrap()).collect();
        let mut set = saved("-A POSTROUTING -d 0.0.0.0/1 -j MASQUERADE\n");
        let rule = &mut set.chains.get_mut("POSTROUTING").unwrap()[0];
        rule.matches
            .push(super::rule::Match::Destination { nets, not });
        assert_eq!(conflicts(&set), usize::from(!not));
    }
}

/// Rules that drop packets to as many containers, from sources that a long policy may bypass,
/// behind as many exceptions.
#[test]
fn long_lists_of_drops_are_assessed_by_long_lists() {
    const MANY: u32 = 100_000;
    let context = NatContext {
        rules: (0..MANY)
            .map(|n| prefix(&nth(n), RuleAction::Bypass))
            .collect(),
        ..context(Translator::Ebpf)
    };
    let pod = |n: u32| std::net::Ipv4Addr::from(0x0af4_0000 + n / 4);
    let line = |n: u32| match n % 4 {
        0 => format!("-A PREROUTING -d {} -j RETURN\n", nth(n)),
        1 => format!("-A PREROUTING -s {} -d {}/32 -j DROP\n", nth(n), pod(n)),
        2 => format!("-A PREROUTING -s 192.0.2.0/24 -d {}/32 -j DROP\n", pod(n)),
        _ => format!("-A PREROUTING -d {}/32 ! -i docker0 -j DROP\n", pod(n)),
    };
    let saved: String = (0..MANY).map(line).collect();
    let table = Table::parse(&format!("*raw\n{saved}COMMIT\n"));
    let set = iptables::early(&table, Family::V4);
    let (mut reached, mut dropped) = (0, 0);
    walk::early_drops(&set, |rule| {
        reached += 1;
        dropped += u32::from(early_drop::assess_drop(rule, &context).is_some());
    });
    // Replies from bypassed destinations had pods' addresses with netfilter too.
    assert_eq!((reached, dropped), (MANY / 4 * 3, MANY / 4 * 2));
}

#[test]
fn devices_of_chains_are_read() {
    let text = "\
table netdev own { # handle 1
\tchain one { # handle 1
\t\ttype filter hook ingress device \"eth0\" priority filter; policy accept;
\t}
\tchain two { # handle 2
\t\ttype filter hook ingress devices = { eth0, eth1 } priority filter; policy accept;
\t}
}
";
    assert_eq!(nft::devices(text, "one"), ["eth0"]);
    assert_eq!(nft::devices(text, "two"), ["eth0", "eth1"]);
    assert!(nft::devices(text, "none").is_empty());
}
