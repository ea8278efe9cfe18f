//! Requests that arrive on an interface that is not an uplink and whose replies leave by an uplink:
//! the reply has the requested address as its source. Connection tracking does the same: the
//! control.

use crate::common::clients::{Tcp, Udp, any, ping};
use crate::common::{ECHO, Echo, SOON, nft, start_agent, tcx_programs, wait_log};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// The second NIC's network is bypassed: the node routes nothing masqueraded through it.
const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16, 10.9.0.0/16, \
                      'fd00:172::/64', 'fd00:1::/64', 'fd00:9::/64']\n";

/// Address of a load balancer, not assigned to any machine.
const BALANCED: &str = "203.0.113.50";

struct World {
    agent: Agent,
    client: Host,
    bed: Bed,
    _config: ConfigVolume,
}

impl World {
    fn new(mode: &str) -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
            .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
            .pods(2, &["172.16.0.0/24", "fd00:172::/64"])
            .build()?;
        // Its requests arrive through the second router, replies leave through the first.
        let client = bed.server(1, &["198.51.100.1/24", "2001:db8:1::1/64"])?;
        let [first, second] = [0, 1].map(|uplink| &bed.uplinks[uplink].router);
        first.plug("lan", "asymmetric", &client, "eth9")?;
        for address in ["10.1.0.77/16", "fd00:1::77/64"] {
            client.address("eth9", address.parse()?)?;
        }
        for (ns, route) in [
            (&bed.node, "-4 route del 198.51.100.0/24"),
            (&bed.node, "-6 route del 2001:db8:1::/64"),
            (first, "-4 route add 198.51.100.0/24 via 10.1.0.77"),
            (first, "-6 route add 2001:db8:1::/64 via fd00:1::77"),
            (second, "-4 route add 172.16.0.0/24 via 10.9.0.10"),
            (second, "-6 route add fd00:172::/64 via fd00:9::10"),
            (second, "-4 route add 203.0.113.50 via 10.9.0.10"),
        ] {
            ns.ip(route)?;
        }
        nft(
            &bed.node,
            "add table ip lb; \
             add chain ip lb pre { type nat hook prerouting priority dstnat; }; \
             add rule ip lb pre ip daddr 203.0.113.50 tcp dport 80 dnat to 172.16.0.2:7; \
             add rule ip lb pre ip daddr 203.0.113.50 udp dport 80 dnat to 172.16.0.2:7",
        )?;
        let config = ConfigVolume::new(POLICY)?;
        let mode = format!("--mode={mode}");
        let agent = start_agent(&bed.node, &config, &["--enable-ipv6", &mode])?;
        Ok(Self {
            agent,
            client,
            bed,
            _config: config,
        })
    }

    fn asks(&self, to: SocketAddr) -> Result<()> {
        let own: Vec<IpAddr> = self.client.addresses.iter().map(|net| net.addr()).collect();
        let seen = Tcp::connect(&self.client, any(to), to)?.ask();
        let seen = seen.with_context(|| format!("TCP to {to}"))?;
        ensure!(own.contains(&seen.ip()), "{to} saw {seen}");
        let mut udp = Udp::connect(&self.client, any(to), to)?;
        for _ in 0..3 {
            let seen = udp.ask().with_context(|| format!("UDP to {to}"))?;
            ensure!(own.contains(&seen.ip()), "{to} saw {seen}");
        }
        Ok(())
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

fn answers_come_from_where_was_asked(mode: &str) -> Result<()> {
    let world = World::new(mode)?;
    for pod in &world.bed.pods {
        let _echo = Echo::start(pod)?;
        for net in &pod.addresses {
            world.asks(SocketAddr::new(net.addr(), ECHO))?;
            ping(&world.client, net.addr()).context("a ping")?;
        }
        if pod.v4()?.octets() == [172, 16, 0, 2] {
            world.asks(SocketAddr::new(BALANCED.parse()?, 80))?;
        }
    }
    Ok(())
}

#[test]
fn requests_by_an_interface_that_is_no_uplink_are_answered() -> Result<()> {
    answers_come_from_where_was_asked("ebpf")
}

#[test]
fn so_they_are_with_netfilter() -> Result<()> {
    answers_come_from_where_was_asked("iptables")
}

/// The attached program changes with the role of the interface and is removed with the datapath.
#[test]
fn an_interface_is_observed_until_it_is_an_uplink() -> Result<()> {
    let mut world = World::new("ebpf")?;
    let node = &world.bed.node;
    let ours = |ingress: bool, egress: bool| {
        let is = |device: &str| {
            let there = tcx_programs(node, device).unwrap_or_default();
            there.map(|programs| !programs.is_empty()) == [ingress, egress]
        };
        wait_for(SOON, &format!("ingress {ingress}, egress {egress}"), || {
            is("eth1")
        })
    };
    wait_log(&world.agent, "observing eth1: ingress program only")?;
    ours(true, false)?;
    for pod in ["cni0", "pod0"] {
        ensure!(
            tcx_programs(node, pod)?.concat().is_empty(),
            "{pod} is a pod's"
        );
    }
    node.ip("-4 route add 192.0.2.0/24 via 10.9.255.254")?;
    ours(true, true)?;
    world.agent.stop()?;
    // The route is gone, and another agent does not keep the former uplink: this one is named.
    *world.agent.options() = world.agent.options().clone().uplink("eth0");
    node.ip("-4 route del 192.0.2.0/24")?;
    world.agent.restart()?;
    let node = &world.bed.node;
    let there = || tcx_programs(node, "eth1").map(|it| it.map(|all| all.len()));
    wait_for(SOON, "eth1 to be observed", || {
        there().is_ok_and(|now| now == [1, 0])
    })?;
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    ensure!(there()? == [0, 0], "left behind");
    Ok(())
}
