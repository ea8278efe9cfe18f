//! Pods are masqueraded on every route to a masqueraded destination, by whatever interface.
//! ip-masq-agent's rules, which match no interface, are the control.

use crate::common::clients::{tcp_source, udp_source};
use crate::common::wire::Capture;
use crate::common::{ECHO, Echo, SOON, options, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// Pods and the node's first network are bypassed.
const POLICY: &str =
    "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16, 'fd00:172::/64', 'fd00:1::/64']\n";

/// Address of the probes.
const PROBES: &str = "127.0.0.1:10250";

/// A node with a second NIC.
struct World {
    agent: Agent,
    bed: Bed,
    config: ConfigVolume,
}

impl World {
    fn new(arguments: &[&str]) -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
            .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
            .pods(2, &["172.16.0.0/24", "fd00:172::/64"])
            .build()?;
        let config = ConfigVolume::new(POLICY)?;
        let options = options(&config, &[&["--enable-ipv6"], arguments].concat());
        let agent = Agent::start(&bed.node, options)?;
        Ok(Self { agent, bed, config })
    }

    /// Checks that new flows of both pods to every address of `server` have `sources`, and that it
    /// receives no packet with a pod's address.
    fn seen_as(&self, server: &Host, sources: [&str; 2], what: &str) -> Result<()> {
        let _echo = Echo::start(server)?;
        let wire = Capture::start(server)?;
        for net in &server.addresses {
            let source: IpAddr = sources[usize::from(net.addr().is_ipv6())].parse()?;
            let to = SocketAddr::new(net.addr(), ECHO);
            for pod in &self.bed.pods {
                let tcp = tcp_source(pod, to).with_context(|| format!("{what}: TCP to {to}"))?;
                let udp = udp_source(pod, to).with_context(|| format!("{what}: UDP to {to}"))?;
                ensure!([tcp, udp] == [source; 2], "{what}: {to} saw {tcp}, {udp}");
            }
        }
        for packet in wire.packets()? {
            let pods = self.bed.pods.iter().flat_map(|pod| &pod.addresses);
            for pod in pods {
                ensure!(pod.addr() != packet.source, "{what}: leaked {packet:?}");
            }
        }
        Ok(())
    }

    /// Waits until the agent has processed a route, if its mode requires that.
    fn wait_uplinks(&self, mode: &str, wanted: &[&str]) -> Result<()> {
        if mode == "iptables" {
            return Ok(());
        }
        let mut seen = Vec::new();
        wait_for(SOON, &format!("the uplinks {wanted:?}"), || {
            seen = uplinks(&self.agent).unwrap_or_default();
            seen == wanted
        })
        .with_context(|| format!("they are {seen:?}"))
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

fn uplinks(agent: &Agent) -> Result<Vec<String>> {
    let status = status(agent)?;
    let uplinks = status["report"]["uplinks"].as_array().context("uplinks")?;
    let name = |uplink: &Value| uplink["name"].as_str().unwrap_or_default().to_owned();
    Ok(uplinks.iter().map(name).collect())
}

const SECOND: [&str; 2] = ["10.9.0.10", "fd00:9::10"];

fn by_routes_of_any_shape(mode: &str) -> Result<()> {
    let world = World::new(&[&format!("--mode={mode}")])?;
    let Bed { node, uplinks, .. } = &world.bed;
    world.wait_uplinks(mode, &["eth0", "eth1"])?;
    let neighbour = world.bed.on_link(1, &["10.9.0.20/16", "fd00:9::20/64"])?;
    world.seen_as(&neighbour, SECOND, "on the second NIC's own network")?;

    let server = world.bed.server(1, &["10.10.0.1/24", "fd00:10::1/64"])?;
    world.seen_as(&server, SECOND, "by a static route")?;

    // Two halves of the address space, as VPN clients set them.
    let anywhere = world
        .bed
        .server(1, &["198.51.100.1/24", "2001:db8:1::1/64"])?;
    for route in [
        "-4 route del 198.51.100.0/24",
        "-6 route del 2001:db8:1::/64",
        "-4 route add 0.0.0.0/1 via 10.9.255.254",
        "-4 route add 128.0.0.0/1 via 10.9.255.254",
        "-6 route add ::/1 via fd00:9::fffe",
        "-6 route add 8000::/1 via fd00:9::fffe",
    ] {
        node.ip(route)?;
    }
    world.seen_as(&anywhere, SECOND, "by half defaults")?;
    for route in ["-4 route del 0.0.0.0/1", "-4 route del 128.0.0.0/1"] {
        node.ip(route)?;
    }
    for route in ["-6 route del ::/1", "-6 route del 8000::/1"] {
        node.ip(route)?;
    }

    // A tunnel without a router, to a network in a routing table of its own.
    let router = &uplinks[1].router;
    for (ns, local, remote, own) in [
        (node, "10.9.0.10", "10.9.255.254", "10.70.0.1"),
        (router, "10.9.255.254", "10.9.0.10", "10.70.0.2"),
    ] {
        ns.ip(&format!(
            "link add tunnel type vxlan id 7 dstport 4789 local {local} remote {remote}"
        ))?;
        ns.ip("link set tunnel up")?;
        ns.ip(&format!("addr add {own}/32 dev tunnel"))?;
    }
    router.ip("route add 10.70.0.1/32 dev tunnel")?;
    node.ip("route add 198.51.100.0/24 dev tunnel src 10.70.0.1 table 1007")?;
    node.ip("rule add from 172.16.0.0/24 to 198.51.100.0/24 lookup 1007")?;
    // It resolves addresses behind the tunnel as if they were on the link.
    router.sysctl("net.ipv4.conf.tunnel.proxy_arp", "1")?;
    world.wait_uplinks(mode, &["eth0", "eth1", "tunnel"])?;
    let only_v4 = Host {
        ns: anywhere.ns.clone(),
        addresses: anywhere.addresses[..1].to_vec(),
    };
    world.seen_as(
        &only_v4,
        ["10.70.0.1", "::"],
        "by a tunnel in another table",
    )
}

#[test]
fn pods_are_masqueraded_by_routes_of_any_shape() -> Result<()> {
    by_routes_of_any_shape("ebpf")
}

#[test]
fn so_are_they_by_netfilter() -> Result<()> {
    by_routes_of_any_shape("iptables")
}

/// An uplink that the administrator omitted is reported everywhere, and the chains that masquerade
/// on it stay.
#[test]
fn an_uplink_that_is_not_named_is_told_of_and_keeps_the_chains() -> Result<()> {
    let probes = format!("--http-listen={PROBES}");
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .uplink("eth1", &["10.9.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()?;
    bed.kubelet_chain("nft", "KUBE-IPTABLES-HINT")?;
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16]\n")?;
    let mut agent = Agent::start(&bed.node, options(&config, &["--mode=iptables"]))?;
    agent.stop()?;
    let options = agent.options();
    options.replace("--mode=iptables", "--mode=ebpf");
    *options = options.clone().uplink("eth0").arg(probes);
    agent.restart()?;
    let mut world = World { agent, bed, config };
    let agent = &world.agent;
    let leak = "eth1 is not an uplink, but the route to 10.9.0.0/16";
    wait_log(agent, leak)?;
    wait_log(
        agent,
        "taking over chain IP-MASQ-AGENT (IPv4, nft): eth1 is not an uplink",
    )?;
    wait_for(SOON, "the status to say so", || {
        let told = agent.netdp(&["status"]).unwrap_or_default();
        told.contains(&format!("leak       {leak}"))
    })?;
    let ask = || {
        let url = format!("http://{PROBES}/readyz");
        let argv = ["curl", "-s", "-m", "10", "-w", " %{http_code}", &url];
        world.bed.node.run(&argv).unwrap_or_default()
    };
    wait_for(SOON, "/readyz to say so", || {
        let told = ask();
        told.contains(leak) && told.ends_with("503")
    })?;
    // netfilter still masquerades.
    let neighbour = world.bed.on_link(1, &["10.9.0.20/16"])?;
    world.seen_as(&neighbour, SECOND, "where the chain stays")?;
    // Once nothing leaks, the chain is removed.
    let bypassed = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16, 10.9.0.0/16]\n";
    world.config.write(bypassed)?;
    wait_log(agent, "taken over: chain IP-MASQ-AGENT (IPv4, nft)")?;
    wait_for(SOON, "/readyz to be well", || ask().ends_with("200"))
}
