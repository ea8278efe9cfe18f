//! A node under load whose masquerading moves from netfilter to eBPF and back, with every
//! connection, every leak and every double translation counted.

mod load;
mod tally;

pub use load::Load;
pub use tally::{Kind, Outcome, Tally};

use crate::{
    Agent, AgentOptions, Bed, ConfigVolume, EchoServer, Host, Leaks, UdpEchoServer, wait_for,
};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// The chain that netdp takes over.
const CHAIN: &str = "IP-MASQ-AGENT";

/// Pods and the node's own network are bypassed, everything else is masqueraded.
const POLICY: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
- fd00:172::/64
- fd00:1::/64
";

/// Timeout for either side to remove its chains or programs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that shadow mode must compare before its report is used.
const ENOUGH: u64 = 200;

/// Port of the echo servers.
const ECHO: u16 = 7;

/// The node, its load, and the current translator.
#[derive(Debug)]
pub struct Migration {
    load: Load,
    agent: Agent,
    mode: &'static str,
    bed: Bed,
    backend: &'static str,
    leaks: Leaks,
    twice: usize,
    changes: usize,
    _servers: (Vec<EchoServer>, Vec<UdpEchoServer>),
    _config: ConfigVolume,
    _far: Host,
}

impl Migration {
    /// Sets up a node with the chains of ip-masq-agent, made with `backend` (`nft` or `legacy`),
    /// and load that they masquerade.
    pub fn start(netdp: &Path, backend: &'static str) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        bed.kubelet_chain(backend, "KUBE-IPTABLES-HINT")?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let targets: Vec<_> = far
            .addresses
            .iter()
            .map(|net| SocketAddr::new(net.addr(), ECHO))
            .collect();
        let tcp = targets.iter().map(|to| EchoServer::start(&far, *to));
        let udp = targets.iter().map(|to| UdpEchoServer::start(&far, *to));
        let servers = (tcp.collect::<Result<_>>()?, udp.collect::<Result<_>>()?);
        let leaks = Leaks::watch(&bed, &targets, None)?;
        let config = ConfigVolume::new(POLICY)?;
        let options = AgentOptions::new(netdp)
            .config(config.path())
            .arg("--enable-ipv6")
            .arg("--mode=iptables");
        let agent = Agent::start(&bed.node, options)?;
        let node: Vec<IpAddr> = bed.uplinks[0].addresses.iter().map(|n| n.addr()).collect();
        Ok(Self {
            load: Load::start(&bed.pods, &targets, &node)?,
            agent,
            mode: "iptables",
            bed,
            backend,
            leaks,
            twice: 0,
            changes: 0,
            _servers: servers,
            _config: config,
            _far: far,
        })
    }

    /// Returns the agent, in whatever mode it runs.
    pub fn agent(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Runs netdp in shadow mode against the chains, under load. Returns the output of `netdp
    /// shadow report`, which must show no difference.
    pub fn shadow(&mut self) -> Result<String> {
        self.change("shadow")?;
        let told = wait_report(&self.agent);
        told.with_context(|| self.agent.log())
    }

    /// Moves from the chains to eBPF; returns once the chains are gone and all connections have
    /// continued.
    pub fn take_over(&mut self) -> Result<()> {
        self.change("ebpf")?;
        wait_for(PATIENCE, "the chains to be gone", || {
            self.has_chains().is_ok_and(|has| !has)
        })
        .with_context(|| self.agent.log())?;
        self.step()
    }

    /// Moves from eBPF to the chains; returns once the programs are gone and all connections have
    /// continued.
    pub fn roll_back(&mut self) -> Result<()> {
        self.change("iptables")?;
        ensure!(self.has_chains()?, "no chains: {}", self.agent.log());
        self.count_twice()?;
        wait_for(PATIENCE, "the programs to be gone", || {
            let pins = std::fs::read_dir(self.agent.bpffs());
            pins.is_ok_and(|mut pins| pins.next().is_none())
        })
        .with_context(|| self.agent.log())?;
        self.step()
    }

    /// Ends the load and returns the totals.
    pub fn finish(self) -> Result<Outcome> {
        let leaks = self.leaks.count()?;
        let tally = self.load.end()?;
        Ok(Outcome::new(&tally, self.changes, leaks, self.twice))
    }

    /// Waits until each connection has had an answer, idle ones included; then every worker opens
    /// more.
    pub fn step(&mut self) -> Result<()> {
        self.load.step().with_context(|| self.agent.log())?;
        self.count_twice()
    }

    /// Returns the counts so far.
    pub fn tally(&self) -> &Tally {
        self.load.tally()
    }

    fn change(&mut self, to: &'static str) -> Result<()> {
        self.agent.stop()?;
        let (is, wanted) = (format!("--mode={}", self.mode), format!("--mode={to}"));
        self.agent.options().replace(&is, &wanted);
        self.mode = to;
        self.changes += usize::from(to != "shadow");
        self.agent.restart()
    }

    fn has_chains(&self) -> Result<bool> {
        let mut has = false;
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{}", self.backend);
            let listing = self
                .bed
                .node
                .run(&[&program, "--wait", "60", "-t", "nat", "-S"])?;
            has |= listing.contains(CHAIN);
        }
        Ok(has)
    }

    /// Counts mappings of the node's own address: they translate what netfilter has already
    /// translated.
    fn count_twice(&mut self) -> Result<()> {
        let Ok(flows) = self.agent.netdp(&["flows", "-o", "json"]) else {
            // The datapath is already removed.
            return Ok(());
        };
        let flows: serde_json::Value = serde_json::from_str(&flows)?;
        let flows = flows["flows"].as_array().into_iter().flatten();
        let node = &self.bed.uplinks[0].addresses;
        let twice = flows.filter(|flow| {
            let source = flow["source"].as_str().unwrap_or_default();
            node.iter().any(|net| net.addr().to_string() == source)
        });
        self.twice += twice.count();
        Ok(())
    }
}

/// Returns the report once enough connections were compared.
fn wait_report(agent: &Agent) -> Result<String> {
    let mut last = serde_json::Value::Null;
    wait_for(PATIENCE, "shadow mode to see connections", || {
        let output = agent.command(&["shadow", "report", "-o", "json"]).output();
        last = output
            .ok()
            .and_then(|output| serde_json::from_slice(&output.stdout).ok())
            .unwrap_or_default();
        last["flows"].as_u64() >= Some(ENOUGH)
    })
    .with_context(|| format!("{last:#}"))?;
    // Exits with an error if it finds a difference.
    agent.netdp(&["shadow", "report"])
}
