//! Packets with the node's own source address, forged or redirected by third-party rules, do not
//! use up the capacity for pods' flows.

use crate::build::{self, SYN};
use crate::common::clients::{any, tcp_source, udp_source};
use crate::common::{Echo, SOON, echoes, nft};
use crate::flood::{Raw, Template, burst};
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::talk::{Found, who_udp};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use testbed::{EchoServer, Host, Netns, UdpEchoServer, veth, wait_some};

/// More than the default capacity.
const MANY: u32 = 300_000;

/// A small capacity, and more packets than that.
const SMALL: &str = "4096";
const FEW: u32 = 20_000;

/// Checks that new flows of a pod work at once.
fn pods_work(site: &mut Site) -> Result<()> {
    let _echo = Echo::start(&site.other)?;
    let mut wrongs = Wrongs::default();
    for to in echoes(&site.other) {
        for n in 0..5 {
            let tcp = tcp_source(site.good(), to).map(drop);
            let udp = udp_source(site.good(), to).map(drop);
            let failed = tcp.is_err() || udp.is_err();
            wrongs.note(format!("connection {n} to {to}"), tcp);
            wrongs.note(format!("datagram {n} to {to}"), udp);
            if failed {
                break;
            }
        }
    }
    wrongs.note("status", site.not_full());
    wrongs.none()
}

/// Sets source and destination port of packet `n`: each pair once.
fn ports(n: u32, packet: &mut Template) {
    let low = u16::try_from(n % 60_000).unwrap_or(0);
    packet.sport(1024 + low);
    packet.dport(1024 + u16::try_from(n / 60_000).unwrap_or(0));
}

/// Linux forwards packets whose source is its own IPv6 address.
fn forged(subject: Subject) -> Result<()> {
    let mut site = Site::start(subject, &[])?;
    let nobody: IpAddr = "fd00:66::1".parse()?;
    let node = site.on_node(nobody, 1)?;
    let raw = Raw::towards(site.evil(), nobody)?;
    let udp = build::udp((node.ip(), 1), (nobody, 1), b"x");
    let tcp = build::tcp((node.ip(), 1), (nobody, 1), SYN, (1, 0), b"");
    for (packet, count) in [(udp, MANY), (tcp, MANY / 3)] {
        burst(&raw, &Template::new(&packet), count, ports)?;
    }
    pods_work(&mut site)
}

#[test]
fn packets_forged_with_the_nodes_address_use_up_no_room() -> Result<()> {
    both(Control::Holds, forged)
}

/// If a port of the node leads to a pod, the pod's replies leave with the node's address.
fn answered(subject: Subject, room: &str, count: u32) -> Result<()> {
    let mut site = Site::start(subject, &["--max-flows", room])?;
    for (family, to) in [("ip", "172.16.0.2:7"), ("ip6", "[fd00:172::2]:7")] {
        nft(
            site.node(),
            &format!(
                "add table {family} ports; \
                 add chain {family} ports pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule {family} ports pre udp dport 30080 dnat to {to}"
            ),
        )?;
    }
    let _echo = Echo::start(site.good())?;
    for client in ends(&site.far, 1) {
        let node = site.on_node(client.ip(), 30_080)?;
        let raw = Raw::towards(&site.far, node.ip())?;
        let packet = build::udp((client.ip(), 1), (node.ip(), node.port()), b"x");
        // From other ports and other hosts.
        burst(&raw, &Template::new(&packet), count / 2, |n, packet| {
            packet.sport(1024 + u16::try_from(n % 60_000).unwrap_or(0));
            packet.source(2 + u16::try_from(n / 60_000).unwrap_or(0));
        })?;
        // The burst may still occupy the server's receive buffer.
        wait_some(SOON, "the service's answer", || {
            let found = who_udp(&site.far, any(node), node).ok()?;
            matches!(found, Found::Named(_)).then_some(())
        })?;
    }
    pods_work(&mut site)
}

#[test]
fn answers_of_a_node_port_use_up_no_room() -> Result<()> {
    both(Control::Holds, |subject| answered(subject, SMALL, FEW))
}

/// Adds a container behind a bridge-like device, masqueraded by its own rule.
fn container(site: &Site) -> Result<Host> {
    let container = Host {
        ns: Netns::new("container")?,
        addresses: vec!["172.30.0.2/24".parse()?, "fd00:30::2/64".parse()?],
    };
    veth(site.node(), "docker0", &container, "eth0")?;
    for (own, gateway) in container.addresses.iter().zip(["172.30.0.1", "fd00:30::1"]) {
        let gateway: IpAddr = gateway.parse()?;
        let length = own.prefix_len();
        site.node()
            .address("docker0", format!("{gateway}/{length}").parse()?)?;
        container.address("eth0", *own)?;
        let all = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        container.route(all.parse()?, gateway)?;
        let (tool, family) = match gateway {
            IpAddr::V4(_) => ("iptables", own.trunc()),
            IpAddr::V6(_) => ("ip6tables", own.trunc()),
        };
        site.node().run(&[
            tool,
            "--wait",
            "60",
            "-t",
            "nat",
            "-I",
            "POSTROUTING",
            "-s",
            &family.to_string(),
            "!",
            "-o",
            "docker0",
            "-j",
            "MASQUERADE",
        ])?;
    }
    Ok(container)
}

fn masqueraded_by_others(subject: Subject, room: &str, count: u32) -> Result<()> {
    let mut site = Site::start(subject, &["--max-flows", room])?;
    let container = container(&site)?;
    for nobody in ["10.66.0.1", "fd00:66::1"] {
        let nobody: IpAddr = nobody.parse()?;
        let from = (end(&container, nobody, 0)?.ip(), 1);
        let raw = Raw::towards(&container, nobody)?;
        let udp = build::udp(from, (nobody, 1), b"x");
        let tcp = build::tcp(from, (nobody, 1), SYN, (1, 0), b"");
        for packet in [udp, tcp] {
            burst(&raw, &Template::new(&packet), count / 4, ports)?;
        }
    }
    pods_work(&mut site)?;
    // The container's own flows work, too.
    for to in ends(&site.far, 8) {
        let _tcp = EchoServer::start(&site.far, to)?;
        let _udp = UdpEchoServer::start(&site.far, to)?;
        let node = site.on_node(to.ip(), 0)?.ip();
        let seen = wait_some(SOON, "the container's connection", || {
            tcp_source(&container, to).ok()
        })?;
        ensure!(seen == node, "the container is seen as {seen}");
        let seen = udp_source(&container, to).context("the container's datagram")?;
        ensure!(seen == node, "the container is seen as {seen}");
    }
    Ok(())
}

#[test]
fn flows_that_other_rules_masquerade_use_up_no_room() -> Result<()> {
    both(Control::Holds, |subject| {
        masqueraded_by_others(subject, SMALL, FEW)
    })
}

/// As [`packets_forged_with_the_nodes_address_use_up_no_room`], with a small capacity.
#[test]
fn little_room_is_not_used_up_by_forged_packets() -> Result<()> {
    let mut site = Site::start(Subject::Netdp, &["--max-flows", SMALL])?;
    let nobody: IpAddr = "fd00:66::1".parse()?;
    let node: SocketAddr = site.on_node(nobody, 1)?;
    let raw = Raw::towards(site.evil(), nobody)?;
    let udp = build::udp((node.ip(), 1), (nobody, 1), b"x");
    burst(&raw, &Template::new(&udp), FEW, ports)?;
    pods_work(&mut site)
}
