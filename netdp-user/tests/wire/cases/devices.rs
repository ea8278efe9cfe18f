//! 1.7, 5.8, 9.7: uplinks and pod networks on devices other than plain wires.

use crate::bed::{At, BOTH, Family, V4, V6, lower, node, pod, server};
use crate::build::{ACK, error, ping, pong, udp};
use crate::cases::fragments::{left_whole, same_datagram};
use crate::driver::Wire;
use crate::packet::{Packet, UDP};
use anyhow::{Context as _, Result, ensure};
use std::net::IpAddr;

/// Destination UDP port of the VXLAN tunnel to the node of the other pod network.
const VXLAN: u16 = 4789;

/// Returns the address of a pod on another node, behind the tunnel.
fn remote_pod(f: Family) -> IpAddr {
    match f {
        V4 => IpAddr::from([172, 16, 9, 2]),
        V6 => IpAddr::from([0xfd00, 0x173, 0, 0, 0, 0, 0, 2]),
    }
}

/// Returns the packet in the frame of a VXLAN packet (RFC 7348 5).
fn inner_packet(outer: &Packet) -> Result<Packet> {
    let frame = outer.body.get(16..).context("no VXLAN header")?;
    ensure!(outer.body[8..16] == [8, 0, 0, 0, 0, 0, 7, 0], "{outer:?}");
    Packet::parse(frame.get(14..).context("no frame inside")?)
}

/// Creates a tunnel between nodes over one family.
fn tunnel(w: &Wire, over: Family) -> Result<()> {
    let node_ns = &w.bed.node;
    node_ns.ip(&format!(
        "link add vx0 address 02:00:00:00:07:01 type vxlan id 7 dstport {VXLAN} \
         srcport 40000 40001 udpcsum local {} remote {} dev up0 noudp6zerocsumrx",
        node(over, 0),
        server(over, 9)
    ))?;
    node_ns.ip("link set vx0 up")?;
    for f in BOTH {
        let len = if f == V4 { 32 } else { 128 };
        let (to, via) = (remote_pod(f), "02:00:00:00:07:02");
        node_ns.ip(&format!("route add {to}/{len} dev vx0"))?;
        node_ns.ip(&format!(
            "neigh add {to} lladdr {via} dev vx0 nud permanent"
        ))?;
        // A destination that is masqueraded on uplinks, routed through the tunnel.
        let to = server(f, 8);
        node_ns.ip(&format!("route add {to}/{len} dev vx0"))?;
        node_ns.ip(&format!(
            "neigh add {to} lladdr {via} dev vx0 nud permanent"
        ))?;
    }
    Ok(())
}

fn by_tunnel(w: &mut Wire, over: Family, f: Family) -> Result<()> {
    let to_tunnel = move |p: &Packet| p.proto == UDP && p.dport() == VXLAN;
    for dst in [remote_pod(f), server(f, 8)] {
        let sent = udp((pod(f, 0), 4000), (dst, 4000), b"by the tunnel");
        w.send(At::Pod(0), &sent)?;
        // The device also sends packets of its own: neighbour discovery.
        let outer = w.expect(At::Uplink(0), "tunnel packet", |p| {
            to_tunnel(p) && p.dst == server(over, 9) && p.body.ends_with(b"by the tunnel")
        })?;
        ensure!(
            outer.src == node(over, 0) && outer.sport() == 40000,
            "{outer:?}"
        );
        let inner = inner_packet(&outer)?;
        ensure!(inner == sent.forwarded(), "inside there is {inner:?}");
        // Packets from the tunnel reach the pod unmodified.
        let answer = udp((dst, 4000), (pod(f, 0), 4000), b"out of the tunnel");
        let frame: [&[u8]; 4] = [
            &[2, 0, 0, 0, 7, 1],
            &[2, 0, 0, 0, 7, 2],
            if f == V4 { &[8, 0] } else { &[0x86, 0xdd] },
            &answer.bytes(),
        ];
        let payload = [&[8, 0, 0, 0, 0, 0, 7, 0], &frame.concat()[..]].concat();
        let back = udp((server(over, 9), 40000), (node(over, 0), VXLAN), &payload);
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded())?;
    }
    Ok(())
}

/// Returns netdp's count of translated packets.
fn translated(w: &Wire) -> Result<u64> {
    let Some(agent) = &w.bed.agent else {
        return Ok(0);
    };
    let status: serde_json::Value = serde_json::from_str(&agent.netdp(&["status", "-o", "json"])?)?;
    let count = |name: &str| status["packets"][name].as_u64().context("a count");
    Ok(count("egress_masqueraded")? + count("ingress_translated")?)
}

pub fn r1_7_tunnel_packets_are_not_translated_again(w: &mut Wire) -> Result<()> {
    for over in BOTH {
        tunnel(w, over)?;
        let before = translated(w)?;
        for f in BOTH {
            by_tunnel(w, over, f)?;
        }
        // A packet to the node's own address and port would count as translated, too.
        ensure!(translated(w)? == before, "tunnel packets were translated");
        // Pods are still masqueraded on the uplink, even towards the tunnel's other end.
        let flow = w.tcp(0, 4001, (server(over, 9), VXLAN))?;
        by_tunnel(w, over, V4)?;
        w.same(&flow, &flow.sends(ACK, (1001, 5001), b"still the pod's"))?;
        w.bed.node.ip("link del vx0")?;
    }
    Ok(())
}

/// Sends every kind of packet in both directions over the first uplink.
fn all_kinds(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let second = w.udp(1, 4000, (server(f, 0), 53))?;
        ensure!(flow.wire != second.wire, "one port for two");
        let tcp = w.tcp(0, 4000, (server(f, 0), 80))?;
        w.back(&tcp, &tcp.gets(ACK, (5001, 1001), b"data"))?;
        let wire = w.out(0, &ping((pod(f, 0), 77), server(f, 0), b"ping"))?;
        let answer = pong(server(f, 0), wire, b"ping");
        w.send(At::Uplink(0), &answer)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded().to((pod(f, 0), 77)))?;
        let unreachable = if f == V4 { (3, 3) } else { (1, 4) };
        let about = |packet: &Packet, to| {
            error(
                server(f, 0),
                to,
                unreachable,
                0,
                &packet.clone().forwarded().bytes(),
            )
        };
        let asked = flow.asks(b"too much");
        w.send(
            At::Uplink(0),
            &about(&asked.clone().from(flow.wire), flow.wire.0),
        )?;
        w.expect_exactly(At::Pod(0), &about(&asked, flow.inside.0).forwarded())?;
        // The first fragment last in both directions: on ingress, the others are held.
        let (out, back) = (flow.asks(&[7; 3000]), flow.answers(&[9; 3000]));
        for part in out.fragments(1200).iter().rev() {
            w.send(At::Pod(0), part)?;
        }
        left_whole(w, &flow, &out)?;
        for part in back.fragments(1200).iter().rev() {
            w.send(At::Uplink(0), part)?;
        }
        let parts = w.take_all(At::Pod(0), |p| p.part.is_some())?;
        same_datagram(&parts, &back.forwarded().to(flow.inside))?;
        w.expect_nothing(At::Uplink(0))?;
    }
    Ok(())
}

pub fn r5_8_no_ethernet_header(w: &mut Wire) -> Result<()> {
    all_kinds(w)?;
    let mut bad = udp((pod(V4, 0), 4100), (server(V4, 0), 53), b"cut");
    bad.body.truncate(4);
    w.refused(0, &bad)
}

/// The tag is in the skb's metadata, not in the packet: the node's device removed it on ingress,
/// and `tc` redirects the frame to the uplink. Of two tags the inner one stays.
pub fn r5_8_vlan_tags_taken_off(w: &mut Wire) -> Result<()> {
    let router = &w.bed.node;
    router.run(&["tc", "qdisc", "add", "dev", "pod1", "clsact"])?;
    let redirect = "filter add dev pod1 ingress protocol all u32 match u32 0 0 \
                    action mirred egress redirect dev up0";
    router.run(
        &[
            &["tc"][..],
            &redirect.split_whitespace().collect::<Vec<_>>(),
        ]
        .concat(),
    )?;
    for f in BOTH {
        for tags in [
            &[[0x81, 0, 0, 7]][..],
            &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]],
        ] {
            let packet = udp((pod(f, 1), 4000), (server(f, 0), 53), b"tagged");
            w.send_tagged(At::Pod(1), &packet, tags)?;
            let frames = w.frames_with(At::Uplink(0), b"tagged")?;
            ensure!(frames.len() == 1, "{frames:02x?}");
            let header = 14 + 4 * (tags.len() - 1);
            let seen = Packet::parse(&frames[0][header..])?;
            ensure!(seen == packet.from((node(f, 0), 4000)), "{seen:?}");
        }
        // The reply has a priority tag (VLAN 0), which the node's stack accepts.
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let answer = flow.answers(b"with priority");
        w.send_tagged(At::Uplink(0), &answer, &[[0x81, 0, 0xa0, 0]])?;
        w.expect_exactly(At::Pod(0), &answer.forwarded().to(flow.inside))?;
    }
    Ok(())
}

/// Checks the agent's counters: a second translation would count as the node's own traffic, or as
/// one more masqueraded packet.
fn counted_once(w: &Wire, uplinks: &[&str]) -> Result<()> {
    let Some(agent) = &w.bed.agent else {
        return Ok(());
    };
    let status: serde_json::Value = serde_json::from_str(&agent.netdp(&["status", "-o", "json"])?)?;
    let named = status["report"]["uplinks"].as_array().into_iter().flatten();
    let names: Vec<_> = named.filter_map(|uplink| uplink["name"].as_str()).collect();
    ensure!(names == uplinks, "the uplinks are {names:?}");
    let packets = &status["packets"];
    ensure!(packets["egress_host"] == 0, "{packets:#}");
    // TCP and UDP in two families; the second pod's port changes in each.
    ensure!(packets["ports_changed"] == 2, "{packets:#}");
    Ok(())
}

pub fn r9_7_one_translation_on_a_bridge(w: &mut Wire) -> Result<()> {
    all_kinds(w)?;
    counted_once(w, &["up0", "up1"])
}

pub fn r9_7_one_translation_on_a_macvlan(w: &mut Wire) -> Result<()> {
    all_kinds(w)?;
    counted_once(w, &["up0", "up1"])
}

pub fn r9_7_one_translation_where_both_are_named(w: &mut Wire) -> Result<()> {
    all_kinds(w)?;
    counted_once(w, &["up0", "up1"])
}

/// The lower device has addresses, so packets may be routed directly through it: it is the uplink
/// and also processes the packets of the upper device.
pub fn r9_7_one_translation_where_the_lower_has_addresses(w: &mut Wire) -> Result<()> {
    w.bed.agent()?;
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 53));
        w.send(At::Pod(0), &udp(inside, outside, b"question"))?;
        let seen = w.expect(At::Uplink(0), "question", |p| p.dst == outside.0)?;
        let source = lower(f);
        ensure!((seen.src, seen.sport()) == (source, 4000), "{seen:?}");
        let answer = udp(outside, (source, 4000), b"answer");
        w.send(At::Uplink(0), &answer)?;
        w.expect_exactly(At::Pod(0), &answer.forwarded().to(inside))?;
    }
    Ok(())
}
