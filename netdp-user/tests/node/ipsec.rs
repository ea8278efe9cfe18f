//! IPsec policies for packets with the node's address: pods' packets get it after the kernel's
//! policy lookup.

use crate::common::clients::{any, tcp_source, udp_source};
use crate::common::wire::Capture;
use crate::common::{Echo, POLICY, SOON, World, drops, echoes, nft, same_family, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use testbed::{Bed, Host, Netns, wait_for};

/// Adds or deletes policies that protect packets from the node's addresses to the server's
/// networks.
fn protect(node: &Netns, verb: &str) -> Result<()> {
    for (from, to, ends) in [
        ("10.1.0.10/32", "10.2.0.0/24", ["10.1.0.10", "10.2.0.1"]),
        ("fd00:1::10/128", "fd00:2::/64", ["fd00:1::10", "fd00:2::1"]),
    ] {
        let template = match verb {
            "add" => format!(
                "tmpl src {} dst {} proto esp mode transport",
                ends[0], ends[1]
            ),
            _ => String::new(),
        };
        node.ip(&format!(
            "xfrm policy {verb} dir out src {from} dst {to} {template}"
        ))?;
    }
    Ok(())
}

/// Sends a few datagrams; only a host that receives them in clear answers.
fn send(pod: &Netns, to: SocketAddr) -> Result<()> {
    let socket = pod.enter(|| UdpSocket::bind(any(to)))??;
    for _ in 0..3 {
        // A refusal is returned as an error.
        let _ = socket.send_to(b"?", to);
    }
    Ok(())
}

/// Returns the sources of pods' datagrams that the server receives in clear.
fn in_clear(bed: &Bed, far: &Host) -> Result<Vec<IpAddr>> {
    let wire = Capture::start(far)?;
    for to in echoes(far) {
        for pod in &bed.pods {
            send(pod, to)?;
        }
    }
    let to: Vec<IpAddr> = echoes(far).iter().map(SocketAddr::ip).collect();
    let seen = wire.packets()?.into_iter();
    let seen = seen.filter(|packet| packet.protocol == 17 && to.contains(&packet.destination));
    Ok(seen.map(|packet| packet.source).collect())
}

fn all_translated(world: &World) -> Result<()> {
    for to in echoes(&world.far) {
        let node = world.node_address(to.ip())?;
        ensure!(tcp_source(world.pod(0), to)? == node);
        ensure!(udp_source(world.pod(0), to)? == node);
    }
    Ok(())
}

/// netfilter repeats the policy lookup: without a state nothing leaves.
#[test]
fn what_an_ipsec_policy_covers_does_not_leave_in_clear() -> Result<()> {
    let mut world = World::with(&format!("{POLICY}resyncInterval: 1h\n"), &["--enable-ipv6"])?;
    let node = world.bed.node.clone();
    let _echo = Echo::start(&world.far)?;
    let mut open = Vec::new();
    for to in echoes(&world.far) {
        let socket = world.pod(0).enter(|| UdpSocket::bind(any(to)))??;
        socket.send_to(b"?", to)?;
        open.push((socket, to));
    }
    protect(&node, "add")?;
    for net in ["10.2.0.0/24", "fd00:2::/64"] {
        let words = format!("dst {net} covers after translation is dropped");
        wait_log(&world.agent, &words)?;
        let text = world.agent.netdp(&["status"])?;
        let mut lines = text.lines().filter(|line| line.starts_with("ipsec "));
        ensure!(lines.any(|line| line.contains(&words)), "{text}");
    }
    wait_log(&world.agent, "mappings ended: an IPsec policy covers them")?;
    // Nor do packets of existing flows.
    let wire = Capture::start(&world.far)?;
    for (socket, to) in &open {
        let before = drops(&world.agent, "ipsec_policy")?;
        socket.send_to(b"?", to)?;
        wait_for(SOON, "the datagram to be dropped", || {
            drops(&world.agent, "ipsec_policy").is_ok_and(|now| now > before)
        })?;
    }
    let to: Vec<IpAddr> = echoes(&world.far).iter().map(SocketAddr::ip).collect();
    for packet in wire.packets()? {
        ensure!(!to.contains(&packet.destination), "in clear: {packet:?}");
    }
    let seen = in_clear(&world.bed, &world.far)?;
    ensure!(seen.is_empty(), "in clear: {seen:?}");
    ensure!(drops(&world.agent, "ipsec_policy")? >= 4);
    wait_log(
        &world.agent,
        "an IPsec policy covers it, and it would leave in clear text",
    )?;
    // A starting agent reads the policies before it attaches.
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    world.agent.restart()?;
    let seen = in_clear(&world.bed, &world.far)?;
    ensure!(seen.is_empty(), "in clear: {seen:?}");
    ensure!(status(&world.agent)?["datapath"] == "in force");
    protect(&node, "delete")?;
    wait_for(SOON, "the policies to be forgotten", || {
        all_translated(&world).is_ok()
    })?;
    // The control: netfilter.
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    nft(
        &node,
        "add table inet masq; add chain inet masq out { type nat hook postrouting priority 100; }; \
         add rule inet masq out oifname eth0 masquerade",
    )?;
    let to = echoes(&world.far)[0];
    let own = same_family(&world.bed.uplinks[0].addresses, to.ip())?;
    ensure!(udp_source(world.pod(1), to)? == own);
    protect(&node, "add")?;
    let seen = in_clear(&world.bed, &world.far).context("netfilter")?;
    ensure!(seen.is_empty(), "netfilter lets leave in clear: {seen:?}");
    Ok(())
}

/// If a policy also covers pods' own addresses, the kernel applies it when it routes the packet:
/// the packet does not reach the hook and is not counted as dropped there.
#[test]
fn what_is_covered_with_pods_addresses_is_the_kernels() -> Result<()> {
    let world = World::with(
        &format!("{POLICY}resyncInterval: 1h\n"),
        &[
            "--enable-ipv6",
            "--pod-cidr=172.16.0.0/16",
            "--pod-cidr=fd00:172::/64",
        ],
    )?;
    let node = &world.bed.node;
    let _echo = Echo::start(&world.far)?;
    all_translated(&world)?;
    for (to, ends) in [
        ("10.2.0.0/24", ["10.1.0.10", "10.2.0.1"]),
        ("fd00:2::/64", ["fd00:1::10", "fd00:2::1"]),
    ] {
        let any = if to.contains(':') {
            "::/0"
        } else {
            "0.0.0.0/0"
        };
        node.ip(&format!(
            "xfrm policy add dir out src {any} dst {to} tmpl src {} dst {} proto esp mode tunnel",
            ends[0], ends[1]
        ))?;
        wait_log(
            &world.agent,
            &format!("policy src {any} dst {to} covers after translation is dropped, except"),
        )?;
    }
    let seen = in_clear(&world.bed, &world.far)?;
    ensure!(seen.is_empty(), "in clear: {seen:?}");
    let dropped = drops(&world.agent, "ipsec_policy")?;
    ensure!(dropped == 0, "{dropped} have arrived at netdp");
    Ok(())
}
