//! Other people's NAT rules are seen, judged and told, in both modes and in every kind of table.

mod common;

use anyhow::{Result, ensure};
use common::{NETDP, SOON};
use serde_json::Value;
use std::fs;
use xtask::testbed::{Agent, AgentOptions, Bed, ConfigVolume, Netns, WorkDir, wait_for, wait_some};

/// As kube-proxy, a CNI plugin and Docker write them, in iptables-restore's language.
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

    /// Waits for as many rules; each as `owner kind count conflict`.
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
                "harmless: concerns only packets that carry the mark 0x4000/0x4000",
            ] {
                ensure!(text.contains(words), "{mode}: no {words:?} in\n{text}");
            }
            ensure!(
                node.agent
                    .log()
                    .contains("in conflict: NAT by a CNI plugin"),
                "{mode}: it is not in the log"
            );
        }
    }
    Ok(())
}

/// The kernel tells of nf_tables' changes: long before the next look at everything, a minute away.
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

/// As in the image without iptables: the agent works, and says what it cannot see.
#[test]
fn without_programs_it_says_what_it_cannot_see() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("foreign")?;
    restore(&bed.node, &dir, "legacy")?;
    let config = ConfigVolume::new("")?;
    let options = AgentOptions::new(NETDP)
        .config(config.path())
        .arg("--programs=/nonexistent");
    let agent = Agent::start(&bed.node, options)?;
    wait_for(SOON, "what is not looked at", || {
        agent.netdp(&["status"]).is_ok_and(|status| {
            [
                "there is no iptables-nft-save here",
                "there is no iptables-legacy-save here",
                "the program nft is not here",
            ]
            .iter()
            .all(|words| status.contains(words))
        })
    })
    .map_err(|err| err.context(agent.netdp(&["status"]).unwrap_or_default()))
}
