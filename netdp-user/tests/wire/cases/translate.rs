//! 1: scope of the translation.

use crate::bed::{At, BOTH, V4, V6, far_server, node, peer, pod, router, server};
use crate::build::{ACK, SYN, ping, pong, tcp, udp};
use crate::driver::Wire;
use anyhow::{Result, ensure};
use std::net::IpAddr;
use std::time::Duration;
use testbed::wait_for;

pub fn r1_1_pods_leave_with_the_nodes_address(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        w.udp(0, 4000, (server(f, 0), 53))?;
        w.tcp(0, 4001, (server(f, 0), 80))?;
        let wire = w.out(0, &ping((pod(f, 0), 7), server(f, 0), b"ping"))?;
        let back = pong(server(f, 0), wire, b"ping");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &back.forwarded().to((pod(f, 0), 7)))?;
    }
    Ok(())
}

pub fn r1_2_non_masquerade_cidrs_see_the_pod(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let out = udp((pod(f, 0), 4000), (peer(f), 53), b"direct");
        w.send(At::Pod(0), &out)?;
        w.expect_exactly(At::Uplink(0), &out.forwarded())?;
        let back = udp((peer(f), 53), (pod(f, 0), 4000), b"answer");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &back.forwarded())?;
    }
    Ok(())
}

pub fn r1_3_the_nodes_own_addresses_see_the_pod(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        // Another node's pod pings the node through the uplink.
        let ask = ping((pod(f, 0), 9), node(f, 0), b"who");
        w.send(At::Pod(0), &ask)?;
        let answer = w.expect(At::Pod(0), "echo reply", |p| p.src == node(f, 0))?;
        ensure!(answer.dst == pod(f, 0), "{answer:?}");
        w.expect_nothing(At::Uplink(0))?;
    }
    Ok(())
}

pub fn r1_4_replies_of_inbound_flows_keep_the_pods_address(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        w.answers_go_to(server(f, 0));
        let (client, service) = ((server(f, 0), 5000), (pod(f, 0), 80));
        let mut both_ways = |inbound: crate::packet::Packet, reply: crate::packet::Packet| {
            w.send(At::Uplink(0), &inbound)?;
            w.expect_exactly(At::Pod(0), &inbound.forwarded())?;
            w.send(At::Pod(0), &reply)?;
            w.expect_exactly(At::Uplink(0), &reply.forwarded())
        };
        both_ways(
            tcp(client, service, SYN, (1, 0), b""),
            tcp(service, client, SYN | ACK, (9, 2), b""),
        )?;
        both_ways(
            tcp(client, service, ACK, (2, 10), b"GET"),
            tcp(service, client, ACK, (10, 5), b"200"),
        )?;
        both_ways(
            udp(client, service, b"ask"),
            udp(service, client, b"answer"),
        )?;
        both_ways(
            ping((client.0, 3), service.0, b"ask"),
            pong(service.0, (client.0, 3), b"ask"),
        )?;
    }
    Ok(())
}

pub fn r1_4_node_port_replies_pass(w: &mut Wire) -> Result<()> {
    // Packets that kube-proxy has rewritten leave with the node's address.
    for f in BOTH {
        let listener = std::net::SocketAddr::new(node(f, 0), 30080);
        let socket = w.bed.node.enter(|| std::net::UdpSocket::bind(listener))??;
        let ask = udp((server(f, 0), 5000), (node(f, 0), 30080), b"ask");
        w.send(At::Uplink(0), &ask)?;
        socket.set_read_timeout(Some(Duration::from_secs(15)))?;
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], from)?;
        w.expect(At::Uplink(0), "answer", |p| {
            (p.src, p.sport(), p.dst, p.dport()) == (node(f, 0), 30080, server(f, 0), 5000)
        })?;
    }
    Ok(())
}

pub fn r1_5_a_stray_packet_does_not_make_a_syn_a_reply(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 80));
        // A late segment of a connection without any state.
        let late = tcp(outside, inside, ACK, (77, 88), b"late");
        w.send(At::Uplink(0), &late)?;
        w.take_all(At::Pod(0), |_| true)?;
        w.out(0, &tcp(inside, outside, SYN, (1000, 0), b""))?;
        // As does a late reply to an old request.
        w.send(At::Uplink(0), &tcp(outside, inside, ACK | SYN, (7, 8), b""))?;
        w.take_all(At::Pod(0), |_| true)?;
        w.out(0, &tcp((inside.0, 4001), outside, SYN, (1000, 0), b""))?;
    }
    Ok(())
}

pub fn r1_6_multicast_and_link_local_are_left_alone(w: &mut Wire) -> Result<()> {
    // The node's own packets: mDNS, and a query from its link-local address.
    let group = IpAddr::from([224, 0, 0, 251]);
    let from = std::net::SocketAddr::new(node(V4, 0), 5353);
    w.bed.node.enter(|| -> Result<()> {
        std::net::UdpSocket::bind(from)?.send_to(b"mdns", (group, 5353))?;
        Ok(())
    })??;
    w.expect(At::Uplink(0), "mDNS", |p| {
        (p.src, p.sport(), p.dst) == (node(V4, 0), 5353, group)
    })?;
    // Packets of a DHCP client on the node's bridge through the uplink.
    let dhcp = udp(
        (IpAddr::from([0; 4]), 68),
        (IpAddr::from([255; 4]), 67),
        b"discover",
    );
    w.node_sends(&dhcp)?;
    w.expect_exactly(At::Uplink(0), &dhcp)?;
    let local: IpAddr = "fe80::1234".parse()?;
    let solicit = ping((local, 1), router(V6), b"link-local");
    w.node_sends(&solicit)?;
    w.expect_exactly(At::Uplink(0), &solicit)
}

pub fn r1_8_pods_of_one_node_see_each_other(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let ask = udp((pod(f, 0), 4000), (pod(f, 1), 53), b"ask");
        w.send(At::Pod(0), &ask)?;
        w.expect_exactly(At::Pod(1), &ask.forwarded())?;
        let answer = udp((pod(f, 1), 53), (pod(f, 0), 4000), b"answer");
        w.send(At::Pod(1), &answer)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded())?;
    }
    Ok(())
}

pub fn r1_10_each_uplink_has_its_own_address(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let near = w.udp(0, 4000, (server(f, 0), 53))?;
        let far = w.udp(0, 4000, (far_server(f), 53))?;
        ensure!(near.wire.0 == node(f, 0) && far.wire.0 == node(f, 1));
    }
    Ok(())
}

pub fn r1_10_the_routes_preferred_source_is_used(w: &mut Wire) -> Result<()> {
    w.bed.node.ip("addr add 192.0.2.77/24 dev up0")?;
    w.bed
        .node
        .ip("route add 198.51.100.77/32 via 192.0.2.1 src 192.0.2.77")?;
    w.bed.agent_knows("192.0.2.77".parse()?)?;
    let dst = IpAddr::from([198, 51, 100, 77]);
    // The agent writes the sources of routes a moment after its addresses; a flow keeps what it got.
    let mut port = 4000;
    wait_for(Duration::from_secs(30), "the route's source", || {
        port += 1;
        let packet = udp((pod(V4, 0), port), (dst, 53), b"ask");
        let seen = w
            .send(At::Pod(0), &packet)
            .and_then(|()| w.expect(At::Uplink(0), "datagram", |p| p.dst == dst));
        seen.is_ok_and(|seen| seen.src == IpAddr::from([192, 0, 2, 77]))
    })
}

pub fn r1_10_no_address_means_no_packet(w: &mut Wire) -> Result<()> {
    for line in [
        "addr del 192.0.2.10/24 dev up0",
        "route add default dev up0 scope link",
        "neigh add 198.51.100.10 lladdr 02:00:00:00:00:02 dev up0 nud permanent",
        "neigh add 10.9.0.1 lladdr 02:00:00:00:00:02 dev up0 nud permanent",
    ] {
        w.bed.node.ip(line)?;
    }
    w.bed.agent_forgets(node(V4, 0))?;
    w.send(
        At::Pod(0),
        &udp((pod(V4, 0), 4000), (server(V4, 0), 53), b"ask"),
    )?;
    let seen = w.take_all(At::Uplink(0), |p| p.dst == server(V4, 0))?;
    ensure!(
        seen.iter().all(|p| p.src == node(V4, 1)),
        "an address that is not the node's: {seen:?}"
    );
    Ok(())
}
