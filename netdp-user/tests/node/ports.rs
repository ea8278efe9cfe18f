//! Source ports: preserved if free, changed otherwise, never shared by two flows.

use crate::common::clients::{Tcp, Udp, from_port};
use crate::common::wire::Capture;
use crate::common::{Echo, POLICY_V4, SOON, World, echoes, packets};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use testbed::{HttpServer, Netns, wait_some};

#[test]
fn two_pods_with_the_same_port_both_get_their_answers() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    for to in echoes(&world.far) {
        let from = from_port(40_000, to);
        let kept = SocketAddr::new(world.node_address(to.ip())?, 40_000);
        let mut udp = Vec::new();
        let mut tcp = Vec::new();
        for pod in &world.bed.pods {
            tcp.push(Tcp::connect(pod, from, to)?);
            udp.push(Udp::connect(pod, from, to)?);
        }
        for _ in 0..3 {
            let seen = [tcp[0].ask()?, tcp[1].ask()?];
            check_pair(seen, kept)?;
            let seen = [udp[0].ask()?, udp[1].ask()?];
            check_pair(seen, kept)?;
        }
    }
    // The first flow of each pair kept its port.
    assert_eq!(packets(&world.agent, "ports_changed")?, 4);
    assert_eq!(packets(&world.agent, "mappings_created")?, 8);
    Ok(())
}

/// Checks that the first kept its port and that the second has another one of the same address.
fn check_pair([first, second]: [SocketAddr; 2], kept: SocketAddr) -> Result<()> {
    ensure!(first == kept, "the first is seen as {first}");
    ensure!(second.ip() == kept.ip(), "the second is seen as {second}");
    ensure!(second.port() != kept.port(), "both are seen as {kept}");
    Ok(())
}

/// One source port of a pod can be used towards all servers at the same time.
#[test]
fn a_port_is_free_towards_every_other_server() -> Result<()> {
    let world = World::start()?;
    let other = world.bed.server(0, &["10.3.0.1/24"])?;
    let _far = Echo::start(&world.far)?;
    let _other = Echo::start(&other)?;
    let kept: SocketAddr = "10.1.0.10:40000".parse()?;
    let from = from_port(40_000, kept);
    let mut first = Udp::connect(
        world.pod(0),
        from,
        (world.far.v4()?, crate::common::ECHO).into(),
    )?;
    let mut second = Udp::connect(
        world.pod(1),
        from,
        (other.v4()?, crate::common::ECHO).into(),
    )?;
    for _ in 0..2 {
        assert_eq!(first.ask()?, kept);
        assert_eq!(second.ask()?, kept);
    }
    Ok(())
}

#[test]
fn pings_with_the_same_identifier_are_told_apart() -> Result<()> {
    let world = World::start()?;
    for address in &world.far.addresses {
        let wire = Capture::start(&world.far)?;
        let target = address.addr().to_string();
        let ping =
            |pod: &Netns| pod.spawn(&["ping", "-n", "-e", "77", "-c10", "-i0.05", "-W15", &target]);
        let running = [ping(world.pod(0))?, ping(world.pod(1))?];
        for ping in running {
            let told = ping.finish(SOON)?;
            ensure!(told.contains("10 received"), "{told}");
        }
        let identifiers: BTreeSet<[u8; 2]> = wire
            .packets()?
            .iter()
            .filter(|p| p.destination == address.addr())
            .filter(|p| matches!((p.protocol, p.payload[0]), (1, 8) | (58, 128)))
            .map(|p| [p.payload[4], p.payload[5]])
            .collect();
        assert_eq!(identifiers.len(), 2, "{identifiers:?}");
        ensure!(identifiers.contains(&[0, 77]), "the first kept its own");
    }
    Ok(())
}

/// Sixteen loops in two pods that all use one port range.
#[test]
fn parallel_requests_from_colliding_ports_all_succeed() -> Result<()> {
    const LOOPS_A_POD: usize = 8;
    const REQUESTS: usize = 500;
    let world = World::start()?;
    let http = HttpServer::start(&world.far, (world.far.v4()?, 80))?;
    let http6 = HttpServer::start(&world.far, (world.far.v6()?, 80))?;
    let mut loops = Vec::new();
    for pod in &world.bed.pods {
        for index in 0..LOOPS_A_POD {
            let host = if index % 2 == 0 {
                "10.2.0.1"
            } else {
                "[fd00:2::1]"
            };
            // The fragment makes each URL distinct and is not sent.
            let url = format!("http://{host}/health#[1-{REQUESTS}]");
            loops.push(pod.spawn(&[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--fail-early",
                "--max-time",
                "60",
                "--local-port",
                "40000-44999",
                &url,
            ])?);
        }
    }
    for running in loops {
        let told = running.finish(Duration::from_secs(300))?;
        ensure!(told.lines().count() == REQUESTS, "{told}");
        let node = told.lines().all(|l| l == "10.1.0.10" || l == "fd00:1::10");
        ensure!(node, "{told}");
    }
    let served = http.seen().len() + http6.seen().len();
    assert_eq!(served, 2 * LOOPS_A_POD * REQUESTS);
    let changed = packets(&world.agent, "ports_changed")?;
    eprintln!("{served} requests, {changed} with another port");
    ensure!(changed > 20, "only {changed} ports collided");
    Ok(())
}

/// A program on the node uses the tuple that a pod would get.
#[test]
fn the_node_keeps_the_port_that_it_used_first() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    for to in echoes(&world.far) {
        let from = from_port(41_000, to);
        let own = SocketAddr::new(world.node_address(to.ip())?, 41_000);
        let mut node = (
            Tcp::connect(&world.bed.node, from, to)?,
            Udp::connect(&world.bed.node, from, to)?,
        );
        let mut pod = (
            Tcp::connect(world.pod(0), from, to)?,
            Udp::connect(world.pod(0), from, to)?,
        );
        for _ in 0..3 {
            check_pair([node.0.ask()?, pod.0.ask()?], own)?;
            check_pair([node.1.ask()?, pod.1.ask()?], own)?;
        }
    }
    Ok(())
}

/// A program on the node uses a port that a pod's mapping already has.
#[test]
fn the_node_gets_another_port_where_a_pod_was_first() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    for to in echoes(&world.far) {
        let from = from_port(42_000, to);
        let kept = SocketAddr::new(world.node_address(to.ip())?, 42_000);
        let mut pod = (
            Tcp::connect(world.pod(0), from, to)?,
            Udp::connect(world.pod(0), from, to)?,
        );
        check_pair_source(pod.0.ask()?, kept)?;
        check_pair_source(pod.1.ask()?, kept)?;
        let mut node = (
            Tcp::connect(&world.bed.node, from, to)?,
            Udp::connect(&world.bed.node, from, to)?,
        );
        for _ in 0..3 {
            check_pair([pod.0.ask()?, node.0.ask()?], kept)?;
            check_pair([pod.1.ask()?, node.1.ask()?], kept)?;
        }
    }
    Ok(())
}

fn check_pair_source(seen: SocketAddr, kept: SocketAddr) -> Result<()> {
    ensure!(seen == kept, "the pod is seen as {seen} instead of {kept}");
    Ok(())
}

/// Neither when a pod's own port is reserved nor when one is selected: the ports that may be
/// selected here are adjacent to the reserved ones.
#[test]
fn reserved_ports_are_never_used() -> Result<()> {
    let world = World::with(
        crate::common::POLICY,
        &[
            "--enable-ipv6",
            "--reserved-ports",
            "1024-29990,30000-32767,32800-65535",
        ],
    )?;
    let _echo = Echo::start(&world.far)?;
    for to in echoes(&world.far) {
        let mut seen = BTreeSet::new();
        for (pod, port) in [
            (0, 30_000),
            (0, 31_080),
            (0, 32_767),
            (1, 30_000),
            (1, 32_767),
        ] {
            let from = from_port(port, to);
            // Two destinations that share a slot of the port map take turns: clients retry.
            let udp = wait_some(SOON, "a datagram's answer", || {
                let mut flow = Udp::connect(world.pod(pod), from, to).ok()?;
                let second = Some(Duration::from_secs(1));
                flow.socket.set_read_timeout(second).ok()?;
                flow.ask().ok()
            })?;
            let tcp = wait_some(SOON, "a connection", || {
                Tcp::connect(world.pod(pod), from, to).ok()?.ask().ok()
            })?;
            seen.extend([udp.port(), tcp.port()]);
        }
        let allowed = |port: &u16| matches!(*port, 29_991..30_000 | 32_768..32_800);
        ensure!(seen.iter().all(allowed), "{seen:?}");
        ensure!(seen.len() > 1, "{seen:?}");
        let free = from_port(29_995, to);
        let mut udp = Udp::connect(world.pod(1), free, to)?;
        ensure!(allowed(&udp.ask()?.port()));
    }
    Ok(())
}

/// Once every port towards a server is used, a new flow is dropped and counted, and live ones
/// continue.
#[test]
fn a_flow_without_a_free_port_is_dropped() -> Result<()> {
    let world = World::with(POLICY_V4, &["--reserved-ports", "1024-39999,40002-65535"])?;
    let _echo = Echo::start(&world.far)?;
    let to = SocketAddr::new(IpAddr::from(world.far.v4()?), crate::common::ECHO);
    let mut first = Udp::connect(world.pod(0), from_port(40_000, to), to)?;
    let mut second = Udp::connect(world.pod(1), from_port(40_000, to), to)?;
    assert_eq!(first.ask()?.port(), 40_000);
    assert_eq!(second.ask()?.port(), 40_001);
    let third = Udp::connect(world.pod(1), from_port(40_002, to), to)?;
    third
        .socket
        .set_read_timeout(Some(Duration::from_millis(100)))?;
    third.socket.send(b"x")?;
    ensure!(third.socket.recv(&mut [0; 8]).is_err());
    assert_eq!(crate::common::drops(&world.agent, "no_free_port")?, 1);
    assert_eq!(first.ask()?.port(), 40_000);
    assert_eq!(second.ask()?.port(), 40_001);
    // Ports below 1024 are a separate class.
    let low = Udp::connect(world.pod(1), from_port(700, to), to)?.ask()?;
    assert_eq!(low.port(), 700);
    Ok(())
}
