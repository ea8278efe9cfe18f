//! The port search when nearly all, or all, of a destination's ports are used.

use crate::build;
use crate::common::clients::{Udp, from_port};
use crate::common::{ECHO, Echo, clock, drops};
use crate::flood::{Raw, Template, burst};
use crate::site::{Site, Subject, end, ends};
use anyhow::{Context as _, Result, ensure};
use netdp_user::datapath::Maps;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use testbed::{Host, wait_some};

/// Number of times that a client sends a datagram.
const TRIES: usize = 5;

/// Number of flows that must find a port.
const FLOWS: u16 = 20;

/// Returns the ports available to mappings, without the NodePort range.
fn class() -> impl Iterator<Item = u16> {
    (1024..=u16::MAX).filter(|port| !(30_000..=32_767).contains(port))
}

/// Reports whether a port is left free: one of a hundred.
fn is_spare(port: u16) -> bool {
    port % 100 == 99
}

/// Sends a datagram from each port.
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

/// Sends from these ports of two pods, at two times, until all but `others` have an answered
/// mapping: unanswered ones are evicted, and so are query-response exchanges after a short time.
fn fill(site: &mut Site, ports: &[u16], others: usize, to: SocketAddr) -> Result<()> {
    fill_once(site, ports, others, to, 0)?;
    clock::advance(
        site.agent().context("netdp is the subject")?,
        Duration::from_secs(3),
    )?;
    fill_once(site, ports, others, to, 1)
}

/// Sends once from each port; `before` is the number of earlier replies per flow.
fn fill_once(
    site: &mut Site,
    ports: &[u16],
    others: usize,
    to: SocketAddr,
    before: u64,
) -> Result<()> {
    let (first, second) = ports.split_at(ports.len() / 2);
    let mut left = [first.to_vec(), second.to_vec()];
    wait_some(Duration::from_secs(60), "the ports to be used", || {
        let pods = [site.evil().clone(), site.bed.pods[1].clone()];
        for (pod, ports) in pods.iter().zip(&left) {
            send_from(pod, ports, to).ok()?;
        }
        let flows = Maps::open(&site.agent()?.bpffs()).ok()?.flows().ok()?;
        let answered: HashSet<_> = flows
            .iter()
            .filter(|flow| flow.destination == to.ip() && flow.packets_in > before)
            .map(|flow| (flow.source, flow.source_id))
            .collect();
        for (pod, ports) in pods.iter().zip(&mut left) {
            let from = end(pod, to.ip(), 0).ok()?.ip();
            ports.retain(|port| !answered.contains(&(from, *port)));
        }
        (left.iter().map(Vec::len).sum::<usize>() <= others).then_some(())
    })
}

/// Sends a datagram of a new flow of the good pod, and again after a timeout. Returns the flow and its
/// source as the server sees it; `None` without an answer.
fn ask(site: &Site, port: u16, to: SocketAddr) -> Result<Option<(Udp, SocketAddr)>> {
    let mut flow = Udp::connect(site.good(), from_port(port, to), to)?;
    flow.socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..TRIES {
        if let Ok(seen) = flow.ask() {
            return Ok(Some((flow, seen)));
        }
    }
    Ok(None)
}

#[test]
fn the_last_ports_of_a_destination_are_found() -> Result<()> {
    let mut site = Site::start(Subject::Netdp, &[])?;
    for to in ends(&site.far, ECHO) {
        // Answered flows are not evicted.
        let _echo = Echo::start(&site.far)?;
        let most: Vec<u16> = class().filter(|port| !is_spare(*port)).collect();
        fill(&mut site, &most, 0, to)?;
        let mut flows = Vec::new();
        for n in 0..FLOWS {
            // Used by another pod, in no particular order.
            let port = 20_000 + n * 401;
            let seen = ask(&site, port, to)?;
            let (flow, seen) =
                seen.with_context(|| format!("99 % used: no port for {port} to {to}"))?;
            flows.push(flow);
            ensure!(
                seen.ip() == site.on_node(to.ip(), 0)?.ip(),
                "seen as {seen}"
            );
        }
        // A query with one response would be evicted while the other ports are filled, if that takes
        // long: as in `fill`, these flows are asked at two times.
        clock::advance(
            site.agent().context("netdp is the subject")?,
            Duration::from_secs(3),
        )?;
        for flow in &mut flows {
            flow.ask()
                .context("a flow that has one of the last ports")?;
        }
        let spare: Vec<u16> = class().filter(|port| is_spare(*port)).collect();
        fill(&mut site, &spare, FLOWS.into(), to)?;
        let refused = |site: &mut Site| {
            let agent = site.agent().context("netdp is the subject")?;
            drops(agent, "no_free_port")
        };
        for flow in &mut flows {
            flow.ask().context("a flow with the last ports")?;
        }
        let earlier = refused(&mut site)?;
        let seen = ask(&site, 19_001, to)?.map(|(_, seen)| seen);
        ensure!(seen.is_none(), "100 % used: seen as {seen:?}");
        let after = refused(&mut site)?;
        ensure!(after > earlier, "the refusal of a port was not counted");
    }
    Ok(())
}
