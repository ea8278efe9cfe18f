//! 9: events around the datapath.

use crate::bed::{At, BOTH, V4, far_server, node, server};
use crate::build::{ACK, SYN, tcp, udp};
use crate::driver::Wire;
use anyhow::{Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};

pub fn r9_2_flows_outlive_the_agent(w: &mut Wire) -> Result<()> {
    let flows: Vec<_> = BOTH
        .iter()
        .map(|&f| {
            Ok((
                w.udp(0, 4000, (server(f, 0), 53))?,
                w.tcp(1, 4000, (server(f, 0), 80))?,
            ))
        })
        .collect::<Result<_>>()?;
    for step in 0..3 {
        match step {
            1 => w.bed.any_agent()?.kill9()?,
            2 => w.bed.any_agent()?.restart()?,
            _ => {}
        }
        for (udp, tcp) in &flows {
            w.same(udp, &udp.asks(b"still here"))?;
            w.back(udp, &udp.answers(b"still here"))?;
            w.same(tcp, &tcp.sends(ACK, (1001, 5001), b"still here"))?;
            w.back(tcp, &tcp.gets(ACK, (5001, 1001), b"still here"))?;
        }
        // New flows are translated without it, too.
        for f in BOTH {
            w.udp(0, 4100 + step, (server(f, 1), 53))?;
        }
    }
    Ok(())
}

pub fn r9_5_flows_end_with_their_address(w: &mut Wire) -> Result<()> {
    let old = w.udp(0, 4000, (server(V4, 0), 53))?;
    let other = w.udp(0, 4000, (far_server(V4), 53))?;
    let new = IpAddr::from([192, 0, 2, 11]);
    w.bed
        .node
        .sysctl("net.ipv4.conf.up0.promote_secondaries", "1")?;
    for line in [
        "addr add 192.0.2.11/24 dev up0",
        "addr del 192.0.2.10/24 dev up0",
        "route replace default via 192.0.2.1",
    ] {
        w.bed.node.ip(line)?;
    }
    w.bed.agent_knows(new)?;
    w.bed.agent_forgets(old.wire.0)?;
    w.bed.sweep()?;
    w.send(At::Pod(0), &old.asks(b"by the new address"))?;
    let seen = w.expect(At::Uplink(0), "datagram", |p| p.dst == server(V4, 0))?;
    ensure!(seen.src == new, "{seen:?}");
    w.same(&other, &other.asks(b"not concerned"))?;
    w.back(&other, &other.answers(b"not concerned"))
}

pub fn r9_5_an_added_address_changes_nothing(w: &mut Wire) -> Result<()> {
    let flow = w.tcp(0, 4000, (server(V4, 0), 80))?;
    w.bed.node.ip("addr add 192.0.2.99/24 dev up0")?;
    w.bed.agent_knows(IpAddr::from([192, 0, 2, 99]))?;
    w.same(&flow, &flow.sends(ACK, (1001, 5001), b"as before"))?;
    w.back(&flow, &flow.gets(ACK, (5001, 1001), b"as before"))?;
    w.udp(1, 4000, (server(V4, 0), 53))?;
    Ok(())
}

pub fn r9_5_flows_survive_a_link_flap(w: &mut Wire) -> Result<()> {
    let udp = w.udp(0, 4000, (server(V4, 0), 53))?;
    let tcp = w.tcp(0, 4000, (server(V4, 0), 80))?;
    w.bed.flap()?;
    w.same(&udp, &udp.asks(b"again"))?;
    w.back(&udp, &udp.answers(b"again"))?;
    w.same(&tcp, &tcp.sends(ACK, (1001, 5001), b"again"))?;
    w.back(&tcp, &tcp.gets(ACK, (5001, 1001), b"again"))
}

pub fn r9_5_flows_survive_a_conntrack_flush(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        // The port is already used, so that it changes.
        w.udp(1, 4000, (server(f, 0), 53))?;
        let udp = w.udp(0, 4000, (server(f, 0), 53))?;
        let tcp = w.tcp(0, 4000, (server(f, 0), 80))?;
        w.bed.node.run(&["conntrack", "-F"])?;
        w.same(&tcp, &tcp.sends(ACK, (1001, 5001), b"again"))?;
        w.back(&tcp, &tcp.gets(ACK, (5001, 1001), b"again"))?;
        w.same(&udp, &udp.asks(b"again"))?;
        w.back(&udp, &udp.answers(b"again"))?;
    }
    Ok(())
}

pub fn r9_6_replies_may_come_by_another_uplink(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let answer = flow.answers(b"the other way round");
        w.send(At::Uplink(1), &answer)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded().to(flow.inside))?;
        let flow = w.tcp(0, 4000, (far_server(f), 80))?;
        let answer = flow.gets(ACK, (5001, 1001), b"the other way round");
        w.send(At::Uplink(0), &answer)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded().to(flow.inside))?;
    }
    Ok(())
}

pub fn r9_10_the_nodes_own_flows_are_untouched(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (local, outside) = ((node(f, 0), 45678), (server(f, 0), 53));
        let socket = w
            .bed
            .node
            .enter(|| UdpSocket::bind(SocketAddr::from(local)))??;
        socket.send_to(b"the node asks", SocketAddr::from(outside))?;
        w.expect(At::Uplink(0), "the node's question", |p| {
            (p.src, p.sport()) == local && p.body.ends_with(b"the node asks")
        })?;
        w.send(At::Uplink(0), &udp(outside, local, b"answer"))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(15)))?;
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer)?;
        ensure!(&buffer[..len] == b"answer" && from == SocketAddr::from(outside));
    }
    Ok(())
}

pub fn r9_6_a_new_flow_uses_the_uplink_that_routing_says(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let inside = (crate::bed::pod(f, 0), 4000);
        let wire = w.out(0, &tcp(inside, (far_server(f), 80), SYN, (1, 0), b""))?;
        ensure!(wire.0 == node(f, 1));
        w.expect_nothing(At::Uplink(0))?;
    }
    Ok(())
}
