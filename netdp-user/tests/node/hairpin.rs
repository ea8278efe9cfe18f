//! Hairpinning between real sockets, and its programs on interfaces that appear and disappear.

use crate::common::clients::{any, from_port, tcp_stream};
use crate::common::{
    ANSWER, Echo, POLICY, SOON, World, echoes, filters, options, wait_log, wait_tcx,
};
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use testbed::{Agent, Netns, wait_for};

const FLAGS: [&str; 3] = ["--enable-ipv6", "--hairpin-interface", "cni0"];
const PROGRAM: &str = "pod_hairpin";

/// Programs in the kernel where hairpinning is on: ingress, egress.
const ON: [&[&str]; 2] = [&[PROGRAM], &[]];
const OFF: [&[&str]; 2] = [&[], &[]];

/// A pod's socket, and its endpoint as the echo server saw it.
struct Peer<S> {
    socket: S,
    seen: SocketAddr,
}

fn source(answer: &str) -> Result<SocketAddr> {
    let seen = answer.split_whitespace().nth(1).context("no source")?;
    Ok(seen.parse()?)
}

impl Peer<UdpSocket> {
    fn new(pod: &Netns, server: SocketAddr) -> Result<Self> {
        let socket = pod.enter(|| UdpSocket::bind(any(server)))??;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send_to(b"who", server)?;
        let mut buffer = [0; 128];
        let (count, _) = socket.recv_from(&mut buffer)?;
        let seen = source(&String::from_utf8_lossy(&buffer[..count]))?;
        Ok(Self { socket, seen })
    }

    fn receives(&self, text: &[u8]) -> Result<SocketAddr> {
        let mut buffer = [0; 2048];
        let (count, from) = self.socket.recv_from(&mut buffer).context("nothing came")?;
        ensure!(&buffer[..count] == text, "{:?}", &buffer[..count]);
        Ok(from)
    }
}

impl Peer<TcpStream> {
    fn new(pod: &Netns, server: SocketAddr) -> Result<Self> {
        let mut socket = tcp_stream(pod, any(server), server)?;
        socket.write_all(b"who\n")?;
        let mut line = String::new();
        BufReader::new(socket.try_clone()?).read_line(&mut line)?;
        let seen = source(&line)?;
        Ok(Self { socket, seen })
    }
}

/// Returns sockets of both pods, each with a mapping to the same server.
fn peers<S>(
    world: &World,
    new: fn(&Netns, SocketAddr) -> Result<S>,
    at: SocketAddr,
) -> Result<[S; 2]> {
    Ok([new(world.pod(0), at)?, new(world.pod(1), at)?])
}

#[test]
fn two_udp_sockets_meet() -> Result<()> {
    let world = World::with(POLICY, &FLAGS)?;
    let _echo = Echo::start(&world.far)?;
    for at in echoes(&world.far) {
        let [a, b] = peers(&world, Peer::<UdpSocket>::new, at)?;
        a.socket.send_to(b"lost", b.seen)?;
        b.socket.send_to(b"from b", a.seen)?;
        ensure!(a.receives(b"from b")? == b.seen, "from elsewhere");
        a.socket.send_to(&[7; 1200], b.seen)?;
        ensure!(b.receives(&[7; 1200])? == a.seen, "from elsewhere");
    }
    Ok(())
}

/// Writes large blocks, which leave checksums and segmentation to devices that perform neither.
fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut got = vec![0; sent.len()];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut got).context("reading")?;
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(got == sent, "other bytes came");
        Ok(())
    })
}

#[test]
fn two_tcp_sockets_open_at_once_and_outlive_the_agent() -> Result<()> {
    let mut world = World::with(POLICY, &FLAGS)?;
    let _echo = Echo::start(&world.far)?;
    let mut open = Vec::new();
    for at in echoes(&world.far) {
        let [a, b] = peers(&world, Peer::<TcpStream>::new, at)?;
        // From the ports of the mappings to the server, while those connections are live.
        let connect = |n: usize, own: &Peer<TcpStream>, other: SocketAddr| {
            let port = own.socket.local_addr()?.port();
            tcp_stream(world.pod(n), from_port(port, other), other)
        };
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| connect(0, &a, b.seen));
            let other = connect(1, &b, a.seen);
            (one.join(), other)
        });
        let mut one = one.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let mut other = other?;
        ensure!(other.peer_addr()? == a.seen, "who is it?");
        exchange(&mut one, &mut other)?;
        open.push((one, other, a, b));
    }
    world.agent.kill9()?;
    for (one, other, ..) in &mut open {
        exchange(one, other)?;
    }
    world.agent.restart()?;
    wait_tcx(&world.bed.node, "cni0", &ON)?;
    for (one, other, a, b) in &mut open {
        exchange(other, one)?;
        ensure!(one.peer_addr()? == b.seen && other.peer_addr()? == a.seen);
    }
    Ok(())
}

/// A new agent adopts the pods' endpoints.
#[test]
fn sockets_that_were_known_before_a_restart_meet() -> Result<()> {
    let mut world = World::with(POLICY, &FLAGS)?;
    let _echo = Echo::start(&world.far)?;
    let mut known = Vec::new();
    for at in echoes(&world.far) {
        known.push(peers(&world, Peer::<UdpSocket>::new, at)?);
    }
    world.agent.kill9()?;
    world.agent.restart()?;
    for [a, b] in &known {
        a.socket.send_to(b"lost", b.seen)?;
        b.socket.send_to(b"from b", a.seen)?;
        ensure!(a.receives(b"from b")? == b.seen, "from elsewhere");
    }
    Ok(())
}

/// Waits for the pins: a program is attached before it is pinned.
fn wait_pins(agent: &Agent, wanted: usize) -> Result<()> {
    wait_for(SOON, &format!("{wanted} pins"), || {
        pins(agent).is_ok_and(|count| count == wanted)
    })
}

fn pins(agent: &Agent) -> Result<usize> {
    let entries = std::fs::read_dir(agent.bpffs().join("links"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|n| n.starts_with("hairpin_")).count())
}

#[test]
fn interfaces_towards_pods_come_and_go() -> Result<()> {
    let flags = [
        "--hairpin-interface",
        "cali*",
        "--hairpin-interface",
        "cni0",
    ];
    let mut world = World::with(crate::common::POLICY_V4, &flags)?;
    let node = &world.bed.node;
    wait_tcx(node, "cni0", &ON)?;
    node.ip("link add cali1 type veth peer name inside1")?;
    wait_tcx(node, "cali1", &ON)?;
    wait_pins(&world.agent, 2)?;
    node.ip("link set cali1 name other1")?;
    wait_tcx(node, "other1", &OFF)?;
    node.ip("link set other1 name cali2")?;
    wait_tcx(node, "cali2", &ON)?;
    node.ip("link del cali2")?;
    wait_log(&world.agent, "hairpin detached from cali2")?;
    wait_pins(&world.agent, 1)?;
    // An agent without the option detaches it.
    world.agent.kill9()?;
    wait_tcx(node, "cni0", &ON)?;
    *world.agent.options() = options(&world.config, &[]);
    world.agent.restart()?;
    wait_tcx(&world.bed.node, "cni0", &OFF)?;
    assert_eq!(pins(&world.agent)?, 0);
    Ok(())
}

#[test]
fn clsact_filters_towards_pods_go_too() -> Result<()> {
    let flags = ["--hairpin-interface", "cni0", "--attach", "clsact"];
    let mut world = World::with(crate::common::POLICY_V4, &flags)?;
    let wait = |world: &World, wanted: bool| {
        wait_for(SOON, &format!("the filter to be there: {wanted}"), || {
            filters(&world.bed.node, "cni0").is_ok_and(|[on, _]| on.contains(PROGRAM) == wanted)
        })
    };
    wait(&world, true)?;
    world.agent.kill9()?;
    *world.agent.options() = options(&world.config, &["--attach", "clsact"]);
    world.agent.restart()?;
    wait(&world, false)?;
    world.agent.kill9()?;
    *world.agent.options() = options(&world.config, &flags);
    world.agent.restart()?;
    wait(&world, true)?;
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    wait(&world, false)?;
    Ok(())
}
