//! Takeover of ip-masq-agent's chains by the eBPF datapath and rollback, on a live node.

use crate::common::clients::{Tcp, Udp, any, tcp_source, udp_source};
use crate::common::wire::Capture;
use crate::common::{Echo, NETDP, POLICY, SOON, echoes, is_mounted, same_family, tcx_programs};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, Pings, Running, wait_for};

const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// A client that stays open, and the source that its server saw first.
enum Client {
    Tcp(Tcp),
    Udp(Udp),
}

struct Flow {
    client: Client,
    to: SocketAddr,
    seen: SocketAddr,
}

impl Flow {
    fn ask(&mut self) -> Result<SocketAddr> {
        match &mut self.client {
            Client::Tcp(tcp) => tcp.ask(),
            Client::Udp(udp) => udp.ask(),
        }
    }

    /// Checks that it continues and that its server sees the same source.
    fn resume(&mut self, after: &str) -> Result<()> {
        let (to, seen) = (self.to, self.seen);
        let now = self
            .ask()
            .with_context(|| format!("the flow to {to}, after {after}"))?;
        ensure!(now == seen, "{after}: {to} saw {seen}, now {now}");
        Ok(())
    }
}

/// A node with the kubelet's chains of one backend, and an agent in iptables mode.
struct Node {
    // Dropped before the bed.
    agent: Agent,
    bed: Bed,
    far: Host,
    _config: ConfigVolume,
    _echo: Echo,
    wire: Capture,
    pings: Pings,
    flows: Vec<Flow>,
    backend: &'static str,
}

impl Node {
    fn start(backend: &'static str) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        bed.kubelet_chain(backend, "KUBE-IPTABLES-HINT")?;
        let config = ConfigVolume::new(POLICY)?;
        let options = AgentOptions::new(NETDP)
            .config(config.path())
            .arg("--enable-ipv6")
            .arg("--mode=iptables");
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let echo = Echo::start(&far)?;
        let agent = Agent::start(&bed.node, options)?;
        // A flow that is idle while an agent starts on a busy machine must not expire.
        for key in ["udp_timeout", "udp_timeout_stream"] {
            bed.node
                .sysctl(&format!("net.netfilter.nf_conntrack_{key}"), "600")?;
        }
        let mut node = Self {
            wire: Capture::start(&far)?,
            agent,
            _config: config,
            _echo: echo,
            pings: Pings::default(),
            flows: Vec::new(),
            far,
            bed,
            backend,
        };
        node.ping()?;
        node.open()?;
        Ok(node)
    }

    /// Starts continuous pings from each pod, in each family.
    fn ping(&mut self) -> Result<()> {
        for pod in &self.bed.pods {
            for net in &self.far.addresses {
                self.pings.start(pod, net.addr(), "0.02")?;
            }
        }
        Ok(())
    }

    /// Opens connections from each pod, TCP and UDP, in each family.
    fn open(&mut self) -> Result<()> {
        for pod in &self.bed.pods {
            for to in echoes(&self.far) {
                let tcp = Client::Tcp(Tcp::connect(pod, any(to), to)?);
                let udp = Client::Udp(Udp::connect(pod, any(to), to)?);
                for client in [tcp, udp] {
                    let mut flow = Flow {
                        client,
                        to,
                        seen: to,
                    };
                    flow.seen = flow.ask()?;
                    self.flows.push(flow);
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, from: &str, to: &str) -> Result<()> {
        self.agent.stop()?;
        let (from, to) = (format!("--mode={from}"), format!("--mode={to}"));
        self.agent.options().replace(&from, &to);
        self.agent.restart()
    }

    /// Checks that all connections continue and that new ones are masqueraded.
    fn check(&mut self, after: &str) -> Result<()> {
        for flow in &mut self.flows {
            flow.resume(after)?;
        }
        let far = &self.far;
        for to in echoes(far) {
            let node = self.node_address(to.ip())?;
            for pod in &self.bed.pods {
                ensure!(tcp_source(pod, to)? == node, "{after}: TCP to {to}");
                ensure!(udp_source(pod, to)? == node, "{after}: UDP to {to}");
            }
        }
        self.nothing_leaked(after)
    }

    fn node_address(&self, like: IpAddr) -> Result<IpAddr> {
        same_family(&self.bed.uplinks[0].addresses, like)
    }

    /// Checks that the far side has only ever seen the node's addresses.
    fn nothing_leaked(&self, after: &str) -> Result<()> {
        for packet in self.wire.packets()? {
            let pods = self.bed.pods.iter().flat_map(|pod: &Host| &pod.addresses);
            for pod in pods {
                ensure!(pod.addr() != packet.source, "{after}: leaked {packet:?}");
            }
        }
        Ok(())
    }

    /// Ends the pings, of which up to `lost` may be unanswered.
    fn end_pings(&mut self, lost: usize) -> Result<()> {
        for ping in std::mem::take(&mut self.pings).end()? {
            ensure!(ping.alive && ping.lost <= lost, "{ping:?}");
        }
        Ok(())
    }

    fn wait_no_chains(&self) -> Result<()> {
        wait_for(SOON, "the chains to be gone", || {
            self.chains().is_ok_and(|found| !found)
        })
        .with_context(|| self.agent.log())
    }

    /// Returns all tables of both families and backends.
    fn tables(&self) -> Result<String> {
        let mut all = String::new();
        for program in ["iptables", "ip6tables"] {
            for backend in BACKENDS {
                let save = format!("{program}-{backend}-save");
                all.push_str(&self.bed.node.run(&[&save])?);
            }
        }
        Ok(all)
    }

    /// Returns the output of `netdp detach` after an agent was killed.
    fn detach(&mut self) -> Result<String> {
        self.agent.kill9()?;
        self.detach_again()
    }

    fn detach_again(&self) -> Result<String> {
        let mut running = Running::start(self.agent.command(&["detach"]))?;
        let status = running.wait(SOON)?;
        let told = running.stderr();
        ensure!(status.success(), "{status}: {told}");
        Ok(told)
    }

    /// Checks that no program, pin, chain or file remains.
    fn nothing_is_left(&self) -> Result<()> {
        let tables = self.tables()?;
        for name in ["NETDP", "IP-MASQ-AGENT"] {
            ensure!(!tables.contains(name), "{name} is left:\n{tables}");
        }
        let programs = tcx_programs(&self.bed.node, "eth0")?;
        ensure!(programs.iter().all(Vec::is_empty), "{programs:?} are left");
        ensure!(!is_mounted(&self.agent.bpffs())?, "a bpffs is left");
        let pins = std::fs::read_dir(self.agent.bpffs()).map_or(0, Iterator::count);
        ensure!(pins == 0, "{pins} pins are left");
        let state = self.agent.state_dir();
        ensure!(!state.exists(), "{} is left", state.display());
        let ready = state.with_file_name("ready");
        ensure!(!ready.exists(), "{} is left", ready.display());
        let told = self.detach_again()?;
        ensure!(told.contains("nothing to remove"), "{told}");
        Ok(())
    }

    fn chains(&self) -> Result<bool> {
        let mut found = false;
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{}", self.backend);
            let listing = self
                .bed
                .node
                .run(&[&program, "--wait", "60", "-t", "nat", "-S"])?;
            found |= listing.contains("IP-MASQ-AGENT");
        }
        Ok(found)
    }
}

/// libtest prints this for a failed test.
impl Drop for Node {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

fn takeover_and_back(backend: &'static str) -> Result<()> {
    let mut node = Node::start(backend)?;
    ensure!(node.chains()?, "no chains to take over");
    for round in 0..2 {
        node.change("iptables", "ebpf")?;
        node.wait_no_chains()?;
        node.check(&format!("takeover {round}"))?;
        node.open()?;
        node.change("ebpf", "iptables")?;
        ensure!(node.chains()?, "no chains");
        wait_for(SOON, "the datapath to be gone", || {
            let pins = std::fs::read_dir(node.agent.bpffs());
            pins.is_ok_and(|mut pins| pins.next().is_none())
        })
        .with_context(|| node.agent.log())?;
        node.check(&format!("rollback {round}"))?;
        node.open()?;
    }
    // Between conntrack and the programs a packet may be lost, never a connection.
    node.end_pings(8)
}

#[test]
fn takeover_and_rollback_with_nft() -> Result<()> {
    takeover_and_back("nft")
}

#[test]
fn takeover_and_rollback_with_legacy() -> Result<()> {
    takeover_and_back("legacy")
}

/// A single command, without another agent.
#[test]
fn detach_to_iptables_ends_no_connection() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend)?;
        node.change("iptables", "ebpf")?;
        node.wait_no_chains()?;
        node.open()?;
        node.agent.stop()?;
        node.agent.netdp(&["detach", "--to-iptables"])?;
        ensure!(node.chains()?, "no chains");
        let pins = std::fs::read_dir(node.agent.bpffs())?;
        ensure!(pins.count() == 0, "the datapath is still there");
        node.check("detach")?;
        let rules = format!("iptables-{backend}");
        let rules = node
            .bed
            .node
            .run(&[&rules, "--wait", "60", "-t", "nat", "-S"])?;
        // The rules of the configuration, not the built-in ones.
        ensure!(rules.contains("-d 172.16.0.0/16 "), "{rules}");
        ensure!(!rules.contains("-d 10.0.0.0/8 "), "{rules}");
    }
    Ok(())
}

/// The chain is written again by a third party: this is reported, and the chain is left alone.
#[test]
fn a_chain_that_is_put_back_is_told_of() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend)?;
        node.change("iptables", "ebpf")?;
        node.wait_no_chains()?;
        let program = format!("iptables-{backend}");
        node.bed
            .node
            .run(&[&program, "--wait", "60", "-t", "nat", "-N", "IP-MASQ-AGENT"])?;
        node.agent.signal(Signal::SIGHUP)?;
        wait_for(SOON, "the agent to tell", || {
            let status = node.agent.netdp(&["status"]).unwrap_or_default();
            status.contains("chain IP-MASQ-AGENT (IPv4") && status.contains("was created again")
        })?;
        ensure!(node.chains()?, "the agent fights");
        node.check("the chain is back")?;
    }
    Ok(())
}

/// Flows whose replies would be dropped stay with netfilter as long as that is so.
#[test]
fn what_would_lose_its_answers_is_not_taken_over() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend)?;
        let program = format!("iptables-{backend}");
        let rule = |verb: &'static str| {
            let rule = ["--wait", "60", "-t", "raw", verb, "PREROUTING"];
            let drop = ["-d", "172.16.0.0/24", "!", "-i", "cni0", "-j", "DROP"];
            [&[program.as_str()][..], &rule, &drop].concat()
        };
        node.bed.node.run(&rule("-A"))?;
        node.change("iptables", "ebpf")?;
        wait_for(SOON, "the status to say so", || {
            let status = node.agent.netdp(&["status"]).unwrap_or_default();
            let words = "takeover   will be retried: chain IP-MASQ-AGENT";
            let told = status.lines().find(|line| line.starts_with(words));
            told.is_some_and(|told| {
                told.contains("a rule of an unknown program drops replies to pods")
            })
        })
        .with_context(|| node.agent.log())?;
        ensure!(node.chains()?, "the chains are gone");
        node.check("a takeover that was put off")?;
        node.bed.node.run(&rule("-D"))?;
        node.wait_no_chains()?;
        node.check("the takeover")?;
        node.end_pings(8)?;
    }
    Ok(())
}

/// Flows that IPsec protects with the node's address stay with netfilter as long as that is so:
/// netdp would drop them, or let them leave in clear if the policy is for one protocol only.
#[test]
fn what_ipsec_protects_is_not_taken_over() -> Result<()> {
    for (what, selector) in [
        ("is dropped", ""),
        ("leaves in clear", "proto tcp dport 443"),
    ] {
        let mut node = Node::start("nft")?;
        let kernel = node.bed.node.clone();
        let policies = |verb: &str| -> Result<()> {
            for (from, to, ends) in [
                ("10.1.0.10/32", "10.3.0.0/24", ["10.1.0.10", "10.3.0.1"]),
                ("fd00:1::10/128", "fd00:3::/64", ["fd00:1::10", "fd00:3::1"]),
            ] {
                let template = match verb {
                    "add" => format!(
                        "tmpl src {} dst {} proto esp mode transport",
                        ends[0], ends[1]
                    ),
                    _ => String::new(),
                };
                kernel.ip(&format!(
                    "xfrm policy {verb} dir out src {from} dst {to} {selector} {template}"
                ))?;
            }
            Ok(())
        };
        policies("add")?;
        node.change("iptables", "ebpf")?;
        wait_for(SOON, "the status to say so", || {
            let status = node.agent.netdp(&["status"]).unwrap_or_default();
            let words = "takeover   will be retried: chain IP-MASQ-AGENT";
            let mut told = status.lines().filter(|line| line.starts_with(words));
            told.any(|told| told.contains("IPsec policy") && told.contains(what))
        })
        .with_context(|| node.agent.log())?;
        ensure!(node.chains()?, "the chains are gone");
        node.check("a takeover that was put off")?;
        policies("delete")?;
        node.wait_no_chains()?;
        node.check("the takeover")?;
        node.end_pings(8)?;
    }
    Ok(())
}

/// Uninstalls right after a takeover, while netfilter still translates connections.
fn a_takeover_leaves_nothing(backend: &'static str) -> Result<()> {
    let mut node = Node::start(backend)?;
    node.change("iptables", "ebpf")?;
    node.wait_no_chains()?;
    ensure!(node.tables()?.contains("NETDP-KEEP"), "{}", node.tables()?);
    let told = node.detach()?;
    for family in ["IPv4", "IPv6"] {
        let words = format!("removed chain NETDP-KEEP ({family}, {backend})");
        ensure!(told.contains(&words), "{words:?} is not in {told}");
    }
    node.nothing_is_left()
}

#[test]
fn detach_leaves_nothing_of_a_takeover_with_nft() -> Result<()> {
    a_takeover_leaves_nothing("nft")
}

#[test]
fn detach_leaves_nothing_of_a_takeover_with_legacy() -> Result<()> {
    a_takeover_leaves_nothing("legacy")
}

#[test]
fn detach_leaves_nothing_of_iptables_mode() -> Result<()> {
    for backend in BACKENDS {
        let mut node = Node::start(backend)?;
        let told = node.detach()?;
        let words = format!("removed chain IP-MASQ-AGENT (IPv4, {backend})");
        ensure!(told.contains(&words), "{words:?} is not in {told}");
        node.nothing_is_left()?;
    }
    Ok(())
}

/// In iptables mode again, the chains keep conntrack enabled.
#[test]
fn a_rollback_leaves_no_chain_of_the_takeover() -> Result<()> {
    let mut node = Node::start("nft")?;
    node.change("iptables", "ebpf")?;
    node.wait_no_chains()?;
    ensure!(node.tables()?.contains("NETDP-KEEP"), "{}", node.tables()?);
    node.agent.stop()?;
    node.agent.netdp(&["detach", "--to-iptables"])?;
    ensure!(node.chains()?, "no chains");
    ensure!(!node.tables()?.contains("NETDP-KEEP"), "{}", node.tables()?);
    node.check("the rollback")
}

/// Nothing identifies it as netdp's: it is reported and left alone.
#[test]
fn a_chain_that_may_be_ip_masq_agents_is_left() -> Result<()> {
    let mut node = Node::start("nft")?;
    node.agent.kill9()?;
    std::fs::remove_dir_all(node.agent.state_dir())?;
    let told = node.detach_again()?;
    let words = "chain IP-MASQ-AGENT (IPv4, nft) is left: no record shows that netdp wrote it";
    ensure!(told.contains(words), "{words:?} is not in {told}");
    ensure!(node.chains()?, "the chain is gone");
    Ok(())
}
