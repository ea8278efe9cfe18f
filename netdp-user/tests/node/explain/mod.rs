//! `netdp explain` finds the cause of what operators report, on nodes that really have it; what it
//! says to do is done, and the symptom is gone. docs/troubleshoot.md shows the transcripts.

mod causes;
mod transcript;

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, SOON, options};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// A node with a policy, pods, and hosts beyond its uplink.
struct World {
    agent: Agent,
    config: ConfigVolume,
    /// In the node's network, with a route to pods.
    near: Host,
    /// Behind a router, without a route to pods.
    far: Host,
    bed: Bed,
}

impl World {
    fn new(config: &str, arguments: &[&str]) -> Result<Self> {
        Self::on(Bed::dual_stack()?, config, arguments)
    }

    fn on(bed: Bed, config: &str, arguments: &[&str]) -> Result<Self> {
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.17/24", "fd00:2::17/64"])?;
        let config = ConfigVolume::new(config)?;
        let agent = Agent::start(&bed.node, options(&config, arguments))?;
        Ok(Self {
            agent,
            config,
            near,
            far,
            bed,
        })
    }

    fn pod(&self) -> &Host {
        &self.bed.pods[0]
    }

    /// Runs `netdp explain`; returns its standard output.
    fn explain(&self, arguments: &[&str]) -> Result<String> {
        self.agent.netdp(&[&["explain"], arguments].concat())
    }

    /// Returns the answers as JSON.
    fn answers(&self, arguments: &[&str]) -> Result<Value> {
        let all: Value =
            serde_json::from_str(&self.explain(&[arguments, &["-o", "json"]].concat())?)?;
        Ok(all["answers"].clone())
    }

    /// Returns the exit status of `netdp explain`.
    fn status(&self, arguments: &[&str]) -> Result<i32> {
        let mut command = self.agent.command(&[&["explain"], arguments].concat());
        command.output()?.status.code().context("killed")
    }

    /// Waits until the destination sees this source of the pod's TCP connections.
    fn wait_seen(&self, to: SocketAddr, source: &str) -> Result<()> {
        let source: IpAddr = source.parse()?;
        let mut seen = None;
        wait_for(SOON, &format!("{to} to see {source}"), || {
            seen = tcp_source(self.pod(), to).ok();
            seen == Some(source)
        })
        .with_context(|| format!("it saw {seen:?}"))
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

fn at(host: &Host, v4: bool) -> Result<SocketAddr> {
    let address = if v4 {
        host.v4()?.into()
    } else {
        host.v6()?.into()
    };
    Ok(SocketAddr::new(address, ECHO))
}

#[test]
fn it_works_without_an_agent_and_says_where_it_looked_for_maps() -> Result<()> {
    let mut world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    world.agent.kill9()?;
    let text = world.explain(&["10.2.0.17:443"])?;
    ensure!(text.contains("no agent runs"), "{text}");
    ensure!(
        text.starts_with("10.2.0.17:443 sees 10.1.0.10, by eth0: masqueraded"),
        "{text}"
    );
    let mut command = std::process::Command::new(NETDP);
    command.args(["explain", "10.2.0.17", "--bpffs", "/nowhere/netdp"]);
    let output = command.output()?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    ensure!(told.contains("/nowhere/netdp"), "{told}");
    Ok(())
}

/// The shape of the JSON is that of docs/json.md.
#[test]
fn the_json_has_the_documented_fields() -> Result<()> {
    let world = World::new(
        "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.2.0.0/24]\n",
        &[],
    )?;
    let text = world.explain(&["--from", "172.16.0.2:44216", "10.2.0.17:443", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    ensure!(all["schema"] == 1 && all["agent_running"] == true, "{text}");
    let answer = &all["answers"][0];
    let of = |key: &str| answer[key].to_string();
    for (key, value) in [
        ("outcome", "\"masqueraded\""),
        ("is_certain", "true"),
        ("codes", "[\"NDP201\"]"),
        ("from", "\"172.16.0.2:44216\""),
        ("any_pod", "false"),
        ("came_by", "\"cni0\""),
        ("to", "\"10.2.0.17:443\""),
        ("protocol", "\"tcp\""),
        ("seen_as", "\"10.1.0.10\""),
        ("seen_port", "44216"),
        ("leaves_by", "\"eth0\""),
        (
            "remedies",
            "[\"to have it see the pod: add \\\"10.2.0.17/32\\\" to nonMasqueradeCIDRs\"]",
        ),
    ] {
        ensure!(of(key) == value, "{key}: {} in {text}", of(key));
    }
    let steps = answer["steps"].as_array().context("steps")?;
    let names: Vec<_> = steps
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    let all_steps = [
        "route",
        "netfilter",
        "mapping",
        "policy",
        "source",
        "reply",
        "address",
        "port",
    ];
    ensure!(names == all_steps, "{names:?}");
    let policy = &steps[3];
    ensure!(policy["details"][0]["label"] == "masked", "{policy}");
    // A second address of the uplink.
    world.bed.node.ip("address add 10.5.0.1/16 dev eth0")?;
    let answers = world.answers(&["--from", "172.16.0.2:44216", "10.2.0.17:443"])?;
    ensure!(
        answers[0]["codes"].to_string().contains("NDP304"),
        "{answers}"
    );
    let others = answers.to_string();
    ensure!(
        others.contains(r#""what":"10.5.0.1","why":"not the first""#),
        "{answers}"
    );
    Ok(())
}

/// Whether the rule applies depends on the packet's mark.
#[test]
fn a_destination_that_a_rule_may_change_is_not_taken_for_certain() -> Result<()> {
    let world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16, 10.2.0.0/16]\n", &[])?;
    let rule = "PREROUTING -p tcp -m mark --mark 0x1 -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.20:7";
    let node = &world.bed.node;
    node.run(
        &[
            &["iptables-nft", "--wait", "60", "-t", "nat", "-A"],
            &*rule.split(' ').collect::<Vec<_>>(),
        ]
        .concat(),
    )?;
    let asked = ["--from", "172.16.0.2", "10.2.0.17:8080"];
    let text = world.explain(&asked)?;
    for (line, expected) in text.lines().zip([
        "may be redirected: 10.2.0.17:8080 → 10.1.0.20:7 sees 10.1.0.10, by eth0: masqueraded",
        "unless it is redirected: 10.2.0.17:8080 sees the pod's 172.16.0.2, by eth0: bypassed",
        "10.2.0.17:8080 is a service: an unknown program may replace it before netdp sees a packet",
    ]) {
        ensure!(line.starts_with(expected), "{expected:?}: {text}");
    }
    ensure!(text.contains("--mark 0x1"), "{text}");
    for answer in world.answers(&asked)?.as_array().context("answers")? {
        ensure!(answer["is_certain"] == false, "{answer:#}");
    }
    for expected in ["node", "pod"] {
        let status = world.status(&[&asked[..], &["--expect", expected]].concat())?;
        ensure!(status == 2, "{expected}: {status}");
    }
    // Another port is not the rule's.
    let status = world.status(&["--from", "172.16.0.2", "10.2.0.17:80", "--expect", "pod"])?;
    ensure!(status == 0, "{status}");
    Ok(())
}

/// Rules in the form of kube-proxy's nftables mode.
const NFT: &str = "\
table ip kube-proxy {
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.12 . tcp . 80 : goto service-AAAAAAAA-shop/db/tcp/sql }
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
  chain service-AAAAAAAA-shop/db/tcp/sql {
    numgen random mod 2 vmap { 0 : goto endpoint-A, 1 : goto endpoint-B }
  }
  chain endpoint-A { meta l4proto tcp dnat to 10.1.0.20:7; }
  chain endpoint-B { meta l4proto tcp dnat to 10.2.0.17:7; }
}
";

#[test]
fn endpoints_are_found_in_rules_of_nftables() -> Result<()> {
    let world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16]\n", &[])?;
    let _echoes = [Echo::start(&world.near)?, Echo::start(&world.far)?];
    let mut load = world.bed.node.command("nft");
    testbed::output(load.arg(NFT))?;
    let told = world.explain(&["--from", "172.16.0.2", "10.96.0.12:80"])?;
    for (line, expected) in told.lines().zip([
        "10.96.0.12:80 → 10.1.0.20:7 sees the pod's 172.16.0.2, by eth0: bypassed",
        "10.96.0.12:80 → 10.2.0.17:7 sees 10.1.0.10, by eth0: masqueraded",
        "10.96.0.12:80 is shop/db:sql: kube-proxy replaces it before netdp sees a packet",
    ]) {
        ensure!(line.starts_with(expected), "{expected:?}: {told}");
    }
    // So it is.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.insert(tcp_source(world.pod(), "10.96.0.12:80".parse()?)?.to_string());
    }
    ensure!(seen.len() == 2 && seen.contains("172.16.0.2"), "{seen:?}");
    ensure!(seen.contains("10.1.0.10"), "{seen:?}");
    Ok(())
}
