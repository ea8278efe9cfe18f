//! The source address of masqueraded packets: selected by the route, and one of the egress
//! interface.

use crate::common::clients::{Tcp, any, tcp_source, udp_source};
use crate::common::wire::Capture;
use crate::common::{ECHO, Echo, SOON, drops, nft, start_agent, status};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// Only pods are bypassed.
const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";

struct World {
    agent: Agent,
    bed: Bed,
    _config: ConfigVolume,
}

impl World {
    fn on(bed: Bed, arguments: &[&str]) -> Result<Self> {
        let config = ConfigVolume::new(POLICY)?;
        let agent = start_agent(
            &bed.node,
            &config,
            &[&["--enable-ipv6"], arguments].concat(),
        )?;
        Ok(Self {
            agent,
            bed,
            _config: config,
        })
    }

    fn told(&self, uplink: usize, family: &str) -> Result<String> {
        let told = status(&self.agent)?["report"]["uplinks"][uplink][family].clone();
        Ok(told.as_str().unwrap_or("none").to_owned())
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

/// Checks that new flows of a pod to a server with [`Echo`] have the source `source`.
fn seen_as(pod: &Host, to: IpAddr, source: &str) -> Result<()> {
    let (to, source) = (SocketAddr::new(to, ECHO), source.parse::<IpAddr>()?);
    let tcp = tcp_source(pod, to).with_context(|| format!("TCP to {to}"))?;
    let udp = udp_source(pod, to).with_context(|| format!("UDP to {to}"))?;
    ensure!([tcp, udp] == [source; 2], "{to} saw {tcp}, {udp}");
    Ok(())
}

fn policy_routing(mode: &str) -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
        .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
        .pods(4, &["172.16.0.0/24", "fd00:172::/64"])
        .build()?;
    let router = &bed.uplinks[1].router;
    let server = bed.server(1, &["198.51.100.1/24", "2001:db8:1::1/64"])?;
    let _echo = Echo::start(&server)?;
    // A second network on the second uplink.
    router.address("lan", "10.8.255.254/16".parse()?)?;
    bed.node.address("eth1", "10.8.0.10/16".parse()?)?;
    // Deprecated: used only if a route names it.
    bed.node
        .ip("-6 addr add fd00:9::88/64 dev eth1 nodad preferred_lft 0")?;
    for line in [
        "-4 route del 198.51.100.0/24",
        "-6 route del 2001:db8:1::/64",
        "-4 route add default via 10.8.255.254 table 100",
        "-6 route add default via fd00:9::fffe table 100",
        "-4 rule add from 172.16.0.2 lookup 100",
        "-6 rule add from fd00:172::2 lookup 100",
        "-4 route add default via 10.9.255.254 table 1001",
        "-6 route add default via fd00:9::fffe table 1001",
        "-4 rule add fwmark 0x70/0xf0 lookup 1001",
        "-6 rule add fwmark 0x70/0xf0 lookup 1001",
        "-4 rule add dsfield 0x10 lookup 100",
        "-6 route add default via fd00:9::fffe src fd00:9::88 table 103",
        "-6 rule add dsfield 0x10 lookup 103",
        "-4 route add default via 10.8.255.254 src 10.9.0.10 table 102",
        "-6 route add default via fd00:9::fffe table 102",
        "-4 rule add iif cni0 ipproto tcp dport 7 lookup 102 priority 40000",
        "-6 rule add iif cni0 lookup 102 priority 40000",
    ] {
        bed.node.ip(line)?;
    }
    nft(
        &bed.node,
        "add table inet marks; \
         add chain inet marks pre { type filter hook prerouting priority mangle; }; \
         add rule inet marks pre ip saddr 172.16.0.3 meta mark set 0x171; \
         add rule inet marks pre ip6 saddr fd00:172::3 meta mark set 0x171; \
         add rule inet marks pre ip saddr 172.16.0.5 ip dscp set 0x04; \
         add rule inet marks pre ip6 saddr fd00:172::5 ip6 dscp set 0x04",
    )?;
    let world = World::on(bed, &[&format!("--mode={mode}")])?;
    let pods = &world.bed.pods;
    let (v4, v6) = ("198.51.100.1".parse()?, "2001:db8:1::1".parse()?);
    seen_as(&pods[0], v4, "10.8.0.10").context("by source")?;
    seen_as(&pods[0], v6, "fd00:9::10").context("by source")?;
    seen_as(&pods[1], v4, "10.9.0.10").context("by mark")?;
    seen_as(&pods[1], v6, "fd00:9::10").context("by mark")?;
    seen_as(&pods[3], v4, "10.8.0.10").context("by DSCP")?;
    if mode == "ebpf" {
        // netfilter uses any address of the interface.
        seen_as(&pods[3], v6, "fd00:9::88").context("by DSCP")?;
        // Of lower priority than the main table's default route; used once that is deleted.
        world.bed.node.ip("-4 route del default")?;
        let seen = tcp_source(&pods[2], SocketAddr::new(v4, ECHO))?;
        ensure!(
            seen == IpAddr::from([10, 9, 0, 10]),
            "by port, with src: {seen}"
        );
    }
    Ok(())
}

#[test]
fn the_source_is_that_of_the_route_that_the_packet_took() -> Result<()> {
    policy_routing("ebpf")
}

#[test]
fn so_it_is_with_netfilter() -> Result<()> {
    policy_routing("iptables")
}

/// The kernel would borrow one from another interface.
#[test]
fn without_an_address_on_the_uplink_nothing_leaves() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let router = &bed.uplinks[0].router;
    router.plug("lan", "bare", &bed.node, "eth1")?;
    bed.node.ip("-4 route add 203.0.113.0/24 dev eth1")?;
    bed.node.ip("-6 route add 2001:db8:7::/64 dev eth1")?;
    for address in ["203.0.113.1/24", "2001:db8:7::1/64"] {
        router.address("lan", address.parse()?)?;
    }
    let world = World::on(bed, &[])?;
    let router = &world.bed.uplinks[0].router;
    let wire = Capture::start(router)?;
    for to in ["203.0.113.1:9", "[2001:db8:7::1]:9"] {
        let before = drops(&world.agent, "no_source_address")?;
        let to: SocketAddr = to.parse()?;
        let socket = world.bed.pods[0].open(|| UdpSocket::bind(any(to)))?;
        wait_for(SOON, &format!("what is sent to {to} to be dropped"), || {
            // The socket may report an earlier error.
            drop(socket.send_to(b"nobody", to));
            drops(&world.agent, "no_source_address").is_ok_and(|now| now > before)
        })?;
    }
    for packet in wire.packets()? {
        ensure!(!packet.payload.ends_with(b"nobody"), "{packet:?}");
    }
    Ok(())
}

#[test]
fn temporary_addresses_are_not_chosen() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let _echo = Echo::start(&far)?;
    let node = &bed.node;
    node.sysctl("net.ipv6.conf.eth0.use_tempaddr", "2")?;
    node.ip("-6 addr flush dev eth0 scope global")?;
    node.ip("-6 addr add fd00:1::10/64 dev eth0 nodad mngtmpaddr")?;
    wait_for(SOON, "a temporary address", || {
        let shown = node.ip("-6 addr show dev eth0 temporary -tentative");
        shown.is_ok_and(|shown| shown.contains("temporary"))
    })?;
    node.ip("-6 route replace default via fd00:1::fffe dev eth0")?;
    let chosen = node.ip("-6 route get fd00:2::1")?;
    ensure!(
        !chosen.contains("src fd00:1::10 "),
        "the kernel prefers it: {chosen}"
    );
    let world = World::on(bed, &[])?;
    seen_as(&world.bed.pods[0], far.v6()?.into(), "fd00:1::10")?;
    ensure!(world.told(0, "v6")? == "fd00:1::10");
    Ok(())
}

/// Host addresses (/32) are equivalent except for their order, which a renewal changes.
#[test]
fn the_address_that_the_node_is_known_by_is_preferred_among_equals() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let _echo = Echo::start(&far)?;
    let node = &bed.node;
    for line in [
        "-4 addr flush dev eth0",
        "-6 addr flush dev eth0 scope global",
        "-4 addr add 10.1.0.10/32 dev eth0",
        "-4 addr add 10.1.0.99/32 dev eth0",
        "-6 addr add fd00:1::99/128 dev eth0 nodad",
        "-6 addr add fd00:1::10/128 dev eth0 nodad",
        "-4 route add 10.1.255.254 dev eth0",
        "-4 route add default via 10.1.255.254",
        "-6 route replace fd00:1::fffe dev eth0",
        "-6 route replace default via fd00:1::fffe dev eth0",
    ] {
        node.ip(line)?;
    }
    let world = World::on(bed, &["--node-ip=10.1.0.10,fd00:1::10"])?;
    let node = &world.bed.node;
    let (v4, v6) = (far.v4()?.into(), far.v6()?.into());
    for round in ["at first", "after a renewal"] {
        wait_for(SOON, "the addresses to be known", || {
            let told = [world.told(0, "v4"), world.told(0, "v6")];
            told.map(Result::ok) == ["10.1.0.10", "fd00:1::10"].map(|it| Some(it.to_owned()))
        })?;
        for pod in &world.bed.pods {
            seen_as(pod, v4, "10.1.0.10").context(round)?;
            seen_as(pod, v6, "fd00:1::10").context(round)?;
        }
        node.ip("-4 addr del 10.1.0.10/32 dev eth0")?;
        node.ip("-6 addr del fd00:1::10/128 dev eth0")?;
        wait_for(SOON, "the other address to be used", || {
            world.told(0, "v4").is_ok_and(|told| told == "10.1.0.99")
        })?;
        node.ip("-4 addr add 10.1.0.10/32 dev eth0")?;
        node.ip("-6 addr add fd00:1::10/128 dev eth0 nodad")?;
    }
    Ok(())
}

/// Addresses from `ip route add local` are the node's, too.
#[test]
fn a_socket_of_the_node_on_a_routed_address_keeps_it() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let _echo = Echo::start(&far)?;
    let (node, router) = (&bed.node, &bed.uplinks[0].router);
    node.ip("-4 route add local 198.18.0.0/24 dev lo")?;
    node.ip("-6 route add local 2001:db8:18::/64 dev lo")?;
    // IPv6 selects an address differently.
    node.sysctl("net.ipv6.ip_nonlocal_bind", "1")?;
    router.ip("-4 route add 198.18.0.0/24 via 10.1.0.10")?;
    router.ip("-6 route add 2001:db8:18::/64 via fd00:1::10")?;
    let world = World::on(bed, &[])?;
    let node = &world.bed.node;
    for (own, to) in [
        ("198.18.0.5:0", far.v4()?.into()),
        ("[2001:db8:18::5]:0", far.v6()?.into()),
    ] {
        let (own, to): (SocketAddr, IpAddr) = (own.parse()?, to);
        let seen = Tcp::connect(node, own, SocketAddr::new(to, ECHO))?.ask()?;
        ensure!(seen.ip() == own.ip(), "{own} was seen as {seen}");
    }
    // A route that is added later is detected.
    node.ip("-4 route add local 198.19.0.7/32 dev lo")?;
    world.bed.uplinks[0]
        .router
        .ip("-4 route add 198.19.0.7/32 via 10.1.0.10")?;
    let to = SocketAddr::new(far.v4()?.into(), ECHO);
    wait_for(SOON, "a later address to be the node's", || {
        let seen = Tcp::connect(node, ([198, 19, 0, 7], 0).into(), to).and_then(|mut it| it.ask());
        seen.is_ok_and(|seen| seen.ip() == IpAddr::from([198, 19, 0, 7]))
    })
}
