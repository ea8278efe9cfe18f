//! Packets of guests on the uplink's own link, which the node does not route, are not translated;
//! routed packets on it are masqueraded as usual. netfilter does not process bridged packets: the
//! control.

use crate::common::clients::{ping, tcp_source, udp_source};
use crate::common::{ECHO, Echo, SOON, start_agent, status};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, wait_for};

/// Only pods are bypassed.
const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";

/// Addresses of the guest.
const GUEST: [&str; 2] = ["10.1.0.50/16", "fd00:1::50/64"];
const NODE: [&str; 2] = ["10.1.0.10", "fd00:1::10"];

struct World {
    agent: Agent,
    guest: Host,
    far: Host,
    _echo: Echo,
    bed: Bed,
    _config: ConfigVolume,
}

impl World {
    /// Creates a world; `attach` gives the guest an interface `eth0`.
    fn new(attach: impl FnOnce(&Bed, &Netns) -> Result<()>, arguments: &[&str]) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let ns = Netns::new("guest")?;
        attach(&bed, &ns)?;
        ns.ip("link set eth0 up")?;
        let addresses = GUEST
            .map(|it| it.parse())
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        for address in &addresses {
            ns.address("eth0", *address)?;
        }
        ns.ip("-4 route add default via 10.1.255.254")?;
        ns.ip("-6 route add default via fd00:1::fffe")?;
        bed.uplinks[0].router.ip("neigh flush all")?;
        let config = ConfigVolume::new(POLICY)?;
        let agent = start_agent(
            &bed.node,
            &config,
            &[&["--enable-ipv6"], arguments].concat(),
        )?;
        Ok(Self {
            agent,
            guest: Host { ns, addresses },
            _echo: Echo::start(&far)?,
            far,
            bed,
            _config: config,
        })
    }

    /// Checks that the guest is seen with its own address, and pods with the node's.
    fn check(&self, what: &str) -> Result<()> {
        for net in &self.far.addresses {
            let (to, family) = (net.addr(), usize::from(net.addr().is_ipv6()));
            let own = self.guest.addresses[family].addr();
            self.seen_as(&self.guest, to, own)
                .context("the guest")
                .context(what.to_owned())?;
            ping(&self.guest, to).context("the guest's ping")?;
            for pod in &self.bed.pods {
                let node = NODE[family].parse()?;
                self.seen_as(pod, to, node)
                    .context("a pod")
                    .context(what.to_owned())?;
                ping(pod, to).context("a pod's ping")?;
            }
            // Solicitations come from the router's own address.
            let router = &self.bed.uplinks[0].router;
            router.ip("neigh flush all")?;
            ping(router, own).context("a ping of the guest's")?;
        }
        Ok(())
    }

    fn seen_as(&self, host: &Host, to: IpAddr, source: IpAddr) -> Result<()> {
        let to = SocketAddr::new(to, ECHO);
        let seen = [tcp_source(host, to)?, udp_source(host, to)?];
        ensure!(seen == [source; 2], "{to} saw {seen:?}");
        Ok(())
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
        eprintln!("{}", self.agent.netdp(&["status"]).unwrap_or_default());
    }
}

fn macvlan(bed: &Bed, guest: &Netns) -> Result<()> {
    let name = guest.name();
    bed.node.ip(&format!(
        "link add guest0 link eth0 netns {name} type macvlan mode bridge"
    ))?;
    guest.ip("link set guest0 name eth0")?;
    Ok(())
}

/// Makes the uplink a port of a bridge with the node's addresses, and the guest another port.
fn bridge(bed: &Bed, guest: &Netns) -> Result<()> {
    let node = &bed.node;
    node.bridge("br0")?;
    node.ip("addr flush dev eth0")?;
    for (address, default) in [
        (
            "10.1.0.10/16",
            "-4 route replace default via 10.1.255.254 dev br0",
        ),
        (
            "fd00:1::10/64",
            "-6 route replace default via fd00:1::fffe dev br0",
        ),
    ] {
        node.address("br0", address.parse()?)?;
        node.ip("link set eth0 master br0")?;
        node.ip(default)?;
    }
    node.plug("br0", "tap0", guest, "eth0")
}

#[test]
fn a_macvlan_guest_is_left_alone() -> Result<()> {
    World::new(macvlan, &[])?.check("a macvlan")
}

#[test]
fn so_it_is_by_netfilter() -> Result<()> {
    World::new(macvlan, &["--mode=iptables"])?.check("a macvlan")
}

#[test]
fn a_bridged_guest_is_left_alone() -> Result<()> {
    let world = World::new(bridge, &["--uplink=eth0"])?;
    world.check("a port is the uplink")?;
    World::new(bridge, &[])?.check("the bridge is the uplink")
}

/// The node's MAC address changes: pods are masqueraded as before, although the programs receive no
/// notification.
#[test]
fn pods_are_masqueraded_whatever_the_hardware_address_becomes() -> Result<()> {
    let mut world = World::new(macvlan, &[])?;
    world
        .bed
        .node
        .ip("link set eth0 address 02:00:00:00:00:42")?;
    world.bed.uplinks[0].router.ip("neigh flush all")?;
    wait_for(SOON, "the agent to look", || status(&world.agent).is_ok())?;
    world.check("with an agent")?;
    world.agent.stop()?;
    world
        .bed
        .node
        .ip("link set eth0 address 02:00:00:00:00:43")?;
    world.bed.uplinks[0].router.ip("neigh flush all")?;
    world.check("without one")
}
