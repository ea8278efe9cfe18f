//! Every port of a destination is used, then new flows are refused; a full table refuses them too.
//! Live flows are never affected.

use crate::common::clients::{Tcp, Udp, any, from_port};
use crate::common::{ECHO, Echo, World, clock, drops, echoes, mappings};
use anyhow::{Context as _, Result, ensure};
use netdp_user::datapath::Maps;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use testbed::{Host, wait_for, wait_some};

const NARROW: std::ops::RangeInclusive<u16> = 40_000..=40_099;

/// Longer than the interval between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);

/// Size of the port class of unprivileged ports: 1024 to 65535 without the NodePort range.
const CLASS: usize = 65_536 - 1024 - 2768;

/// Sends a datagram from a socket that is closed afterwards.
fn send_once(pod: &Host, port: u16, to: SocketAddr) -> Result<()> {
    let socket = pod.open(|| UdpSocket::bind(from_port(port, to)))?;
    socket.send_to(b"once", to)?;
    Ok(())
}

/// Sends a datagram from each port with a socket of its own, closed afterwards: replies find none.
fn send_from(pod: &Host, ports: impl Iterator<Item = u16> + Send, to: SocketAddr) -> Result<()> {
    pod.enter(|| -> Result<()> {
        for port in ports {
            UdpSocket::bind(from_port(port, to))?.send_to(b"once", to)?;
        }
        Ok(())
    })?
}

/// Sends until the counter of a drop reason increases.
fn wait_refused(world: &World, reason: &str, mut send: impl FnMut() -> Result<()>) -> Result<()> {
    let before = drops(&world.agent, reason)?;
    send()?;
    wait_for(
        crate::common::SOON,
        &format!("{reason} to be counted"),
        || drops(&world.agent, reason).is_ok_and(|now| now > before),
    )
}

fn ask_all(flows: &mut [(Udp, SocketAddr)]) -> Result<()> {
    for (flow, before) in flows {
        let seen = flow.ask()?;
        ensure!(seen == *before, "seen as {seen}, before as {before}");
    }
    Ok(())
}

fn ports(flows: &[(Udp, SocketAddr)]) -> BTreeSet<u16> {
    flows.iter().map(|(_, seen)| seen.port()).collect()
}

/// Opens flows from new ports, one per free external port.
fn open(pod: &Host, to: SocketAddr, count: usize) -> Result<Vec<(Udp, SocketAddr)>> {
    (0..count)
        .map(|n| {
            let mut flow = Udp::connect(pod, any(to), to)?;
            let seen = flow.ask().with_context(|| format!("flow {n} of {count}"))?;
            Ok((flow, seen))
        })
        .collect()
}

#[test]
fn a_narrow_range_is_used_to_the_last_port_and_again() -> Result<()> {
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--to-ports", "40000-40099"],
    )?;
    let _echo = Echo::start(&world.far)?;
    let all: BTreeSet<u16> = NARROW.collect();
    let (half, whole) = (NARROW.len() / 2, NARROW.len());
    let mut flows = Vec::new();
    for to in echoes(&world.far) {
        flows.push(open(world.pod(0), to, half)?);
        let rest = open(world.pod(1), to, whole - half)?;
        flows.last_mut().context("just added")?.extend(rest);
    }
    for (to, flows) in echoes(&world.far).into_iter().zip(&mut flows) {
        ensure!(ports(flows) == all, "{to}: used {:?}", ports(flows));
        wait_refused(&world, "no_free_port", || send_once(world.pod(0), 5000, to))?;
        // The source and the destination; at most one such line per second.
        let who = format!("refused {}", world.pod(0).v4()?);
        wait_for(crate::common::SOON, "the refusal to be logged", || {
            world
                .agent
                .log()
                .lines()
                .any(|line| line.contains(&who) && line.ends_with("every port towards it is taken"))
        })?;
        ask_all(flows)?;
    }
    other_destinations_work(&world)?;
    // Half of the flows continue, the others end.
    let before = mappings(&world.agent)?;
    clock::advance(&world.agent, Duration::from_secs(200))?;
    for flows in &mut flows {
        ask_all(&mut flows[..half])?;
    }
    clock::advance(&world.agent, Duration::from_secs(150))?;
    wait_for(SWEEP, "the silent flows to end", || {
        mappings(&world.agent).is_ok_and(|now| now <= before - 2 * (whole - half) as u64)
    })?;
    for (to, mut flows) in echoes(&world.far).into_iter().zip(flows) {
        flows.truncate(half);
        flows.extend(open(world.pod(1), to, whole - half)?);
        ensure!(ports(&flows) == all, "{to}: used {:?}", ports(&flows));
        ask_all(&mut flows)?;
    }
    Ok(())
}

/// Tests the same address with another port, the same port with another protocol, and another
/// address.
fn other_destinations_work(world: &World) -> Result<()> {
    let extra = world.bed.server(0, &["10.4.0.1/24", "fd00:4::1/64"])?;
    let _echo = Echo::start(&extra)?;
    for to in echoes(&extra) {
        let mut flow = Udp::connect(world.pod(0), any(to), to)?;
        ensure!(NARROW.contains(&flow.ask()?.port()), "out of range");
    }
    for to in echoes(&world.far) {
        let mut flow = Tcp::connect(world.pod(0), any(to), to)?;
        ensure!(NARROW.contains(&flow.ask()?.port()), "out of range");
    }
    Ok(())
}

/// A TCP connection per port, and then one more.
#[test]
fn tcp_connections_use_a_range_to_the_last_port() -> Result<()> {
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--to-ports", "443,40000-40030"],
    )?;
    let _echo = Echo::start(&world.far)?;
    let all: BTreeSet<u16> = std::iter::once(443).chain(40_000..=40_030).collect();
    for to in echoes(&world.far) {
        let mut open = Vec::new();
        let mut used = BTreeSet::new();
        for _ in 0..all.len() {
            let mut connection = Tcp::connect(world.pod(0), any(to), to)?;
            used.insert(connection.ask()?.port());
            open.push(connection);
        }
        ensure!(used == all, "{to}: used {used:?}");
        wait_refused(&world, "no_free_port", || {
            let tried = world
                .pod(1)
                .enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))?;
            ensure!(tried.is_err(), "one more connection than ports");
            Ok(())
        })?;
        for connection in &mut open {
            connection.ask()?;
        }
    }
    Ok(())
}

/// More flows to one destination than there are ports.
#[test]
fn a_whole_class_is_used_to_the_last_port() -> Result<()> {
    const TAKEN: std::ops::Range<u16> = 50_000..54_000;
    const EVERY: usize = 8;
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = SocketAddr::from((world.far.v4()?, ECHO));
    // The second pod takes some ports first, so that the first has to search.
    let mut early = TAKEN
        .step_by(EVERY)
        .map(|port| {
            let mut flow = Udp::connect(world.pod(1), from_port(port, to), to)?;
            let seen = flow.ask()?;
            ensure!(seen.port() == port, "{port} became {seen}");
            Ok((flow, seen))
        })
        .collect::<Result<Vec<_>>>()?;
    let pod = IpAddr::from(world.pod(0).v4()?);
    let mut mapped = BTreeSet::new();
    let used = wait_some(SWEEP, "every port to be used", || {
        // Packets that a busy machine dropped are sent again.
        send_from(
            world.pod(0),
            (1024..=u16::MAX).filter(|port| !mapped.contains(port)),
            to,
        )
        .ok()?;
        // Idle flows may be evicted; the result for these flows is asserted below.
        let _ = ask_all(&mut early);
        let flows = Maps::open(&world.agent.bpffs()).ok()?.flows().ok()?;
        let udp = || flows.iter().filter(|flow| flow.protocol == "udp");
        mapped = udp()
            .filter(|flow| flow.source == pod)
            .map(|flow| flow.source_id)
            .collect();
        let used: BTreeSet<u16> = udp().map(|flow| flow.nat_id).collect();
        // There are more sockets than ports.
        let refused = drops(&world.agent, "no_free_port").ok()?;
        (used.len() >= CLASS && refused > 0).then_some(used)
    })
    .with_context(|| format!("{} flows have a mapping", mapped.len()))?;
    ensure!(used.len() == CLASS, "{} of {CLASS} ports used", used.len());
    ensure!(!used.iter().any(|port| (30_000..=32_767).contains(port)));
    ask_all(&mut early)?;
    let other = SocketAddr::from((world.far.v6()?, ECHO));
    Udp::connect(world.pod(1), any(other), other)?.ask()?;
    Ok(())
}

/// Checks that the fill level of the tables and the refusals are shown.
fn pressure_is_shown(world: &World, room: usize) -> Result<()> {
    let shown = crate::common::status(&world.agent)?;
    assert_eq!(shown["max_mappings"], room);
    let text = world.agent.netdp(&["status"])?;
    let line = text
        .lines()
        .find(|line| line.starts_with("mappings"))
        .context("no line about mappings")?;
    let mut words = line.split([' ', '(']).filter(|word| !word.is_empty());
    let mut number = |at| words.nth(at).and_then(|word| word.parse::<usize>().ok());
    let (used, of, percent) = (number(1), number(1), number(0));
    let used = used.with_context(|| line.to_owned())?;
    ensure!(
        of == Some(room) && percent == Some(used * 100 / room),
        "{line}"
    );
    ensure!(used > room / 2, "{line}");
    let dropped = text.lines().find(|line| line.starts_with("dropped"));
    ensure!(
        dropped.is_some_and(|line| line.contains("table_full ")),
        "{text}"
    );
    Ok(())
}

/// Unanswered flows are evicted, answered ones never.
#[test]
fn a_full_table_hurts_no_live_flow() -> Result<()> {
    const ROOM: usize = 1024;
    const LIVE: usize = 300;
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--max-flows", &ROOM.to_string()],
    )?;
    let _echo = Echo::start(&world.far)?;
    let to = echoes(&world.far)[0];
    let mut connections = Vec::new();
    for to in echoes(&world.far) {
        for _ in 0..10 {
            let mut connection = Tcp::connect(world.pod(0), any(to), to)?;
            let seen = connection.ask()?;
            connections.push((connection, seen));
        }
    }
    let mut flows = open(world.pod(0), to, LIVE)?;
    // No host has this address: the router drops packets without a route.
    let nobody = SocketAddr::from(([10, 66, 0, 1], 9));
    // The programs recycle entries themselves: the oldest of one pod's flows.
    world.agent.signal(Signal::SIGSTOP)?;
    let ports = 2000..2000 + 4 * u16::try_from(ROOM)?;
    send_from(world.pod(1), ports, nobody)?;
    // A packet examines eight of the oldest entries and skips each live one once: this many packets
    // may find none to evict.
    let refused = drops(&world.agent, "table_full")?;
    ensure!(refused <= LIVE as u64 / 8 + 8, "{refused} were refused");
    // Answered flows are not evicted: the pod is refused at its share.
    wait_refused(&world, "table_full", || {
        let ports = 10_000..10_000 + u16::try_from(ROOM)?;
        send_from(world.pod(1), ports, to)
    })?;
    pressure_is_shown(&world, ROOM)?;
    world.agent.signal(Signal::SIGCONT)?;
    let check = |flows: &mut Vec<_>, connections: &mut Vec<(Tcp, SocketAddr)>| -> Result<()> {
        ask_all(flows)?;
        for (connection, before) in connections {
            let seen = connection.ask()?;
            ensure!(seen == *before, "seen as {seen}, before as {before}");
        }
        Ok(())
    };
    check(&mut flows, &mut connections)?;
    // Another pod's new flows are accepted until it has its share, too.
    while let Some(flow) = one_more(&world, to)? {
        flows.push(flow);
        ensure!(flows.len() <= ROOM, "more flows than fit");
    }
    check(&mut flows, &mut connections)?;
    ensure!(flows.len() > LIVE, "no new flow got in");
    Ok(())
}

/// Opens a flow; returns `None` if it is refused.
fn one_more(world: &World, to: SocketAddr) -> Result<Option<(Udp, SocketAddr)>> {
    let before = drops(&world.agent, "table_full")?;
    let mut flow = Udp::connect(world.pod(0), any(to), to)?;
    flow.socket
        .set_read_timeout(Some(Duration::from_millis(100)))?;
    flow.socket.send(b"may I")?;
    let answered = wait_some(crate::common::SOON, "an answer or a refusal", || {
        if flow.socket.recv(&mut [0; 256]).is_ok() {
            return Some(true);
        }
        let refused = drops(&world.agent, "table_full").is_ok_and(|now| now > before);
        refused.then_some(false)
    })?;
    if !answered {
        return Ok(None);
    }
    flow.socket.set_read_timeout(Some(crate::common::ANSWER))?;
    let seen = flow.ask()?;
    Ok(Some((flow, seen)))
}

/// Accepts and answers connections for the lifetime of this process.
fn answer_all(far: &Host, port: u16) -> Result<()> {
    let listener = far.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut byte = [0; 1];
            // Until the client closes; the client reports failures.
            while let Ok(1) = (&stream).read(&mut byte) {
                let _ = (&stream).write_all(&byte);
            }
        }
    });
    Ok(())
}

/// More connections end than the tables have entries, faster than the sweep runs: that takes a
/// machine that opens some 2,000 per second. For a slower one the sweep every few seconds is
/// enough.
#[test]
fn connections_that_have_ended_make_room_in_time() -> Result<()> {
    const ROOM: usize = 32_768;
    const PORTS: std::ops::Range<u16> = 8000..8004;
    const EACH: usize = ROOM * 2 / 4;
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--max-flows", &ROOM.to_string()],
    )?;
    let _echo = Echo::start(&world.far)?;
    let echo = echoes(&world.far)[0];
    let mut silent = Tcp::connect(world.pod(1), any(echo), echo)?;
    let seen = silent.ask()?;
    for port in PORTS {
        answer_all(&world.far, port)?;
        let to = SocketAddr::new(echo.ip(), port);
        world.pod(0).enter(|| -> Result<()> {
            for n in 0..EACH {
                ask_once(to).with_context(|| format!("connection {n} of {EACH} to {to}"))?;
            }
            Ok(())
        })??;
    }
    assert_eq!(silent.ask()?, seen);
    assert_eq!(drops(&world.agent, "table_full")?, 0);
    Ok(())
}

fn ask_once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, crate::common::ANSWER)?;
    stream.set_read_timeout(Some(crate::common::ANSWER))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(())
}
