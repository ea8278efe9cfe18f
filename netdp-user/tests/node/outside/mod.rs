//! A bed whose server is two routers away, with and without translation, so that the results of
//! programs can be compared.
//!
//! ```text
//!  pod ── cni0 node eth0 ── router ══ transit ── server
//!         `before`                `beyond`: MTUs
//! ```

pub mod programs;
pub mod tcpdump;

use crate::common::start_agent;
use anyhow::Result;
use ipnet::IpNet;
use std::net::IpAddr;
use tcpdump::Tcpdump;
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, last_host, veth};

/// Networks of the pods.
pub const POD_NETWORKS: [&str; 2] = ["172.16.0.0/24", "fd00:172::/64"];

const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/24
- fd00:172::/64
";

/// Parameters of a bed.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// netdp runs; otherwise the outside has routes to pods.
    pub translated: bool,
    /// `--mode` of netdp.
    pub mode: &'static str,
    /// Checksum and segmentation offloads and GRO on every interface.
    pub offloads: bool,
    /// MTU between the routers in bytes.
    pub beyond: u16,
    /// MTU of the node's interface towards pods in bytes.
    pub before: u16,
}

impl Shape {
    /// Translated, with offloads, and 1500 bytes everywhere.
    pub const NORMAL: Self = Self {
        translated: true,
        mode: "ebpf",
        offloads: true,
        beyond: 1500,
        before: 1500,
    };

    /// Returns the same shape with a plain router.
    pub const fn plain(self) -> Self {
        Self {
            translated: false,
            ..self
        }
    }
}

/// A bed of some shape.
#[derive(Debug)]
pub struct Outside {
    /// Capture of packets with pods' addresses on the uplink.
    leaks: Option<Tcpdump>,
    agent: Option<Agent>,
    _config: ConfigVolume,
    pub server: Host,
    transit: Netns,
    pub bed: Bed,
}

impl Outside {
    pub fn new(shape: Shape) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let router = bed.uplinks[0].router.clone();
        let transit = Netns::new("transit")?;
        transit.forward()?;
        let server = Host {
            ns: Netns::new("server")?,
            addresses: parse(&["10.3.0.1/24", "fd00:3::1/64"])?,
        };
        veth(&router, "far", &transit, "near")?;
        veth(&transit, "lan", &server, "eth0")?;
        for (between, behind) in parse(&["10.2.0.1/24", "fd00:2::1/64"])?
            .into_iter()
            .zip(&server.addresses)
        {
            let (router_end, transit_end) = (between, last_host(between));
            router.address("far", router_end)?;
            transit.address("near", transit_end)?;
            router.route(behind.trunc(), transit_end.addr())?;
            transit.route(default(between)?, router_end.addr())?;
            transit.address("lan", last_host(*behind))?;
            server.address("eth0", *behind)?;
            server.route(default(between)?, last_host(*behind).addr())?;
        }
        for (ns, device) in [(&router, "far"), (&transit, "near")] {
            ns.ip(&format!("link set {device} mtu {}", shape.beyond))?;
        }
        bed.node
            .ip(&format!("link set cni0 mtu {}", shape.before))?;
        let config = ConfigVolume::new(CONFIG)?;
        let mut outside = Self {
            leaks: None,
            agent: None,
            _config: config,
            server,
            transit,
            bed,
        };
        outside.prepare(shape)?;
        Ok(outside)
    }

    fn prepare(&mut self, shape: Shape) -> Result<()> {
        let router = &self.bed.uplinks[0].router;
        for ns in [
            &self.bed.pods[0].ns,
            &self.bed.node,
            router,
            &self.transit,
            &self.server,
        ] {
            tell_everything(ns)?;
            offloads(ns, shape.offloads)?;
        }
        if shape.translated {
            let filter = format!("src net {} or src net {}", POD_NETWORKS[0], POD_NETWORKS[1]);
            self.leaks = Some(Tcpdump::start(router, "node", &filter)?);
            let agent = start_agent(
                &self.bed.node,
                &self._config,
                &["--mode", shape.mode, "--enable-ipv6"],
            )?;
            self.agent = Some(agent);
        } else {
            for (network, node) in POD_NETWORKS.iter().zip(&self.bed.uplinks[0].addresses) {
                router.route(network.parse()?, node.addr())?;
            }
        }
        Ok(())
    }

    pub fn pod(&self) -> &Host {
        &self.bed.pods[0]
    }

    /// Returns the server's addresses, one per family.
    pub fn targets(&self) -> Vec<IpAddr> {
        self.server.addresses.iter().map(IpNet::addr).collect()
    }

    /// Returns an error if a packet with a pod's source was captured on the uplink.
    pub fn check_leaks(self) -> Result<()> {
        if let Some(leaks) = self.leaks {
            let seen = leaks.finish()?;
            anyhow::ensure!(seen.trim().is_empty(), "left with a pod's source:\n{seen}");
        }
        Ok(())
    }
}

/// Removes the rate limits of ICMP errors: the programs send probes quickly.
fn tell_everything(ns: &Netns) -> Result<()> {
    ns.sysctl("net.ipv4.icmp_ratemask", "0")?;
    ns.sysctl("net.ipv4.icmp_ratelimit", "0")?;
    ns.sysctl("net.ipv6.icmp.ratelimit", "0")
}

fn offloads(ns: &Netns, on: bool) -> Result<()> {
    let links = ns.ip("-o link show")?;
    let names = links
        .lines()
        .filter_map(|line| line.split([' ', '@', ':']).nth(2));
    for name in names.filter(|name| *name != "lo") {
        if on {
            ns.offloads(name, &["gro", "on"])?;
        } else {
            ns.offloads(
                name,
                &[
                    "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off",
                ],
            )?;
        }
    }
    Ok(())
}

fn parse(texts: &[&str]) -> Result<Vec<IpNet>> {
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

fn default(family_of: IpNet) -> Result<IpNet> {
    Ok(match family_of {
        IpNet::V4(_) => "0.0.0.0/0".parse()?,
        IpNet::V6(_) => "::/0".parse()?,
    })
}
