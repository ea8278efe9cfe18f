//! `--mode shadow`: netdp's decisions compared with netfilter's.

use crate::common::clients::{Tcp, Udp, any, ping, tcp_source};
use crate::common::{ECHO, Echo, NETDP, POLICY, SOON, echoes, start_agent, tcx_programs};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// Number of flows that exceeds every event buffer.
const FLOOD: u16 = 40_000;

/// A node with ip-masq-agent's chains, and netdp in shadow mode.
struct World {
    agent: Agent,
    bed: Bed,
    near: Host,
    far: Host,
    _servers: Vec<Echo>,
    _config: ConfigVolume,
}

impl World {
    /// Starts a world whose chains implement `POLICY`; netdp's policy is `config`.
    fn start(config: &str) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let servers = [&near, &far, &bed.pods[1]].map(Echo::start);
        let flags = ["--mode=iptables", "--enable-ipv6"];
        start_agent(&bed.node, &ConfigVolume::new(POLICY)?, &flags)?.stop()?;
        let volume = ConfigVolume::new(config)?;
        let agent = start_agent(&bed.node, &volume, &["--mode=shadow", "--enable-ipv6"])?;
        Ok(Self {
            _config: volume,
            agent,
            near,
            far,
            bed,
            _servers: servers.into_iter().collect::<Result<_>>()?,
        })
    }

    fn report(&self) -> Result<(Option<i32>, Value)> {
        let mut command = self.agent.command(&["shadow", "report", "-o", "json"]);
        let output = command.output()?;
        let value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok((output.status.code(), value))
    }

    /// Returns the report once it contains this many flows.
    fn wait_flows(&self, flows: u64) -> Result<(Option<i32>, Value)> {
        let mut last = None;
        wait_for(SOON, &format!("{flows} flows to be compared"), || {
            last = self.report().ok();
            last.as_ref()
                .is_some_and(|(_, report)| report["flows"].as_u64() >= Some(flows))
        })
        .with_context(|| format!("{last:?}; the agent wrote:\n{}", self.agent.log()))?;
        last.context("no report")
    }

    fn iptables(&self, family: &str, rules: &str) -> Result<()> {
        for rule in rules.lines() {
            let mut words = vec![family, "-t", "nat"];
            words.extend(rule.split_whitespace());
            self.bed.node.run(&words)?;
        }
        Ok(())
    }
}

/// Returns services as kube-proxy writes them: one with a distant endpoint, one masqueraded by a
/// mark.
fn services(node: &str, vip: &str, far: &str, mate: &str) -> String {
    format!(
        "-N KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -I POSTROUTING -j KUBE-POSTROUTING\n\
         -A PREROUTING -d {vip} -p tcp --dport 80 -j DNAT --to-destination {far}\n\
         -A PREROUTING -d {node} -p tcp --dport 30080 -j MARK --set-xmark 0x4000/0x4000\n\
         -A PREROUTING -d {node} -p tcp --dport 30080 -j DNAT --to-destination {mate}"
    )
}

#[test]
fn a_mixed_workload_agrees() -> Result<()> {
    let world = World::start(POLICY)?;
    let mate = world.bed.neighbour(0, &["10.1.0.21/16", "fd00:1::21/64"])?;
    let _mate = Echo::start(&mate)?;
    world.iptables(
        "iptables-nft",
        &services("10.1.0.10", "10.96.0.1", "10.2.0.1:7", "10.1.0.21:7"),
    )?;
    world.iptables(
        "ip6tables-nft",
        &services(
            "fd00:1::10",
            "fd00:96::1",
            "[fd00:2::1]:7",
            "[fd00:1::21]:7",
        ),
    )?;
    let (pod, peer, node) = (&world.bed.pods[0], &world.bed.pods[1], &world.bed.node);
    let mut flows = 0;
    for (server, to) in [&world.far, &world.near]
        .into_iter()
        .flat_map(|host| echoes(host).into_iter().map(move |to| (host, to)))
    {
        Tcp::connect(pod, any(to), to)?.ask()?;
        Udp::connect(pod, any(to), to)?.ask()?;
        ping(pod, to.ip())?;
        // The node's own connection.
        Tcp::connect(node, any(to), to)?.ask()?;
        flows += 4;
        ensure!(!server.addresses.is_empty());
    }
    for to in echoes(peer) {
        // An inbound connection, and a probe.
        Tcp::connect(&world.near, any(to), to)?.ask()?;
        Udp::connect(&world.near, any(to), to)?.ask()?;
        Tcp::connect(node, any(to), to)?.ask()?;
        flows += 3;
    }
    let services: [(&Host, &str); 4] = [
        (pod, "10.96.0.1:80"),
        (pod, "[fd00:96::1]:80"),
        (&world.near, "10.1.0.10:30080"),
        (&world.near, "[fd00:1::10]:30080"),
    ];
    for (client, service) in services {
        let to: SocketAddr = service.parse()?;
        let seen = tcp_source(client, to)?;
        ensure!(
            world.bed.uplinks[0]
                .addresses
                .iter()
                .any(|a| a.addr() == seen),
            "{service} is not masqueraded: {seen}"
        );
        flows += 1;
    }
    let (code, report) = world.wait_flows(flows)?;
    assert_eq!(report["differing"], 0, "{report:#}");
    assert_eq!(report["agreeing"], report["flows"], "{report:#}");
    assert_eq!(code, Some(0));
    for how in [
        "masqueraded",
        "bypassed",
        "the node's own",
        "not by an uplink",
        "masqueraded by a third-party rule, which stays",
    ] {
        ensure!(
            report["alike"][how].as_u64() >= Some(2),
            "{how}: {report:#}"
        );
    }
    let attached = tcx_programs(node, "eth0")?;
    ensure!(attached.iter().all(Vec::is_empty), "attached: {attached:?}");
    let rules = node.run(&["iptables-nft", "-t", "nat", "-S", "POSTROUTING"])?;
    ensure!(rules.contains("-j IP-MASQ-AGENT"), "{rules}");
    let status = world.agent.netdp(&["status"])?;
    ensure!(status.contains("shadow"), "{status}");
    Ok(())
}

#[test]
fn a_difference_is_explained() -> Result<()> {
    let config = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
- 10.2.0.0/24
- fd00:172::/64
- fd00:1::/64
masqueradeCIDRs:
- 10.1.0.20/32
";
    let world = World::start(config)?;
    let pod = &world.bed.pods[0];
    let seen = |host: &Host| -> Result<IpAddr> { tcp_source(pod, (host.v4()?, ECHO).into()) };
    assert_eq!(seen(&world.far)?, world.bed.uplinks[0].v4()?);
    assert_eq!(seen(&world.near)?, pod.v4()?);
    let to = SocketAddr::new(world.far.v6()?.into(), ECHO);
    tcp_source(pod, to)?;
    let (code, report) = world.wait_flows(3)?;
    assert_eq!(code, Some(1));
    assert_eq!(report["differing"], 2, "{report:#}");
    let text = world.agent.command(&["shadow", "report"]).output()?.stdout;
    let text = String::from_utf8(text)?;
    for words in [
        "bypass: 10.2.0.0/24 (",
        "masquerade as 10.1.0.10: -A IP-MASQ-AGENT -m comment",
        "masquerade as 10.1.0.10: 10.1.0.20/32 (",
        "bypass: -A IP-MASQ-AGENT -d 10.1.0.0/16",
        "3 seen, 1 agree, 2 differ",
        "10.2.0.1:7",
    ] {
        ensure!(text.contains(words), "no {words:?} in:\n{text}");
    }
    let examples = &report["differences"][0]["examples"][0];
    assert_eq!(examples["netfilter"], "10.1.0.10");
    assert_eq!(examples["netdp"], "172.16.0.2");
    Ok(())
}

/// A script must not mistake an empty report for agreement.
#[test]
fn nothing_seen_is_not_agreement() -> Result<()> {
    let world = World::start(POLICY)?;
    let mut command = world.agent.command(&["shadow", "report"]);
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    Ok(())
}

/// Events lost to a full buffer are replaced by a dump of the conntrack table.
#[test]
fn a_flood_is_compared_whole() -> Result<()> {
    let world = World::start(POLICY)?;
    world.agent.signal(Signal::SIGSTOP)?;
    let to: IpAddr = world.far.v4()?.into();
    let socket = world.bed.pods[0].enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
    for port in 1..=FLOOD {
        socket.send_to(b"x", (to, port))?;
    }
    world.agent.signal(Signal::SIGCONT)?;
    let (code, report) = world.wait_flows(FLOOD.into())?;
    ensure!(report["overruns"].as_u64() >= Some(1), "{report:#}");
    assert_eq!(report["flows"], u64::from(FLOOD), "{report:#}");
    assert_eq!((code, &report["differing"]), (Some(0), &Value::from(0)));
    Ok(())
}

#[test]
fn a_datapath_in_force_has_no_shadow() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY)?;
    let mut agent = start_agent(&bed.node, &config, &["--enable-ipv6"])?;
    agent.stop()?;
    let mut command = bed.node.command(NETDP);
    command
        .args(["run", "--mode=shadow", "--bpffs"])
        .arg(agent.bpffs())
        .arg("--state-dir")
        .arg(agent.state_dir());
    let told = crate::common::refused(command)?;
    ensure!(told.contains("netdp detach"), "{told}");
    Ok(())
}
