//! Checksums and segments are correct with the offloads of every interface on the path, and without
//! them.

use crate::common::clients::{any, ping, tcp_stream};
use crate::common::wire::Capture;
use crate::common::{ANSWER, SOON, World, number, same_family};
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::SETTING_BYPASS_CACHE_VALID;
use netdp_user::datapath::Maps;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use testbed::{Netns, wait_for};

/// No offload to hardware, and no packet larger than the MTU.
const OFF: [&str; 12] = [
    "tx", "off", "rx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off",
];

/// Returns every namespace on a packet's path.
fn way(world: &World) -> [&Netns; 4] {
    [
        &world.pod(0).ns,
        &world.bed.node,
        &world.bed.uplinks[0].router,
        &world.far.ns,
    ]
}

fn without_offloads(world: &World) -> Result<()> {
    for ns in way(world) {
        for line in ns.ip("-o link show type veth")?.lines() {
            let name = line.split([' ', '@', ':']).nth(2).context("no name")?;
            ns.offloads(name, &OFF)?;
        }
    }
    Ok(())
}

/// Returns bytes that do not repeat at the distance of a lost or duplicated segment.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// Sends noise to an echo server and compares the reply.
fn there_and_back(world: &World, to: IpAddr) -> Result<()> {
    let sent = noise(8 << 20);
    let listener = world.far.enter(|| TcpListener::bind((to, 0)))??;
    let to = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<IpAddr> {
            let (mut stream, peer) = listener.accept()?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(&all)?;
            Ok(peer.ip())
        });
        let mut stream = tcp_stream(world.pod(0), any(to), to)?;
        stream.write_all(&sent)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        ensure!(got == sent, "{} bytes came back, not the same", got.len());
        let peer = server
            .join()
            .map_err(|_| anyhow::anyhow!("the server panicked"))??;
        assert_eq!(peer, world.node_address(peer)?);
        Ok(())
    })
}

/// Runs iperf3 in both directions.
fn iperf(world: &World, to: IpAddr) -> Result<()> {
    let to = to.to_string();
    for direction in [&[][..], &["--reverse"]] {
        let server = world
            .far
            .spawn(&["iperf3", "--server", "--one-off", "--bind", &to])?;
        world.far.wait_listening(5201)?;
        let argv = [
            &["iperf3", "--client", &to, "--json", "--bytes", "8M"],
            direction,
        ]
        .concat();
        let told = world.pod(0).spawn(&argv)?.finish(SOON)?;
        let report: Value = serde_json::from_str(&told)?;
        let got = number(&report["end"]["sum_received"]["bytes"])?;
        // The control connection ends the test before all data has arrived.
        ensure!(got > 1 << 20, "{direction:?}: {got} bytes");
        server.finish(SOON)?;
    }
    Ok(())
}

/// Opens a UDP socket, which sends without checksums if `unchecked`.
fn udp(ns: &Netns, at: SocketAddr, unchecked: bool) -> Result<UdpSocket> {
    let socket = ns.open(|| UdpSocket::bind(at))?;
    socket.set_read_timeout(Some(ANSWER))?;
    if unchecked {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    }
    Ok(socket)
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the option is an int, whose address and size are passed.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of::<i32>())?,
        )
    };
    ensure!(status == 0, std::io::Error::last_os_error());
    Ok(())
}

/// Exchanges datagrams of many lengths.
fn datagrams(world: &World, to: IpAddr, unchecked: bool) -> Result<()> {
    let server = udp(&world.far, (to, 9000).into(), unchecked)?;
    let own = same_family(&world.pod(0).addresses, to)?;
    let client = udp(world.pod(0), (own, 0).into(), unchecked)?;
    client.connect((to, 9000))?;
    let wire = Capture::start(&world.far)?;
    let bytes = noise(1400);
    let mut buffer = [0; 2048];
    for length in [0, 1, 2, 3, 4, 63, 64, 65, 511, 512, 1399, 1400] {
        let sent = &bytes[..length];
        client.send(sent)?;
        let (count, peer) = server.recv_from(&mut buffer).context("at the server")?;
        ensure!(buffer[..count] == *sent, "{length} bytes came as {count}");
        assert_eq!(peer.ip(), world.node_address(to)?);
        server.send_to(sent, peer)?;
        let count = client.recv(&mut buffer).context("the answer")?;
        ensure!(
            buffer[..count] == *sent,
            "{length} bytes came back as {count}"
        );
    }
    let datagrams: Vec<_> = wire
        .packets()?
        .into_iter()
        .filter(|p| p.protocol == 17)
        .collect();
    ensure!(datagrams.len() >= 24, "{} were captured", datagrams.len());
    for datagram in datagrams {
        let none = datagram.payload[6..8] == [0, 0];
        assert_eq!(none, unchecked, "no checksum stays none: {datagram:?}");
    }
    Ok(())
}

/// Sends with one system call that the kernel or the interface splits into datagrams.
fn segmented_datagrams(world: &World, to: IpAddr) -> Result<()> {
    const PART: usize = 1000;
    let server = udp(&world.far, (to, 9001).into(), false)?;
    let own = same_family(&world.pod(0).addresses, to)?;
    let client = udp(world.pod(0), (own, 0).into(), false)?;
    client.connect((to, 9001))?;
    set_option(
        &client,
        libc::SOL_UDP,
        libc::UDP_SEGMENT,
        i32::try_from(PART)?,
    )?;
    let sent = noise(20 * PART + 1);
    client.send(&sent)?;
    let mut buffer = [0; 2048];
    for part in sent.chunks(PART) {
        let (count, peer) = server.recv_from(&mut buffer).context("at the server")?;
        ensure!(buffer[..count] == *part, "a datagram was changed");
        assert_eq!(peer.ip(), world.node_address(to)?);
    }
    Ok(())
}

fn everything(world: &World) -> Result<()> {
    for address in &world.far.addresses {
        let to = address.addr();
        there_and_back(world, to)?;
        datagrams(world, to, false)?;
        ping(world.pod(0), to)?;
        iperf(world, to)?;
    }
    datagrams(world, world.far.v4()?.into(), true)
}

#[test]
fn with_offloads() -> Result<()> {
    let world = World::start()?;
    everything(&world)?;
    for address in &world.far.addresses {
        segmented_datagrams(&world, address.addr())?;
    }
    Ok(())
}

#[test]
fn without_any_offload() -> Result<()> {
    let world = World::start()?;
    without_offloads(&world)?;
    everything(&world)
}

/// The pod and the server leave checksums and segmentation to interfaces, which perform them in
/// software between the hooks and the wire.
#[test]
fn with_offloads_at_the_ends_only() -> Result<()> {
    let world = World::start()?;
    world.bed.node.offloads("eth0", &OFF)?;
    everything(&world)?;
    for address in &world.far.addresses {
        segmented_datagrams(&world, address.addr())?;
    }
    Ok(())
}

/// The packets of an unconnected socket have no hash, by which the kernel selects queues; packets
/// from a pod have one when they leave, so that the kernel need not compute it.
#[test]
fn what_leaves_has_a_hash() -> Result<()> {
    let world = World::start()?;
    wait_for(SOON, "bypassed packets to pass without a look", || {
        let settings = Maps::open(&world.agent.bpffs()).and_then(|maps| maps.settings());
        settings.is_ok_and(|settings| settings.flags & SETTING_BYPASS_CACHE_VALID != 0)
    })?;
    let all = Capture::leaving(&world.bed.node, false)?;
    let hashed = Capture::leaving(&world.bed.node, true)?;
    // The captures see a packet at slightly different times.
    let wait_left = |capture: &Capture, from: IpAddr, to: IpAddr, count: usize| -> Result<()> {
        let mut left = 0;
        wait_for(SOON, &format!("packets to {to}: {count}"), || {
            let packets = capture.packets().unwrap_or_default().into_iter();
            left += packets
                .filter(|packet| packet.source == from && packet.destination == to)
                .count();
            left >= count
        })?;
        assert_eq!(left, count, "to {to}");
        Ok(())
    };
    let pod = world.pod(0);
    // IPv6 has one, from its flow label.
    for (host, masqueraded) in [(&world.far, true), (&world.near, false)] {
        let to = IpAddr::from(host.v4()?);
        let from = if masqueraded {
            world.node_address(to)?
        } else {
            pod.v4()?.into()
        };
        let socket = pod.open(|| UdpSocket::bind(any(SocketAddr::new(to, 0))))?;
        // The addresses of the second packet are cached.
        for _ in 0..2 {
            socket.send_to(b"?", SocketAddr::new(to, 9))?;
            wait_left(&all, from, to, 1)?;
            wait_left(&hashed, from, to, 1)?;
        }
    }
    // Fragments keep what they have: no hash.
    let to = IpAddr::from(world.near.v4()?);
    let pod = world.pod(1);
    let from = pod.v4()?.into();
    let socket = pod.open(|| UdpSocket::bind(any(SocketAddr::new(to, 0))))?;
    socket.send_to(&[0; 2000], SocketAddr::new(to, 9))?;
    wait_left(&all, from, to, 2)?;
    socket.send_to(b"?", SocketAddr::new(to, 9))?;
    wait_left(&all, from, to, 1)?;
    wait_left(&hashed, from, to, 1)?;
    Ok(())
}
