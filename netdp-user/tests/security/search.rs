//! The search for a port where nearly all of a destination's, or all, are taken.

use crate::build;
use crate::common::clients::{Udp, from_port};
use crate::common::{ECHO, Echo, drops, flows};
use crate::flood::{Raw, Template, burst};
use crate::site::{Site, Subject, end, ends};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use xtask::testbed::{Host, wait_some};

/// Times that a client sends a datagram.
const TRIES: usize = 5;

/// Flows that have to find a port.
const FLOWS: u16 = 20;

/// The ports that mappings may use: those of NodePorts are not among them.
fn class() -> impl Iterator<Item = u16> {
    (1024..=u16::MAX).filter(|port| !(30_000..=32_767).contains(port))
}

/// One of a hundred.
fn is_spare(port: u16) -> bool {
    port % 100 == 99
}

/// A datagram from each port.
fn send_from(pod: &Host, ports: &[u16], to: SocketAddr) -> Result<()> {
    let from = (end(pod, to.ip(), 0)?.ip(), 1);
    let packet = build::udp(from, (to.ip(), to.port()), b"x");
    let raw = Raw::towards(pod, to.ip())?;
    burst(
        &raw,
        &Template::new(&packet),
        u32::try_from(ports.len())?,
        |n, packet| {
            let at = usize::try_from(n).unwrap_or(0);
            packet.sport(ports.get(at).copied().unwrap_or(0));
        },
    )
}

/// The ports on the wire that are in use towards a destination.
fn used(site: &mut Site, to: SocketAddr) -> Result<BTreeSet<u16>> {
    let agent = site.agent().context("netdp is the subject")?;
    let all = flows(agent)?.into_iter();
    let there = all.filter(|flow| flow["destination"] == to.ip().to_string());
    there
        .map(|flow| Ok(u16::try_from(flow["nat_id"].as_u64().context("a port")?)?))
        .collect()
}

/// Sends from these ports of two pods until all that is wanted is used.
fn fill(site: &mut Site, wanted: &BTreeSet<u16>, to: SocketAddr) -> Result<()> {
    wait_some(Duration::from_secs(60), "the ports to be used", || {
        let now = used(site, to).ok()?;
        let missing: Vec<u16> = wanted.difference(&now).copied().collect();
        let (first, second) = missing.split_at(missing.len() / 2);
        send_from(site.evil(), first, to).ok()?;
        send_from(&site.bed.pods[1], second, to).ok()?;
        missing.is_empty().then_some(())
    })
}

/// A flow of the good pod; the time-out of an answer is a retransmission's.
fn ask(site: &Site, port: u16, to: SocketAddr) -> Result<Option<SocketAddr>> {
    let mut flow = Udp::connect(site.good(), from_port(port, to), to)?;
    flow.socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..TRIES {
        if let Ok(seen) = flow.ask() {
            return Ok(Some(seen));
        }
    }
    Ok(None)
}

#[test]
fn the_last_ports_of_a_destination_are_found() -> Result<()> {
    let mut site = Site::start(Subject::Netdp, &[])?;
    for to in ends(&site.far, ECHO) {
        let most: BTreeSet<u16> = class().filter(|port| !is_spare(*port)).collect();
        fill(&mut site, &most, to)?;
        let echo = Echo::start(&site.far)?;
        for n in 0..FLOWS {
            // Taken by another pod, and in no order.
            let port = 20_000 + n * 401;
            let seen = ask(&site, port, to)?;
            let seen = seen.with_context(|| format!("99 % used: no port for {port} to {to}"))?;
            ensure!(
                seen.ip() == site.on_node(to.ip(), 0)?.ip(),
                "seen as {seen}"
            );
        }
        drop(echo);
        fill(&mut site, &class().collect(), to)?;
        let _echo = Echo::start(&site.far)?;
        let refused = |site: &mut Site| {
            let agent = site.agent().context("netdp is the subject")?;
            drops(agent, "no_free_port")
        };
        let before = refused(&mut site)?;
        let seen = ask(&site, 19_001, to)?;
        ensure!(seen.is_none(), "100 % used: seen as {seen:?}");
        let after = refused(&mut site)?;
        ensure!(after > before, "the refusal of a port was not counted");
    }
    Ok(())
}
