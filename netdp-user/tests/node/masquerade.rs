//! Masqueraded and bypassed traffic as servers and clients see it.

use crate::common::clients::{
    Tcp, Udp, any, from_port, ping, send_raw, tcp_source, tcp_stream, udp_source,
};
use crate::common::wire::Capture;
use crate::common::{
    Echo, POLICY_V4, SOON, World, drops, echoes, mappings, nft, packets, same_family, start_agent,
};
use anyhow::{Result, ensure};
use netdp_user::datapath::Maps;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use testbed::{Bed, ConfigVolume, EchoServer, HttpServer, RedisServer, UdpEchoServer, wait_for};

/// Protocol and type of echo requests (IPv4, IPv6) in a capture.
const ECHO_REQUEST: [(u8, u8); 2] = [(1, 8), (58, 128)];

#[test]
fn a_server_without_a_way_back_sees_the_node_and_answers() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let wire = Capture::start(&world.far)?;
    for to in echoes(&world.far) {
        let node = world.node_address(to.ip())?;
        for pod in &world.bed.pods {
            assert_eq!(tcp_source(pod, to)?, node);
            assert_eq!(udp_source(pod, to)?, node);
            ping(pod, to.ip())?;
        }
    }
    let requests: Vec<_> = wire
        .packets()?
        .into_iter()
        .filter(|p| {
            let kind = p.payload.first().copied().unwrap_or_default();
            ECHO_REQUEST.contains(&(p.protocol, kind))
        })
        .collect();
    assert_eq!(
        requests.len(),
        12,
        "three pings from each pod in each family"
    );
    for request in requests {
        assert_eq!(request.source, world.node_address(request.source)?);
    }
    Ok(())
}

#[test]
fn a_non_masquerade_destination_sees_the_pod() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.near)?;
    let wire = Capture::start(&world.near)?;
    for to in echoes(&world.near) {
        let pod = world.pod(0);
        let own = same_family(&pod.addresses, to.ip())?;
        assert_eq!(tcp_source(pod, to)?, own);
        assert_eq!(udp_source(pod, to)?, own);
        ping(pod, to.ip())?;
        let pings = wire.packets()?.into_iter().filter(|p| p.source == own);
        ensure!(pings.count() > 3, "the pings did not come from the pod");
    }
    assert_eq!(mappings(&world.agent)?, 0);
    Ok(())
}

/// A broad bypass, a masqueraded prefix in it, and a bypass in that prefix.
#[test]
fn the_longest_prefix_wins() -> Result<()> {
    let world = World::with(
        "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.4/32]\nmasqueradeCIDRs: [10.0.0.0/29]\n",
        &[],
    )?;
    let bed = &world.bed;
    let inside = bed.server(0, &["10.0.0.3/29"])?;
    let _redis = RedisServer::start(&inside, (inside.v4()?, 6379))?;
    let pod = world.pod(0);
    let info = pod.run(&["redis-cli", "-h", "10.0.0.3", "info", "server"])?;
    ensure!(info.contains("redis_version"), "{info}");
    let clients = pod.run(&["redis-cli", "-h", "10.0.0.3", "client", "list"])?;
    let node = format!("addr={}:", bed.uplinks[0].v4()?);
    ensure!(clients.contains(&node), "redis sees {clients}");

    // Broad prefix: bypassed, and reachable only for hosts with a route back.
    let _echo = Echo::start(&world.near)?;
    let near = (world.near.v4()?, crate::common::ECHO).into();
    assert_eq!(tcp_source(pod, near)?, IpAddr::from(pod.v4()?));

    // The exception inside the masqueraded prefix.
    let wire = Capture::start(&inside)?;
    inside.address("eth0", "10.0.0.4/29".parse()?)?;
    let socket = Udp::connect(
        pod,
        any((Ipv4Addr::LOCALHOST, 0).into()),
        ([10, 0, 0, 4], 9).into(),
    )?;
    wait_for(SOON, "a datagram with the pod's source", || {
        let _ = socket.socket.send(b"x");
        let seen = wire.packets().unwrap_or_default();
        seen.iter()
            .any(|p| p.protocol == 17 && p.source == IpAddr::from([172, 16, 0, 2]))
    })
}

#[test]
fn the_nodes_own_traffic_is_unchanged() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let http = HttpServer::start(&world.far, (world.far.v4()?, 80))?;
    let node = &world.bed.node;
    for secondary in ["10.1.0.77/16", "fd00:1::77/64"] {
        node.address("eth0", secondary.parse()?)?;
    }
    // Until the agent has applied a new address of the node, packets from it count as a pod's.
    let new: IpAddr = "fd00:1::77".parse()?;
    wait_for(SOON, "the agent to know the new addresses", || {
        let maps = Maps::open(&world.agent.bpffs());
        maps.and_then(|maps| maps.local_addresses())
            .is_ok_and(|local| local.contains(&new))
    })?;
    let url = "http://10.2.0.1/health";
    for (interface, port) in [("10.1.0.10", "45678"), ("10.1.0.77", "45679")] {
        node.run(&[
            "curl",
            "-sSf",
            "--interface",
            interface,
            "--local-port",
            port,
            url,
        ])?;
    }
    let seen: Vec<String> = http
        .seen_endpoints()
        .iter()
        .map(|s| s.to_string())
        .collect();
    assert_eq!(seen, ["10.1.0.10:45678", "10.1.0.77:45679"]);

    for to in echoes(&world.far) {
        let sources = match to {
            SocketAddr::V4(_) => ["10.1.0.10:50001", "10.1.0.77:50002"],
            SocketAddr::V6(_) => ["[fd00:1::10]:50001", "[fd00:1::77]:50002"],
        };
        for from in sources {
            let from = from.parse()?;
            assert_eq!(Tcp::connect(node, from, to)?.ask()?, from);
            assert_eq!(Udp::connect(node, from, to)?.ask()?, from);
        }
        ping(node, to.ip())?;
    }
    assert_eq!(mappings(&world.agent)?, 0);
    ensure!(packets(&world.agent, "egress_host")? > 0);
    Ok(())
}

/// The client is in a masqueraded network and has a route to pods.
#[test]
fn a_pod_answers_from_its_own_address() -> Result<()> {
    let world = World::with(
        "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n",
        &["--enable-ipv6"],
    )?;
    let pod = world.pod(0);
    let _echo = Echo::start(pod)?;
    for to in echoes(pod) {
        let own = same_family(&world.near.addresses, to.ip())?;
        // A connected socket accepts replies only from the pod's address.
        let mut tcp = Tcp::connect(&world.near, any(to), to)?;
        let mut udp = Udp::connect(&world.near, any(to), to)?;
        for _ in 0..3 {
            assert_eq!(tcp.ask()?.ip(), own);
            assert_eq!(udp.ask()?.ip(), own);
        }
        ping(&world.near, to.ip())?;
    }
    assert_eq!(mappings(&world.agent)?, 0);
    ensure!(packets(&world.agent, "egress_replies")? > 0);

    // Flows that the pod itself opens towards the same host are masqueraded.
    let _near = Echo::start(&world.near)?;
    for to in echoes(&world.near) {
        let node = world.node_address(to.ip())?;
        assert_eq!(tcp_source(pod, to)?, node);
        assert_eq!(udp_source(pod, to)?, node);
        ping(pod, to.ip())?;
    }
    Ok(())
}

/// The task of kube-proxy: a port of every node leads to a pod. First the pod sees the client's own
/// address, then the node's (as for a pod on another node).
#[test]
fn a_node_port_leads_to_a_pod_and_back() -> Result<()> {
    let world = World::start()?;
    let (node, pod) = (&world.bed.node, world.pod(0));
    let _echo = Echo::start(pod)?;
    for (family, to, port) in [
        ("ip", "172.16.0.2:7", 30080),
        ("ip6", "[fd00:172::2]:7", 30080),
        ("ip", "172.16.0.2:7", 30081),
        ("ip6", "[fd00:172::2]:7", 30081),
    ] {
        nft(
            node,
            &format!(
                "add table {family} nat; \
                 add chain {family} nat pre {{ type nat hook prerouting priority dstnat; }}; \
                 add chain {family} nat post {{ type nat hook postrouting priority srcnat; }}; \
                 add rule {family} nat pre tcp dport {port} dnat to {to}; \
                 add rule {family} nat pre udp dport {port} dnat to {to}"
            ),
        )?;
        if port == 30081 {
            nft(
                node,
                &format!(
                    "add rule {family} nat post oifname cni0 meta l4proto {{ tcp, udp }} ct original proto-dst {port} masquerade"
                ),
            )?;
        }
    }
    for address in &world.bed.uplinks[0].addresses {
        let client = same_family(&world.far.addresses, address.addr())?;
        let inside = match address.addr() {
            IpAddr::V4(_) => IpAddr::from([172, 16, 0, 1]),
            IpAddr::V6(_) => "fd00:172::1".parse()?,
        };
        for (port, seen) in [(30080, client), (30081, inside)] {
            let to = SocketAddr::new(address.addr(), port);
            let mut tcp = Tcp::connect(&world.far, any(to), to)?;
            let mut udp = Udp::connect(&world.far, any(to), to)?;
            for _ in 0..3 {
                assert_eq!(tcp.ask()?.ip(), seen);
                assert_eq!(udp.ask()?.ip(), seen);
            }
        }
    }
    assert_eq!(mappings(&world.agent)?, 0);
    Ok(())
}

#[test]
fn a_service_with_a_backend_outside_is_masqueraded() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    for (family, service, backend) in [
        ("ip", "10.96.0.10", "10.2.0.1:7"),
        ("ip6", "fd00:96::10", "[fd00:2::1]:7"),
    ] {
        nft(
            &world.bed.node,
            &format!(
                "add table {family} nat; \
                 add chain {family} nat pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule {family} nat pre {family} daddr {service} tcp dport 80 dnat to {backend}; \
                 add rule {family} nat pre {family} daddr {service} udp dport 80 dnat to {backend}"
            ),
        )?;
        let to = SocketAddr::new(service.parse()?, 80);
        let node = world.node_address(to.ip())?;
        let mut tcp = Tcp::connect(world.pod(0), any(to), to)?;
        let mut udp = Udp::connect(world.pod(0), any(to), to)?;
        for _ in 0..3 {
            assert_eq!(tcp.ask()?.ip(), node);
            assert_eq!(udp.ask()?.ip(), node);
        }
    }
    Ok(())
}

/// A pod uses port 40000 of the node towards one host. All other packets to that port are the
/// node's.
#[test]
fn what_nobody_asked_for_reaches_the_node() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let (node, pod) = (&world.bed.node, world.pod(0));
    for to in echoes(&world.far) {
        let from = from_port(40_000, to);
        let mut tcp = Tcp::connect(pod, from, to)?;
        let mut udp = Udp::connect(pod, from, to)?;
        let mapped = SocketAddr::new(world.node_address(to.ip())?, 40_000);
        assert_eq!(tcp.ask()?, mapped);
        assert_eq!(udp.ask()?, mapped);

        // The same host, from another port: the node answers that the port is closed.
        let refused = tcp_stream(&world.far, any(mapped), mapped).unwrap_err();
        ensure!(is_refused(&refused), "{refused:#}");
        let mut stray = Udp::connect(&world.far, any(mapped), mapped)?;
        let refused = stray.ask().unwrap_err();
        ensure!(is_refused(&refused), "{refused:#}");

        // A program on the node that listens there is reachable.
        let _tcp = EchoServer::start(node, mapped)?;
        let _udp = UdpEchoServer::start(node, mapped)?;
        for host in [&world.far, &world.near] {
            let own = same_family(&host.addresses, to.ip())?;
            assert_eq!(tcp_source(host, mapped)?, own);
            assert_eq!(udp_source(host, mapped)?, own);
        }
        assert_eq!(tcp.ask()?, mapped);
        assert_eq!(udp.ask()?, mapped, "a stray datagram came to the pod");
    }
    Ok(())
}

fn is_refused(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn ipv6_is_left_alone_unless_asked_for() -> Result<()> {
    let world = World::with(POLICY_V4, &[])?;
    let (pod, wire) = (world.pod(0), Capture::start(&world.far)?);
    let _near = Echo::start(&world.near)?;
    let _far = Echo::start(&world.far)?;
    let own = IpAddr::from(pod.v6()?);
    let near = (world.near.v6()?, crate::common::ECHO).into();
    assert_eq!(tcp_source(pod, near)?, own);
    let far = (world.far.v6()?, crate::common::ECHO).into();
    let socket = Udp::connect(pod, any(far), far)?;
    wait_for(SOON, "a datagram with the pod's source", || {
        let _ = socket.socket.send(b"x");
        let seen = wire.packets().unwrap_or_default();
        seen.iter().any(|p| p.source == own && p.protocol == 17)
    })?;
    // IPv4 is not affected.
    let far = (world.far.v4()?, crate::common::ECHO).into();
    assert_eq!(tcp_source(pod, far)?, world.node_address(far.ip())?);
    Ok(())
}

/// Untranslatable packets are dropped and counted; towards hosts with a route to pods they pass.
#[test]
fn what_cannot_be_translated_never_leaves_as_the_pods() -> Result<()> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let world = World::start()?;
    let (pod, far) = (world.pod(0), &world.far);
    let _echo = Echo::start(far)?;
    let wire = Capture::start(&world.bed.uplinks[0].router)?;
    for to in [IpAddr::from(far.v4()?), IpAddr::from(far.v6()?)] {
        // Its integrity check covers the addresses.
        send_raw(pod, libc::IPPROTO_AH, to, b"a payload of some length")?;
        // TCP segments that open nothing.
        for flags in [0, FIN, RST, RST | ACK, SYN | ACK, SYN | FIN, FIN | ACK] {
            send_raw(pod, libc::IPPROTO_TCP, to, &segment(flags))?;
        }
        // Truncated TCP and UDP packets.
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            send_raw(pod, protocol, to, &[1, 2, 3])?;
        }
    }
    // Unsolicited replies.
    let v4 = IpAddr::from(far.v4()?);
    send_raw(pod, libc::IPPROTO_ICMP, v4, &[0, 0, 0, 0, 0, 1, 0, 1])?;
    send_raw(
        pod,
        libc::IPPROTO_ICMPV6,
        far.v6()?.into(),
        &[129, 0, 0, 0, 0, 1, 0, 1],
    )?;
    // Sent after all of them, as a marker.
    for to in echoes(far) {
        udp_source(pod, to)?;
    }

    let mut leaked = wire.packets()?;
    let all = leaked.len();
    ensure!(all > 0, "nothing was captured");
    leaked.retain(|p| pod.addresses.iter().any(|net| net.addr() == p.source));
    ensure!(leaked.is_empty(), "{leaked:#?}");
    let count = |name| drops(&world.agent, name);
    assert_eq!(count("unsupported_protocol")?, 2);
    assert_eq!(count("tcp_no_flow")?, 14, "TCP that opens nothing");
    assert_eq!(count("malformed")?, 4);
    assert_eq!(count("icmp_no_flow")?, 2);

    // To hosts with a route to pods, such packets pass unmodified.
    send_raw(pod, 253, world.near.v4()?.into(), b"hello")?;
    wait_for(SOON, "protocol 253 from the pod", || {
        let seen = wire.packets().unwrap_or_default();
        seen.iter()
            .any(|p| p.protocol == 253 && p.source == IpAddr::from([172, 16, 0, 2]))
    })
}

/// Returns a TCP header with these flags. Its checksum is wrong, which no hop may check.
fn segment(flags: u8) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..4].copy_from_slice(&[0xaa, 0xaa, 0, 7]);
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14] = 0x20;
    segment
}

/// A pod's connection leaves by the uplink to its destination, with that uplink's address.
#[test]
fn each_uplink_masquerades_with_its_own_address() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .uplink("eth1", &["10.9.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()?;
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    let _agent = start_agent(&bed.node, &config, &["--uplink", "eth*"])?;
    for (uplink, address) in [(0, "10.2.0.1/24"), (1, "10.10.0.1/24")] {
        let server = bed.server(uplink, &[address])?;
        let _echo = Echo::start(&server)?;
        let [to] = echoes(&server)[..] else {
            anyhow::bail!("one address expected")
        };
        let node = IpAddr::from(bed.uplinks[uplink].v4()?);
        assert_eq!(tcp_source(&bed.pods[0], to)?, node);
        assert_eq!(udp_source(&bed.pods[0], to)?, node);
        ping(&bed.pods[0], to.ip())?;
    }
    Ok(())
}
