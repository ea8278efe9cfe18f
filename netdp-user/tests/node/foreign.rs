//! Third-party NAT rules are detected, assessed and reported, in both modes and in every kind of
//! table.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, POLICY_V4, SOON, nft, wait_log};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Netns, WorkDir, wait_for, wait_some};

/// Rules of kube-proxy, a CNI plugin and Docker, in the format of iptables-restore.
const RULES: &str = "\
*nat
:KUBE-POSTROUTING - [0:0]
:CNI-aaaa - [0:0]
:CNI-bbbb - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
-A POSTROUTING -s 172.16.0.2/32 -j CNI-aaaa
-A POSTROUTING -s 172.16.0.3/32 -j CNI-bbbb
-A CNI-aaaa -d 172.16.0.0/24 -j ACCEPT
-A CNI-aaaa ! -d 224.0.0.0/4 -j MASQUERADE
-A CNI-bbbb -d 172.16.0.0/24 -j ACCEPT
-A CNI-bbbb ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
";

const NATIVE: &str = "\
table inet kindnet-ipmasq {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip daddr 10.244.0.0/16 return
    masquerade
  }
}
";

struct Node {
    agent: Agent,
    bed: Bed,
    dir: WorkDir,
    _config: ConfigVolume,
}

impl Node {
    fn start(mode: &str, before: impl Fn(&Netns, &WorkDir) -> Result<()>) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let dir = WorkDir::new("foreign")?;
        before(&bed.node, &dir)?;
        let config = ConfigVolume::new("")?;
        let options = AgentOptions::new(NETDP)
            .config(config.path())
            .arg("--mode")
            .arg(mode)
            .arg("--pod-cidr=172.16.0.0/24");
        let agent = Agent::start(&bed.node, options)?;
        Ok(Self {
            agent,
            bed,
            dir,
            _config: config,
        })
    }

    fn foreign(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.agent.netdp(&["status", "-o", "json"])?)?;
        Ok(status["report"]["foreign"].clone())
    }

    /// Waits for this many rules; returns each as `owner kind count conflict`.
    fn found(&self, count: usize) -> Result<Vec<String>> {
        let told = |foreign: &Value| -> Vec<String> {
            let rules = foreign["rules"].as_array().cloned().unwrap_or_default();
            let of = |rule: &Value, key: &str| rule[key].to_string().replace('"', "");
            rules
                .iter()
                .map(|r| {
                    ["owner", "backend", "count", "conflict"]
                        .map(|key| of(r, key))
                        .join(" ")
                })
                .collect()
        };
        wait_some(SOON, "the rules of others", || {
            let found = told(&self.foreign().ok()?);
            (found.len() == count).then_some(found)
        })
        .map_err(|err| err.context(format!("{:?}", self.foreign())))
    }
}

fn restore(node: &Netns, dir: &WorkDir, backend: &str) -> Result<()> {
    let path = dir.path().join("rules");
    fs::write(&path, RULES)?;
    let program = format!("iptables-{backend}-restore");
    node.run(&[&program, "--wait", "60", &path.display().to_string()])?;
    Ok(())
}

#[test]
fn rules_of_both_kinds_of_iptables_are_judged() -> Result<()> {
    for mode in ["ebpf", "iptables"] {
        for backend in ["nft", "legacy"] {
            let node = Node::start(mode, |node, dir| restore(node, dir, backend))?;
            assert_eq!(
                node.found(3)?,
                [
                    format!("kube-proxy {backend} 1 false"),
                    format!("a CNI plugin {backend} 2 true"),
                    format!("Docker {backend} 1 false"),
                ],
                "{mode}"
            );
            let text = node.agent.netdp(&["status"])?;
            for words in [
                "conflict   NAT by a CNI plugin translates packets to 10.0.0.0/8",
                "-A CNI-aaaa ! -d 224.0.0.0/4 -j MASQUERADE",
                "harmless: applies only to packets that carry the mark 0x4000/0x4000",
            ] {
                ensure!(text.contains(words), "{mode}: no {words:?} in\n{text}");
            }
            ensure!(
                node.agent.log().contains("conflict: NAT by a CNI plugin"),
                "{mode}: it is not in the log"
            );
        }
    }
    Ok(())
}

/// The kernel notifies of nf_tables changes: they are reported long before the next resync, a
/// minute later.
#[test]
fn native_rules_are_noticed_as_they_come_and_go() -> Result<()> {
    for mode in ["ebpf", "iptables"] {
        let node = Node::start(mode, |_, _| Ok(()))?;
        let path = node.dir.path().join("native");
        fs::write(&path, NATIVE)?;
        node.bed
            .node
            .run(&["nft", "-f", &path.display().to_string()])?;
        assert_eq!(node.found(1)?, ["kindnet nftables 1 true"], "{mode}");
        let foreign = node.foreign()?;
        assert_eq!(
            foreign["rules"][0]["chain"],
            "inet kindnet-ipmasq postrouting"
        );
        assert_eq!(foreign["rules"][0]["rule"], "masquerade");
        node.bed
            .node
            .run(&["nft", "delete", "table", "inet", "kindnet-ipmasq"])?;
        node.found(0)?;
    }
    Ok(())
}

/// As in the image without iptables: the agent works and reports what it cannot inspect.
#[test]
fn without_programs_it_says_what_it_cannot_see() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("foreign")?;
    restore(&bed.node, &dir, "legacy")?;
    let config = ConfigVolume::new("")?;
    let options = AgentOptions::new(NETDP)
        .config(config.path())
        .arg("--tool-dir=/nonexistent");
    let agent = Agent::start(&bed.node, options)?;
    wait_for(SOON, "what is not looked at", || {
        agent.netdp(&["status"]).is_ok_and(|status| {
            [
                "iptables-nft-save is not installed",
                "iptables-legacy-save is not installed",
                "the program nft is not installed",
            ]
            .iter()
            .all(|words| status.contains(words))
        })
    })
    .map_err(|err| err.context(agent.netdp(&["status"]).unwrap_or_default()))
}

/// Rules that drop packets to pods that do not come from their bridge, one per kind of table: the
/// commands, and the report.
const DROPS: [(&str, &str); 5] = [
    (
        "iptables-nft --wait 60 -t raw -A PREROUTING -d 172.16.0.0/24 ! -i cni0 -j DROP",
        "an unknown program nft 1 true",
    ),
    (
        "iptables-legacy --wait 60 -t raw -A PREROUTING -d 172.16.0.0/24 ! -i cni0 -j DROP",
        "an unknown program legacy 1 true",
    ),
    (
        "iptables-nft --wait 60 -t mangle -A PREROUTING -d 172.16.0.0/24 -i eth+ -j DROP",
        "an unknown program nft 1 true",
    ),
    (
        "nft add table inet own; add chain inet own early { type filter hook prerouting priority -300; }; \
         add rule inet own early iifname != cni0 ip daddr 172.16.0.0/24 drop",
        "an unknown program nftables 1 true",
    ),
    (
        "nft add table netdev own; add chain netdev own in { type filter hook ingress device eth0 priority 0; }; \
         add rule netdev own in ip daddr { 172.16.0.2, 172.16.0.3 } counter drop",
        "an unknown program nftables 1 true",
    ),
];

/// Rules that do not match replies, or that also dropped them with netfilter.
const DROP_OTHERS: [&str; 7] = [
    "iptables-nft --wait 60 -t raw -A PREROUTING -d 172.16.0.0/24 -i cni0 -j DROP",
    "iptables-nft --wait 60 -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    "iptables-nft --wait 60 -t mangle -A PREROUTING -d 172.16.0.0/24 -m conntrack --ctstate INVALID -j DROP",
    "iptables-nft --wait 60 -t raw -A PREROUTING -m rpfilter --invert -j DROP",
    "iptables-nft --wait 60 -t raw -A PREROUTING -s 10.0.0.0/8 -d 172.16.0.0/24 -j DROP",
    "nft add table inet late; add chain inet late in { type filter hook prerouting priority 0; }; \
     add rule inet late in iifname != cni0 ip daddr 172.16.0.0/24 ct state new drop",
    "nft add table netdev pods; add chain netdev pods in { type filter hook ingress device cni0 priority 0; }; \
     add rule netdev pods in ip daddr 172.16.0.0/24 ip saddr 192.0.2.1 drop",
];

fn make(node: &Netns, rule: &str) -> Result<()> {
    match rule.strip_prefix("nft ") {
        Some(rules) => node.run(&["nft", rules])?,
        None => node.run(&rule.split(' ').collect::<Vec<_>>())?,
    };
    Ok(())
}

/// With netfilter, replies have the node's address where such rules match.
#[test]
fn rules_that_drop_answers_to_pods_are_told_of() -> Result<()> {
    for (rule, told) in DROPS {
        let bed = Bed::dual_stack()?;
        let far = bed.server(0, &["10.2.0.1/24"])?;
        let _echo = Echo::start(&far)?;
        let to = SocketAddr::new(far.v4()?.into(), ECHO);
        make(&bed.node, rule)?;
        nft(
            &bed.node,
            "add table ip masq; add chain ip masq out { type nat hook postrouting priority 100; }; \
             add rule ip masq out oifname eth0 masquerade",
        )?;
        let own = IpAddr::from(bed.uplinks[0].v4()?);
        ensure!(tcp_source(&bed.pods[0], to)? == own, "netfilter, {rule}");
        nft(&bed.node, "delete table ip masq")?;
        let config = ConfigVolume::new(POLICY_V4)?;
        let options = AgentOptions::new(NETDP)
            .config(config.path())
            .arg("--pod-cidr=172.16.0.0/24");
        let agent = Agent::start(&bed.node, options)?;
        let node = Node {
            agent,
            bed,
            dir: WorkDir::new("foreign")?,
            _config: config,
        };
        assert_eq!(node.found(1)?, [told], "{rule}");
        let text = node.agent.netdp(&["status"])?;
        let words = "conflict   a rule of an unknown program drops replies to pods";
        ensure!(text.contains(words), "{text}");
        wait_log(
            &node.agent,
            "conflict: a rule of an unknown program drops replies",
        )?;
    }
    Ok(())
}

#[test]
fn rules_that_drop_something_else_are_no_conflict() -> Result<()> {
    let node = Node::start("ebpf", |node, _| {
        DROP_OTHERS.iter().try_for_each(|rule| make(node, rule))
    })?;
    // Later rules are detected as well.
    make(&node.bed.node, DROPS[0].0)?;
    assert_eq!(node.found(1)?, [DROPS[0].1]);
    // Replies to flows that another rule translates are not affected.
    let own =
        "iptables-nft --wait 60 -t nat -A POSTROUTING -s 172.16.0.0/16 ! -o docker0 -j MASQUERADE";
    make(&node.bed.node, own)?;
    wait_for(SOON, "the drop to hurt nobody", || {
        let found = node.foreign().unwrap_or_default();
        let rules = found["rules"].as_array().cloned().unwrap_or_default();
        rules.len() == 1 && rules[0]["drops"] == false
    })
    .map_err(|err| err.context(format!("{:?}", node.foreign())))
}

/// The relevance of a rule about an interface depends on whether it is an uplink.
#[test]
fn rules_are_judged_again_when_the_uplinks_change() -> Result<()> {
    let node = Node::start("ebpf", |node, _| {
        node.ip("link add up9 type veth peer name up9p")?;
        node.ip("link set up9 addrgenmode none")?;
        node.ip("link set up9p up")?;
        node.ip("link set up9 up")?;
        node.ip("addr add 10.9.0.1/24 dev up9")?;
        nft(
            node,
            "add table ip some; add chain ip some out { type nat hook postrouting priority 100; }; \
             add rule ip some out oifname up9 masquerade",
        )
    })?;
    assert_eq!(node.found(1)?, ["an unknown program nftables 1 false"]);
    // No address and no rule changes.
    node.bed
        .node
        .ip("route add 203.0.113.0/24 via 10.9.0.2 dev up9")?;
    wait_some(SOON, "the rule to be a conflict", || {
        let found = node.found(1).ok()?;
        (found == ["an unknown program nftables 1 true"]).then_some(())
    })
    .map_err(|err| err.context(format!("{:?}", node.foreign())))
}
