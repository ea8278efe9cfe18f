//! Common parts of the namespace tests: a bed with an agent, clients with a chosen source, and
//! packet captures.

pub mod clients;
pub mod clock;
pub mod links;
pub mod transfer;
pub mod verdict;
pub mod wire;

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testbed::{
    Agent, AgentOptions, Bed, ConfigVolume, EchoServer, Host, Netns, Running, UdpEchoServer,
    wait_for,
};

/// Path of the program under test.
pub const NETDP: &str = env!("CARGO_BIN_EXE_netdp");

/// Timeout for operations that take milliseconds on an idle machine: waited out only if they fail.
/// Shorter than the minute after which an agent resyncs without any notification.
pub const SOON: Duration = Duration::from_secs(40);

/// Timeout for a packet that must arrive.
pub const ANSWER: Duration = Duration::from_secs(15);

/// Port of [`Echo`], TCP and UDP.
pub const ECHO: u16 = 7;

/// Pods and the node's own network are bypassed; everything else is masqueraded.
pub const POLICY: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
- fd00:172::/64
- fd00:1::/64
";

/// Names of the programs on an uplink, ingress and egress, as the kernel stores them: it keeps 15
/// characters.
pub const OURS: [&str; 2] = ["ingress_rev_sna", "egress_snat"];

/// `POLICY` without IPv6, for agents that do not translate it.
pub const POLICY_V4: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
";

/// [`Bed::dual_stack`] with a ready agent.
#[derive(Debug)]
pub struct World {
    pub agent: Agent,
    pub config: ConfigVolume,
    /// In the node's network, with a route to pods; `POLICY` bypasses it.
    pub near: Host,
    /// Behind a router, without a route to pods.
    pub far: Host,
    pub bed: Bed,
}

impl World {
    /// Starts a world with [`POLICY`] and IPv6.
    pub fn start() -> Result<Self> {
        Self::with(POLICY, &["--enable-ipv6"])
    }

    /// Starts a world with a configuration and arguments of `netdp run`.
    pub fn with(config: &str, arguments: &[&str]) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let config = ConfigVolume::new(config)?;
        let agent = start_agent(&bed.node, &config, arguments)?;
        Ok(Self {
            agent,
            config,
            near,
            far,
            bed,
        })
    }

    /// Returns the node's address of the family of `like`.
    pub fn node_address(&self, like: IpAddr) -> Result<IpAddr> {
        same_family(&self.bed.uplinks[0].addresses, like)
    }

    pub fn pod(&self, index: usize) -> &Host {
        &self.bed.pods[index]
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

/// Returns the options of an agent that reads a volume.
pub fn options(config: &ConfigVolume, arguments: &[&str]) -> AgentOptions {
    let options = AgentOptions::new(NETDP).config(config.path());
    arguments.iter().fold(options, |options, argument| {
        options.arg((*argument).to_owned())
    })
}

/// Starts an agent and waits until it is ready.
pub fn start_agent(node: &Netns, config: &ConfigVolume, arguments: &[&str]) -> Result<Agent> {
    Agent::start(node, options(config, arguments))
}

/// TCP and UDP echo servers on [`ECHO`] of every address of a host.
#[derive(Debug)]
pub struct Echo {
    _tcp: Vec<EchoServer>,
    _udp: Vec<UdpEchoServer>,
}

impl Echo {
    pub fn start(host: &Host) -> Result<Self> {
        let each = host.addresses.iter().map(|net| (net.addr(), ECHO));
        Ok(Self {
            _tcp: each
                .clone()
                .map(|at| EchoServer::start(host, at))
                .collect::<Result<_>>()?,
            _udp: each
                .map(|at| UdpEchoServer::start(host, at))
                .collect::<Result<_>>()?,
        })
    }
}

/// Returns the endpoints of [`Echo`] on each address of a host.
pub fn echoes(host: &Host) -> Vec<SocketAddr> {
    host.addresses
        .iter()
        .map(|net| SocketAddr::new(net.addr(), ECHO))
        .collect()
}

/// Returns the address among `addresses` with the family of `like`.
pub fn same_family(addresses: &[IpNet], like: IpAddr) -> Result<IpAddr> {
    addresses
        .iter()
        .map(IpNet::addr)
        .find(|address| address.is_ipv4() == like.is_ipv4())
        .with_context(|| format!("no address of the family of {like}"))
}

/// Returns the output of `netdp status -o json`.
pub fn status(agent: &Agent) -> Result<Value> {
    Ok(serde_json::from_str(
        &agent.netdp(&["status", "-o", "json"])?,
    )?)
}

/// Returns the output of `netdp flows -o json`.
pub fn flows(agent: &Agent) -> Result<Vec<Value>> {
    let listed: Value = serde_json::from_str(&agent.netdp(&["flows", "-o", "json"])?)?;
    Ok(listed["flows"].as_array().context("no flows")?.clone())
}

/// Returns the number of live mappings.
pub fn mappings(agent: &Agent) -> Result<u64> {
    number(&status(agent)?["mappings"])
}

/// Returns a packet counter by name, for example `egress_masqueraded`.
pub fn packets(agent: &Agent, name: &str) -> Result<u64> {
    number(&status(agent)?["packets"][name]).with_context(|| format!("the counter {name}"))
}

/// Returns a drop counter by name, for example `unsupported_protocol`.
pub fn drops(agent: &Agent, name: &str) -> Result<u64> {
    number(&status(agent)?["drops"][name]).with_context(|| format!("the drop counter {name}"))
}

/// Returns a JSON value as an unsigned number.
pub fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("{value} is not a number"))
}

/// Waits until the agent's log contains `words`.
pub fn wait_log(agent: &Agent, words: &str) -> Result<()> {
    wait_for(SOON, &format!("the agent to say {words:?}"), || {
        agent.log().contains(words)
    })
    .with_context(|| format!("the agent wrote:\n{}", agent.log()))
}

/// Loads nft rules, separated by semicolons, in a namespace.
pub fn nft(ns: &Netns, rules: &str) -> Result<()> {
    ns.run(&["nft", rules])?;
    Ok(())
}

/// Returns the names of the programs on a device's TCX hooks in their order: ingress, egress.
pub fn tcx_programs(ns: &Netns, device: &str) -> Result<[Vec<String>; 2]> {
    let query = |hook| -> Result<Vec<String>> {
        let (_, programs) = ns
            .enter(|| SchedClassifier::query_tcx(device, hook))?
            .with_context(|| format!("asking for the TCX programs of {device}"))?;
        let name =
            |info: &aya::programs::ProgramInfo| info.name_as_str().unwrap_or_default().to_owned();
        Ok(programs.iter().map(name).collect())
    };
    Ok([query(TcAttachType::Ingress)?, query(TcAttachType::Egress)?])
}

/// Waits until the hooks have these programs. The kernel detaches a program when the pinned object
/// is freed, slightly after the pin is removed.
pub fn wait_tcx(ns: &Netns, device: &str, wanted: &[&[&str]; 2]) -> Result<()> {
    let mut seen = None;
    wait_for(SOON, &format!("{wanted:?} on {device}"), || {
        seen = tcx_programs(ns, device).ok();
        let same = |seen: &[Vec<String>; 2]| seen[0] == wanted[0] && seen[1] == wanted[1];
        seen.as_ref().is_some_and(same)
    })
    .with_context(|| format!("there are {seen:?}"))
}

/// Returns the filters of a device's clsact qdisc as `tc` prints them: ingress, egress.
pub fn filters(ns: &Netns, device: &str) -> Result<[String; 2]> {
    let show = |hook| ns.run(&["tc", "-s", "filter", "show", "dev", device, hook]);
    Ok([show("ingress")?, show("egress")?])
}

/// Reports whether the path is a mount point.
pub fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let point = |line: &str| line.split(' ').nth(1).map(str::to_owned);
    Ok(mounts
        .lines()
        .filter_map(point)
        .any(|at| Path::new(&at) == path))
}

/// Runs a command that must fail soon and returns its standard error.
pub fn refused(command: Command) -> Result<String> {
    let mut running = Running::start(command)?;
    let status = running.wait(SOON)?;
    let told = running.stderr();
    // Excludes success and death by a signal.
    anyhow::ensure!(matches!(status.code(), Some(1..)), "{status}: {told}");
    Ok(told)
}
