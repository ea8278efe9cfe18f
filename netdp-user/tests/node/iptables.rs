//! `--mode iptables`: netdp writes the chains of ip-masq-agent and maintains them.

use crate::common::{NETDP, SOON};
use anyhow::{Result, ensure};
use std::process::{Command, Output};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Netns, wait_for};

const RETURN: &str =
    "-m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN";
const MASQUERADE: &str = "-m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\"";
const JUMP: &str = "-A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain\" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT";

const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// Returns the output of a program on the node, which must succeed. iptables-legacy has one lock
/// for the whole machine, which agents and other tests use.
fn on(node: &Netns, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = node.command(program);
    let Output {
        status,
        stdout,
        stderr,
    } = command.args(["--wait", "60"]).args(arguments).output()?;
    ensure!(
        status.success(),
        "{program} {arguments:?}: {status}: {}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(String::from_utf8(stdout)?)
}

/// A node with one iptables backend, and an agent on it.
struct Node {
    bed: Bed,
    config: ConfigVolume,
    agent: Agent,
    backend: &'static str,
}

impl Node {
    fn start(backend: &'static str, config: &str, flags: &[&str]) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        // The kubelet's chains, by which the backend is detected.
        for family in ["iptables", "ip6tables"] {
            on(
                &bed.node,
                &format!("{family}-{backend}"),
                &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
            )?;
        }
        let config = ConfigVolume::new(config)?;
        let mut options = AgentOptions::new(NETDP).config(config.path());
        for flag in ["--mode=iptables"].iter().chain(flags) {
            options = options.arg(*flag);
        }
        let agent = Agent::start(&bed.node, options)?;
        Ok(Self {
            bed,
            config,
            agent,
            backend,
        })
    }

    /// Returns the chain's rules without `-A IP-MASQ-AGENT`.
    fn rules(&self, family: &str) -> Result<Vec<String>> {
        let all = self.listing(family)?;
        Ok(all
            .lines()
            .filter_map(|line| line.strip_prefix("-A IP-MASQ-AGENT "))
            .map(Into::into)
            .collect())
    }

    fn listing(&self, family: &str) -> Result<String> {
        let program = format!("{family}-{}", self.backend);
        on(&self.bed.node, &program, &["-t", "nat", "-S"])
    }

    fn add(&self, rule: &[&str]) -> Result<()> {
        let program = format!("iptables-{}", self.backend);
        on(&self.bed.node, &program, rule).map(drop)
    }
}

fn returns(prefixes: &[&str]) -> Vec<String> {
    prefixes
        .iter()
        .map(|p| format!("-d {p} {RETURN}"))
        .collect()
}

fn with_last(mut rules: Vec<String>) -> Vec<String> {
    rules.push(format!("{MASQUERADE} -j MASQUERADE --random-fully"));
    rules
}

#[test]
fn the_rules_are_ip_masq_agents() -> Result<()> {
    for backend in BACKENDS {
        let config = "nonMasqueradeCIDRs: [192.168.0.0/16, 10.0.0.0/8, 'fc00::/7']\n";
        let node = Node::start(backend, config, &["--enable-ipv6"])?;
        let v4 = ["169.254.0.0/16", "192.168.0.0/16", "10.0.0.0/8"];
        assert_eq!(
            node.rules("iptables")?,
            with_last(returns(&v4)),
            "{backend}"
        );
        let v6 = ["fe80::/10", "fc00::/7"];
        assert_eq!(
            node.rules("ip6tables")?,
            with_last(returns(&v6)),
            "{backend}"
        );
        for family in ["iptables", "ip6tables"] {
            let listing = node.listing(family)?;
            let jumps = listing.lines().filter(|line| *line == JUMP);
            assert_eq!(jumps.count(), 1, "{backend}: {listing}");
        }
    }
    Ok(())
}

#[test]
fn ports_and_their_chances_are_ip_masq_agents() -> Result<()> {
    for backend in BACKENDS {
        let flags = ["--to-ports=1024-29999,32768-65535", "--random-fully=false"];
        let node = Node::start(backend, "nonMasqueradeCIDRs: []\n", &flags)?;
        let mut rules = returns(&["169.254.0.0/16"]);
        for protocol in ["tcp", "udp", "sctp"] {
            let head = format!("-p {protocol} {MASQUERADE}");
            rules.push(format!(
                "{head} -m statistic --mode random --probability 0.46929256292 -j MASQUERADE --to-ports 1024-29999"
            ));
            rules.push(format!("{head} -j MASQUERADE --to-ports 32768-65535"));
        }
        rules.push(format!("{MASQUERADE} -j MASQUERADE"));
        assert_eq!(node.rules("iptables")?, rules, "{backend}");
        assert!(node.rules("ip6tables")?.is_empty(), "IPv6 is not asked for");
    }
    Ok(())
}

/// Only differences are written, so that counters and third-party rules stay.
#[test]
fn a_change_is_written_and_what_is_right_is_left_alone() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend, "resyncInterval: 200ms\n", &[])?;
        let foreign = [
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-s",
            "172.17.0.0/16",
            "-j",
            "MASQUERADE",
        ];
        node.add(&foreign)?;
        // One rule too many, and no jump.
        node.add(&["-t", "nat", "-F", "POSTROUTING"])?;
        node.add(&foreign)?;
        node.add(&[
            "-t",
            "nat",
            "-I",
            "IP-MASQ-AGENT",
            "-d",
            "1.2.3.4",
            "-j",
            "RETURN",
        ])?;
        wait_for(SOON, "the chain to be mended", || {
            let listing = node.listing("iptables").unwrap_or_default();
            listing.contains(JUMP) && !listing.contains("1.2.3.4")
        })?;
        node.config
            .write("resyncInterval: 200ms\nnonMasqueradeCIDRs: [10.9.0.0/16]\n")?;
        wait_for(SOON, "the new configuration", || {
            let rules = node.rules("iptables").unwrap_or_default();
            rules == with_last(returns(&["169.254.0.0/16", "10.9.0.0/16"]))
        })?;
        assert!(node.listing("iptables")?.contains("172.17.0.0/16"));
    }
    Ok(())
}

/// If the kernel sends notifications, the chain is restored before the next resync.
#[test]
fn the_chain_is_mended_at_once() -> Result<()> {
    let node = Node::start("nft", "resyncInterval: 1h\n", &[])?;
    node.add(&["-t", "nat", "-F", "POSTROUTING"])?;
    wait_for(SOON, "the jump", || {
        node.listing("iptables").is_ok_and(|all| all.contains(JUMP))
    })?;
    node.add(&["-t", "nat", "-D", "IP-MASQ-AGENT", "1"])?;
    wait_for(SOON, "the first rule", || {
        let rules = node.rules("iptables").unwrap_or_default();
        rules
            .first()
            .is_some_and(|rule| rule.contains("169.254.0.0/16"))
    })?;
    // Logged after it is written.
    crate::common::wait_log(
        &node.agent,
        "chain IP-MASQ-AGENT or the jump to it was changed",
    )
}

/// An unchanged rule is not rewritten, so its counters continue.
#[test]
fn counters_are_kept_and_shown() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend, "resyncInterval: 200ms\n", &[])?;
        let pod = &node.bed.pods[0];
        // There is no answer, which the rule does not need.
        let _ = pod
            .ns
            .command("ping")
            .args(["-c1", "-W1", "10.1.0.1"])
            .output()?;
        let rule = |family: usize| -> Result<serde_json::Value> {
            let status = node.agent.netdp(&["status", "-o", "json"])?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            Ok(status["rules"][family]["rules"][1].clone())
        };
        let before = rule(0)?;
        ensure!(
            before["text"].to_string().contains("-d 10.0.0.0/8"),
            "{before}"
        );
        assert_eq!(before["counters"][0], 1, "{before}");
        // The configuration has new warnings, the rules are unchanged.
        node.config.write("resyncInterval: 200ms\nnoSuchKey: 1\n")?;
        wait_for(SOON, "another look at everything", || {
            node.agent.log().contains("noSuchKey")
        })?;
        assert_eq!(rule(0)?, before, "{backend}");
        ensure!(
            node.agent
                .netdp(&["status"])?
                .contains("-d 10.0.0.0/8 -j RETURN")
        );
    }
    Ok(())
}

#[test]
fn status_tells_and_detach_removes() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend, "", &[])?;
        let status = node.agent.netdp(&["status"])?;
        for word in ["iptables", "IP-MASQ-AGENT", backend, "in force"] {
            ensure!(status.contains(word), "no {word} in: {status}");
        }
        node.agent.stop()?;
        assert!(
            node.listing("iptables")?.contains(JUMP),
            "it outlives the agent"
        );
        node.agent.netdp(&["detach"])?;
        let listing = node.listing("iptables")?;
        ensure!(!listing.contains("IP-MASQ-AGENT"), "{listing}");
    }
    Ok(())
}

/// 0.1.0 wrote what is to be removed into its report, and had no `memory.json`.
#[test]
fn detach_removes_what_0_1_0_left() -> Result<()> {
    let mut node = Node::start("nft", "", &[])?;
    node.agent.stop()?;
    std::fs::remove_file(node.agent.state_dir().join("memory.json"))?;
    ensure!(node.listing("iptables")?.contains(JUMP));
    node.agent.netdp(&["detach"])?;
    let listing = node.listing("iptables")?;
    ensure!(!listing.contains("IP-MASQ-AGENT"), "{listing}");
    Ok(())
}

#[test]
fn a_chain_name_that_is_none_is_refused() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new("")?;
    let mut command: Command = bed.node.command(NETDP);
    command
        .args(["run", "--mode=iptables", "--masq-chain=A B", "--config"])
        .arg(config.path());
    let told = crate::common::refused(command)?;
    ensure!(told.contains("--masq-chain \"A B\""), "{told}");
    Ok(())
}
