//! Ports and protocols on which the node itself receives are reserved: NAT rules of all kinds,
//! sockets that a lookup does not find, IPsec, raw sockets.

use crate::common::clients::{Tcp, Udp, from_port};
use crate::common::{Echo, NETDP, SOON, World, echoes, nft, start_agent, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::{NODE_PORT_TCP, NODE_PORT_UDP, NODE_PORT_UDP_LITE};
use netdp_user::datapath::NodeMaps;
use netdp_user::node::ProtocolPeer;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Netns, wait_for};

/// Port that rules like those of the portmap plugin redirect to a pod, TCP and UDP.
const HOST_PORT: u16 = 18_080;

/// Writes rules as the portmap plugin does.
fn host_port(node: &Netns, backend: &str, port: u16) -> Result<()> {
    let port = port.to_string();
    for (program, to) in [
        (format!("iptables-{backend}"), "172.16.0.2:80"),
        (format!("ip6tables-{backend}"), "[fd00:172::2]:80"),
    ] {
        let iptables = |arguments: &[&str]| {
            let all = [&[program.as_str(), "--wait", "60", "-t", "nat"], arguments].concat();
            node.run(&all)
        };
        // The chain may exist for another port.
        if iptables(&["-N", "CNI-HOSTPORT-DNAT"]).is_ok() {
            let local = [
                "-m",
                "addrtype",
                "--dst-type",
                "LOCAL",
                "-j",
                "CNI-HOSTPORT-DNAT",
            ];
            iptables(&[&["-A", "PREROUTING"], &local[..]].concat())?;
        }
        let chain = format!("CNI-DN-{port}");
        iptables(&["-N", &chain])?;
        for protocol in ["tcp", "udp"] {
            let of = [
                "-p",
                protocol,
                "-m",
                "multiport",
                "--dports",
                &port,
                "-j",
                &chain,
            ];
            iptables(&[&["-A", "CNI-HOSTPORT-DNAT"], &of[..]].concat())?;
            let of = [
                "-p",
                protocol,
                "--dport",
                &port,
                "-j",
                "DNAT",
                "--to-destination",
                to,
            ];
            iptables(&[&["-A", &chain], &of[..]].concat())?;
        }
    }
    Ok(())
}

fn flush(node: &Netns, backend: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        let program = format!("{program}-{backend}");
        node.run(&[&program, "--wait", "60", "-t", "nat", "-F"])?;
    }
    Ok(())
}

/// Writes rules as kube-proxy's nftables mode does: a map from ports to chains.
fn native(node: &Netns) -> Result<()> {
    nft(
        node,
        "add table inet services;
         add map inet services ports { type inet_proto . inet_service : verdict; };
         add chain inet services to-v4;
         add chain inet services to-v6;
         add rule inet services to-v4 meta l4proto { tcp, udp } dnat ip to 172.16.0.2:80;
         add chain inet services in { type nat hook prerouting priority dstnat; };
         add rule inet services in fib daddr type local meta l4proto . th dport vmap @ports;",
    )
}

fn native_port(node: &Netns, verb: &str, port: u16) -> Result<()> {
    let elements = format!("tcp . {port} : goto to-v4, udp . {port} : goto to-v4");
    nft(
        node,
        &format!("{verb} element inet services ports {{ {elements} }};"),
    )
}

/// Returns the ports in force, each with its flags.
fn ports(agent: &Agent) -> Result<Vec<(u16, u32)>> {
    let maps = NodeMaps::open(&agent.bpffs())?;
    Ok(maps
        .ports()
        .iter()
        .map(|(port, bits)| (*port, *bits))
        .collect())
}

fn both(port: u16) -> (u16, u32) {
    (port, NODE_PORT_TCP | NODE_PORT_UDP)
}

fn wait_ports(agent: &Agent, wanted: &[(u16, u32)]) -> Result<()> {
    let mut seen = None;
    wait_for(SOON, &format!("the node ports {wanted:?}"), || {
        seen = ports(agent).ok();
        seen.as_deref() == Some(wanted)
    })
    .with_context(|| format!("there are {seen:?}; the agent wrote:\n{}", agent.log()))
}

/// Waits until `netdp status` contains `words`: the status is written after the maps.
fn wait_status(agent: &Agent, words: &str) -> Result<()> {
    wait_for(SOON, &format!("{words:?} in the status"), || {
        agent
            .netdp(&["status"])
            .is_ok_and(|text| text.contains(words))
    })
    .with_context(|| agent.netdp(&["status"]).unwrap_or_default())
}

/// Checks that a pod's flows from `port` change their port, and those from another port keep it.
fn check_wire(world: &World, port: u16) -> Result<()> {
    let free = port + 1;
    for to in echoes(&world.far) {
        let node = world.node_address(to.ip())?;
        for (port, kept) in [(port, false), (free, true)] {
            let from = from_port(port, to);
            let tcp = Tcp::connect(world.pod(0), from, to)?.ask()?;
            let udp = Udp::connect(world.pod(0), from, to)?.ask()?;
            for seen in [tcp, udp] {
                let own = SocketAddr::new(node, port);
                ensure!(seen.ip() == node, "{seen} is not the node's");
                ensure!((seen == own) == kept, "from {port} it is seen as {seen}");
            }
        }
    }
    Ok(())
}

/// Rules from before the agent are in force when it becomes ready.
#[test]
fn rules_from_before_the_start_count_from_the_first_packet_on() -> Result<()> {
    for kind in ["nft", "legacy", "native"] {
        let bed = Bed::dual_stack()?;
        match kind {
            "native" => {
                native(&bed.node)?;
                native_port(&bed.node, "add", HOST_PORT)?;
            }
            backend => host_port(&bed.node, backend, HOST_PORT)?,
        }
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let config = ConfigVolume::new(crate::common::POLICY)?;
        let agent = start_agent(&bed.node, &config, &["--enable-ipv6"])?;
        assert_eq!(ports(&agent)?, [both(HOST_PORT)], "{kind}");
        let world = World {
            agent,
            config,
            near,
            far,
            bed,
        };
        let _echo = Echo::start(&world.far)?;
        check_wire(&world, HOST_PORT).context(kind)?;
        let text = world.agent.netdp(&["status"])?;
        let line = format!("node ports tcp {HOST_PORT}; udp {HOST_PORT}\n");
        ensure!(text.contains(&line), "{kind}: no {line:?} in\n{text}");
    }
    Ok(())
}

#[test]
fn rules_count_as_they_come_and_go() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let node = &world.bed.node;
    assert_eq!(ports(&world.agent)?, []);
    native(node)?;
    native_port(node, "add", 18_000)?;
    wait_ports(&world.agent, &[both(18_000)])?;
    check_wire(&world, 18_000)?;
    host_port(node, "nft", 18_100)?;
    wait_ports(&world.agent, &[both(18_000), both(18_100)])?;
    host_port(node, "legacy", 18_200)?;
    let all = [both(18_000), both(18_100), both(18_200)];
    wait_ports(&world.agent, &all)?;
    check_wire(&world, 18_200)?;
    let known: BTreeSet<_> = [
        "a CNI plugin (legacy, IPv4)",
        "a CNI plugin (legacy, IPv6)",
        "a CNI plugin (nft, IPv4)",
        "a CNI plugin (nft, IPv6)",
        "an unknown program (nftables, both)",
    ]
    .into();
    wait_for(SOON, "all sources in the status", || {
        let status = status(&world.agent).unwrap_or_default();
        let rows = status["report"]["node"]["ports"].as_array();
        let from = rows
            .into_iter()
            .flatten()
            .filter_map(|r| r["from"].as_str());
        from.collect::<BTreeSet<_>>() == known
    })?;
    native_port(node, "delete", 18_000)?;
    flush(node, "nft")?;
    flush(node, "legacy")?;
    wait_ports(&world.agent, &[])?;
    let to = echoes(&world.far)[0];
    // The first pod's mapping keeps its port.
    let seen = Tcp::connect(world.pod(1), from_port(18_000, to), to)?.ask()?;
    assert_eq!(seen.port(), 18_000);
    Ok(())
}

/// A rule for an address applies while the node has that address.
#[test]
fn rules_follow_the_nodes_addresses() -> Result<()> {
    let world = World::start()?;
    let node = &world.bed.node;
    native(node)?;
    nft(
        node,
        "add rule inet services in ip daddr 10.1.0.77 tcp dport 8443 dnat ip to 172.16.0.2:80;
         add rule inet services in tcp dport 8444 dnat ip to 172.16.0.2:80;",
    )?;
    wait_ports(&world.agent, &[(8444, NODE_PORT_TCP)])?;
    node.ip("address add 10.1.0.77/32 dev eth0")?;
    wait_ports(
        &world.agent,
        &[(8443, NODE_PORT_TCP), (8444, NODE_PORT_TCP)],
    )?;
    node.ip("address delete 10.1.0.77/32 dev eth0")?;
    wait_ports(&world.agent, &[(8444, NODE_PORT_TCP)])
}

/// Rules removed while no agent runs are no longer in force after the next start.
#[test]
fn a_new_agent_finds_what_has_changed() -> Result<()> {
    let mut world = World::start()?;
    native(&world.bed.node)?;
    native_port(&world.bed.node, "add", 18_000)?;
    native_port(&world.bed.node, "add", 18_001)?;
    wait_ports(&world.agent, &[both(18_000), both(18_001)])?;
    world.agent.kill9()?;
    native_port(&world.bed.node, "delete", 18_000)?;
    native_port(&world.bed.node, "add", 18_002)?;
    assert_eq!(ports(&world.agent)?, [both(18_000), both(18_001)]);
    world.agent.restart()?;
    assert_eq!(ports(&world.agent)?, [both(18_001), both(18_002)]);
    Ok(())
}

#[test]
fn a_rule_without_a_port_is_told() -> Result<()> {
    let world = World::start()?;
    native(&world.bed.node)?;
    native_port(&world.bed.node, "add", 18_000)?;
    let wide =
        "add rule inet services in fib daddr type local udp dport 1-65535 dnat ip to 172.16.0.2;";
    nft(&world.bed.node, wide)?;
    wait_log(
        &world.agent,
        "only live connections are distinguished: udp of nftables, both",
    )?;
    wait_ports(&world.agent, &[both(18_000)])?;
    wait_status(
        &world.agent,
        "not kept   udp of nftables, both, inet services in:",
    )
}

/// As in the image without iptables and nft.
#[test]
fn without_programs_it_says_what_it_cannot_keep() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new("")?;
    let options = AgentOptions::new(NETDP)
        .config(config.path())
        .arg("--tool-dir")
        .arg("/nonexistent");
    let agent = Agent::start(&bed.node, options)?;
    let text = agent.netdp(&["status"])?;
    let words = "not kept   hostPorts and services, as far as NAT rules cannot be read: nftables: the program nft is not installed";
    ensure!(text.contains(words), "no {words:?} in\n{text}");
    // That is how the image is built, and not a fault.
    wait_log(&agent, "because neither nft nor iptables is installed: ")?;
    let log = agent.log();
    ensure!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    ensure!(log.matches("is installed").count() == 1, "{log}");
    ensure!(!log.contains("is not installed"), "{log}");
    Ok(())
}

fn spoken(agent: &Agent) -> Result<BTreeSet<ProtocolPeer>> {
    Ok(NodeMaps::open(&agent.bpffs())?.protocols().clone())
}

fn wait_spoken(agent: &Agent, wanted: &[(u8, &str)]) -> Result<()> {
    let spoken_of = |&(protocol, peer): &(u8, &str)| -> Result<ProtocolPeer> {
        let peer = peer.parse()?;
        Ok(ProtocolPeer { protocol, peer })
    };
    let wanted: BTreeSet<_> = wanted.iter().map(spoken_of).collect::<Result<_>>()?;
    let mut seen = None;
    wait_for(SOON, &format!("the protocols {wanted:?}"), || {
        seen = spoken(agent).ok();
        seen.as_ref() == Some(&wanted)
    })
    .with_context(|| format!("there are {seen:?}; the agent wrote:\n{}", agent.log()))
}

#[test]
fn sockets_and_ipsec_of_the_node_count() -> Result<()> {
    let world = World::start()?;
    let node = &world.bed.node;
    let socket = |protocol: i32, kind: Type, at: &str, to: Option<&str>| -> Result<Socket> {
        let at: SocketAddr = at.parse()?;
        let to: Option<SocketAddr> = to.map(str::parse).transpose()?;
        node.open(|| {
            let protocol = Some(Protocol::from(protocol));
            let socket = Socket::new(Domain::for_address(at), kind, protocol)?;
            socket.bind(&at.into())?;
            if let Some(to) = to {
                socket.connect(&to.into())?;
            }
            Ok(socket)
        })
    };
    let lite = (136, Type::DGRAM);
    let sockets = [
        socket(lite.0, lite.1, "10.1.0.10:7001", None)?,
        socket(lite.0, lite.1, "[fd00:1::10]:7002", None)?,
        socket(47, Type::RAW, "10.1.0.10:0", Some("10.1.0.20:0"))?,
        socket(89, Type::RAW, "0.0.0.0:0", None)?,
        socket(89, Type::RAW, "[::]:0", None)?,
        // Excluding those that every node has.
        socket(1, Type::RAW, "0.0.0.0:0", None)?,
        socket(6, Type::RAW, "0.0.0.0:0", None)?,
    ];
    wait_ports(
        &world.agent,
        &[(7001, NODE_PORT_UDP_LITE), (7002, NODE_PORT_UDP_LITE)],
    )?;
    let raw = [(47, "10.1.0.20"), (89, "0.0.0.0"), (89, "::")];
    wait_spoken(&world.agent, &raw)?;
    let policy = "dir out src 0.0.0.0/0 dst 198.51.100.0/24";
    node.ip(&format!(
        "xfrm policy add {policy} tmpl src 10.1.0.10 dst 192.0.2.8 proto esp mode tunnel"
    ))?;
    wait_spoken(&world.agent, &[&raw[..], &[(50, "192.0.2.8")]].concat())?;
    wait_status(
        &world.agent,
        "node ports udplite 7001-7002; protocols gre to 10.1.0.20, esp to 192.0.2.8, ospf\n",
    )?;
    node.ip(&format!("xfrm policy delete {policy}"))?;
    drop(sockets);
    wait_spoken(&world.agent, &[])?;
    wait_ports(&world.agent, &[])
}

/// In iptables mode, ports are neither scanned nor shown.
#[test]
fn in_iptables_mode_there_is_nothing_to_keep() -> Result<()> {
    let bed = Bed::dual_stack()?;
    host_port(&bed.node, "nft", HOST_PORT)?;
    let config = ConfigVolume::new(crate::common::POLICY_V4)?;
    let agent = start_agent(&bed.node, &config, &["--mode", "iptables"])?;
    assert!(status(&agent)?["report"]["node"].is_null());
    assert!(!agent.netdp(&["status"])?.contains("node ports"));
    Ok(())
}
