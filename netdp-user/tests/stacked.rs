//! A bond with VLANs as uplinks. This needs kernel modules that not every kernel has: `cargo xtask
//! kernels` runs it on one that does.

#[allow(dead_code, unused_imports, reason = "the tests of nodes have the rest")]
mod common;

use anyhow::{Context as _, Result, ensure};
use common::clients::{Tcp, any, udp_source};
use common::{ECHO, Echo, options, status};
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, EchoServer, Host, UdpEchoServer, wait_for};

const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";

/// Commands that convert the node's uplink `eth0`, and the router's end of it.
const NODE: [&str; 14] = [
    "link set eth0 down",
    "link add bond0 type bond mode active-backup miimon 10",
    "link set eth0 master bond0",
    "link set bond0 up",
    "link set eth0 up",
    "addr flush dev eth0",
    "addr add 10.1.0.10/16 dev bond0",
    "addr add fd00:1::10/64 dev bond0 nodad",
    "-4 route replace default via 10.1.255.254",
    "-6 route replace default via fd00:1::fffe dev bond0",
    "link add link bond0 name bond0.100 type vlan id 100",
    "link set bond0.100 up",
    "addr add 10.100.0.10/24 dev bond0.100",
    "addr add fd00:100::10/64 dev bond0.100 nodad",
];
const ROUTER: [&str; 4] = [
    "link add link node name node.100 type vlan id 100",
    "link set node.100 up",
    "addr add 10.100.0.1/24 dev node.100",
    "addr add fd00:100::1/64 dev node.100 nodad",
];

/// Target addresses and the source expected at each.
const TARGETS: [(&str, &str); 4] = [
    ("10.2.0.1", "10.1.0.10"),
    ("fd00:2::1", "fd00:1::10"),
    ("10.100.0.1", "10.100.0.10"),
    ("fd00:100::1", "fd00:100::10"),
];

struct World {
    bed: Bed,
    _far: Host,
    _echo: (Echo, Vec<EchoServer>, Vec<UdpEchoServer>),
    config: ConfigVolume,
}

impl World {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let router = &bed.uplinks[0].router;
        for line in NODE {
            bed.node.ip(line)?;
        }
        for line in ROUTER {
            router.ip(line)?;
        }
        wait_for(common::SOON, "the bond to be up", || {
            let shown = bed.node.ip("-br link show dev bond0");
            shown.is_ok_and(|shown| shown.contains(" UP "))
        })?;
        router.ip("neigh flush all")?;
        let vlan = TARGETS[2..]
            .iter()
            .map(|(to, _)| Ok((to.parse::<IpAddr>()?, ECHO)));
        let vlan: Vec<_> = vlan.collect::<Result<_>>()?;
        let echo = (
            Echo::start(&far)?,
            vlan.iter()
                .map(|at| EchoServer::start(router, *at))
                .collect::<Result<_>>()?,
            vlan.iter()
                .map(|at| UdpEchoServer::start(router, *at))
                .collect::<Result<_>>()?,
        );
        Ok(Self {
            bed,
            _far: far,
            _echo: echo,
            config: ConfigVolume::new(POLICY)?,
        })
    }

    /// Checks flows of both pods to every target through these uplinks, each translated once.
    fn once(&self, arguments: &[&str], uplinks: &[&str], targets: &[(&str, &str)]) -> Result<()> {
        let mut agent = Agent::start(
            &self.bed.node,
            options(&self.config, &[&["--enable-ipv6"], arguments].concat()),
        )?;
        let mut open = Vec::new();
        for (to, seen_as) in targets {
            let (to, seen_as): (IpAddr, IpAddr) = (to.parse()?, seen_as.parse()?);
            let to = SocketAddr::new(to, ECHO);
            for pod in &self.bed.pods {
                let mut tcp = Tcp::connect(pod, any(to), to)?;
                let seen = tcp.ask()?;
                ensure!(seen.ip() == seen_as, "{to} saw {seen}");
                ensure!(udp_source(pod, to)? == seen_as, "by UDP {to} saw another");
                open.push(tcp);
            }
        }
        let told = status(&agent)?;
        let named = told["report"]["uplinks"].as_array().context("uplinks")?;
        let names: Vec<_> = named
            .iter()
            .filter_map(|uplink| uplink["name"].as_str())
            .collect();
        ensure!(names == uplinks, "the uplinks are {names:?}");
        let flows = 2 * self.bed.pods.len() * targets.len();
        ensure!(told["mappings"] == flows, "{told:#}");
        ensure!(told["packets"]["mappings_created"] == flows, "{told:#}");
        agent.stop()?;
        agent.netdp(&["detach"])?;
        Ok(())
    }
}

#[test]
fn a_bond_and_its_vlan_translate_each_packet_once() -> Result<()> {
    let world = World::new()?;
    world.once(&["--uplink", "bond0*"], &["bond0", "bond0.100"], &TARGETS)?;
    world.once(&["--uplink", "{eth0,bond0}"], &["bond0"], &TARGETS[..2])?;
    world.once(&["--uplink", "bond0.100"], &["bond0.100"], &TARGETS[2..])?;
    // By default each one has the packets that the node routes through it.
    world.once(&[], &["bond0", "bond0.100"], &TARGETS)
}
