//! A node whose pods have a veth and a host route each, as most CNI plugins configure them, and its
//! translator.

use crate::common::{NETDP, status};
use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, Netns, WorkDir, veth};

/// Pods are bypassed, everything else is masqueraded, the node's own network included.
const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";

/// Addresses of the node's end of the pods' links.
const GATEWAYS: [&str; 2] = ["172.16.0.1", "fd00:172::1"];

/// The translator under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Netdp,
    /// ip-masq-agent's rules with `--random-fully`, its default.
    IpMasqAgent,
}

/// Known result of ip-masq-agent's rules in the same situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// They withstand the attack.
    Holds,
    /// They do not withstand it.
    Fails,
}

/// Runs an attack against both; netdp must withstand it, and ip-masq-agent's rules must behave as
/// recorded. These choose ports at random (`--random-fully`), by chance the attacked one, one in a
/// few hundred times: they are asked a second time if they differ.
pub fn both(control: Control, attack: impl Fn(Subject) -> Result<()>) -> Result<()> {
    let as_recorded = |found: &Result<()>| match control {
        Control::Holds => found.is_ok(),
        Control::Fails => found.is_err(),
    };
    let mut found = attack(Subject::IpMasqAgent);
    if !as_recorded(&found) {
        eprintln!("ip-masq-agent's rules at first: {found:?}");
        found = attack(Subject::IpMasqAgent);
    }
    match &found {
        Ok(()) => eprintln!("ip-masq-agent's rules hold"),
        Err(error) => eprintln!("ip-masq-agent's rules fail: {error:#}"),
    }
    attack(Subject::Netdp).context("netdp")?;
    ensure!(
        as_recorded(&found),
        "ip-masq-agent's rules: {found:?}, not {control:?}"
    );
    Ok(())
}

/// Collected failures, so that the first one does not hide the others.
#[derive(Debug, Default)]
pub struct Wrongs(Vec<String>);

impl Wrongs {
    pub fn note(&mut self, what: impl fmt::Display, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }

    pub fn none(self) -> Result<()> {
        ensure!(
            self.0.is_empty(),
            "{} wrong:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
        Ok(())
    }
}

/// The node with three pods, of which the first two are well-behaved.
#[derive(Debug)]
pub struct Site {
    // Dropped before the bed.
    agent: Option<Agent>,
    _config: ConfigVolume,
    _dir: WorkDir,
    /// In the node's network; has a route to pods and is masqueraded.
    pub near: Host,
    /// Behind a router, without a route to pods.
    pub far: Host,
    /// Another host like `far`.
    pub other: Host,
    pub bed: Bed,
}

impl Site {
    pub fn start(subject: Subject, arguments: &[&str]) -> Result<Self> {
        Self::prepared(subject, arguments, |_| Ok(()))
    }

    /// Starts a site; `prepare` configures the node before the translator starts.
    pub fn prepared(
        subject: Subject,
        arguments: &[&str],
        prepare: impl FnOnce(&Bed) -> Result<()>,
    ) -> Result<Self> {
        let mut bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
            .pods(0, &["172.16.0.0/24", "fd00:172::/64"])
            .build()?;
        for index in 0..3 {
            let pod = routed_pod(&bed.node, index)?;
            bed.pods.push(pod);
        }
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let other = bed.server(0, &["10.3.0.1/24", "fd00:3::1/64"])?;
        prepare(&bed)?;
        let (config, dir) = (ConfigVolume::new(POLICY)?, WorkDir::new("rules")?);
        let agent = match subject {
            Subject::Netdp => {
                let options = AgentOptions::new(NETDP)
                    .config(config.path())
                    .arg("--enable-ipv6");
                let options = arguments
                    .iter()
                    .fold(options, |options, argument| options.arg(*argument));
                Some(Agent::start(&bed.node, options)?)
            }
            Subject::IpMasqAgent => {
                ip_masq_agent(&bed.node, &dir)?;
                None
            }
        };
        Ok(Self {
            agent,
            _config: config,
            _dir: dir,
            near,
            far,
            other,
            bed,
        })
    }

    /// Returns the agent, if netdp is the subject.
    pub fn agent(&mut self) -> Option<&mut Agent> {
        self.agent.as_mut()
    }

    pub fn node(&self) -> &Netns {
        &self.bed.node
    }

    /// Returns a well-behaved pod.
    pub fn good(&self) -> &Host {
        &self.bed.pods[0]
    }

    /// Returns the attacking pod.
    pub fn evil(&self) -> &Host {
        &self.bed.pods[2]
    }

    /// Returns a port of the node's address in the family of `like`.
    pub fn on_node(&self, like: IpAddr, port: u16) -> Result<SocketAddr> {
        let address = crate::common::same_family(&self.bed.uplinks[0].addresses, like)?;
        Ok(SocketAddr::new(address, port))
    }

    /// Checks that netdp's tables are not full and that nothing was refused because they were.
    pub fn not_full(&mut self) -> Result<()> {
        let Some(agent) = self.agent.as_ref() else {
            return Ok(());
        };
        let shown = status(agent)?;
        let number = |value: &serde_json::Value| value.as_u64().context("not a number");
        let (used, room) = (number(&shown["mappings"])?, number(&shown["max_mappings"])?);
        ensure!(used < room * 9 / 10, "{used} mappings of {room}");
        let refused = number(&shown["drops"]["table_full"])?;
        ensure!(refused == 0, "{refused} packets found the tables full");
        Ok(())
    }
}

/// libtest prints this for a failed test.
impl Drop for Site {
    fn drop(&mut self) {
        if let Some(agent) = &self.agent {
            let log = agent.log();
            let from = log.len().saturating_sub(4000);
            eprintln!("the agent wrote:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}

/// Returns the addresses of a host with a port, IPv4 first.
pub fn ends(host: &Host, port: u16) -> Vec<SocketAddr> {
    let end = |net: &IpNet| SocketAddr::new(net.addr(), port);
    host.addresses.iter().map(end).collect()
}

/// Returns the address of a host in the family of `like`, with a port.
pub fn end(host: &Host, like: IpAddr, port: u16) -> Result<SocketAddr> {
    let address = crate::common::same_family(&host.addresses, like)?;
    Ok(SocketAddr::new(address, port))
}

fn routed_pod(node: &Netns, index: u8) -> Result<Host> {
    let last = index + 2;
    let pod = Host {
        ns: Netns::new("pod")?,
        addresses: vec![
            format!("172.16.0.{last}/32").parse()?,
            format!("fd00:172::{last:x}/128").parse()?,
        ],
    };
    let device = format!("pod{index}");
    veth(node, &device, &pod, "eth0")?;
    for (own, gateway) in pod.addresses.iter().zip(GATEWAYS) {
        let gateway: IpAddr = gateway.parse()?;
        node.address(&device, gateway.into())?;
        node.ip(&format!("route add {own} dev {device}"))?;
        pod.address("eth0", *own)?;
        pod.ip(&format!("route add {gateway} dev eth0"))?;
        let all = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        pod.route(all.parse()?, gateway)?;
    }
    Ok(pod)
}

/// Writes ip-masq-agent's rules on the node.
pub fn ip_masq_agent(node: &Netns, dir: &WorkDir) -> Result<()> {
    for (tool, local, pods) in [
        ("iptables-restore", "169.254.0.0/16", "172.16.0.0/16"),
        ("ip6tables-restore", "fe80::/10", "fd00:172::/64"),
    ] {
        let rules = format!(
            "*nat\n:IP-MASQ-AGENT - [0:0]\n\
             -A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n\
             -A IP-MASQ-AGENT -d {local} -j RETURN\n\
             -A IP-MASQ-AGENT -d {pods} -j RETURN\n\
             -A IP-MASQ-AGENT -j MASQUERADE --random-fully\nCOMMIT\n"
        );
        restore(node, dir, tool, &rules)?;
    }
    Ok(())
}

/// Loads rules in the format of iptables-restore; other rules of the node stay.
pub fn restore(node: &Netns, dir: &WorkDir, tool: &str, rules: &str) -> Result<()> {
    let path = dir.path().join(tool);
    fs::write(&path, rules)?;
    let path = path.display().to_string();
    node.run(&[tool, "--noflush", "--wait", "60", &path])?;
    Ok(())
}
