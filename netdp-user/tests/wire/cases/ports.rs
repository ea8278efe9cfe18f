//! 2: mappings and ports.

use crate::bed::{At, BOTH, V4, node, pod, server};
use crate::build::{ACK, RST, SYN, error, ping, pong, tcp, udp};
use crate::driver::Wire;
use crate::packet::TCP;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;

pub fn r2_1_two_pods_never_share_a_tuple(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let mut ids = BTreeSet::new();
        for n in 0..2 {
            ids.insert(w.udp(n, 4000, (server(f, 0), 53))?.wire.1);
            ids.insert(w.tcp(n, 4000, (server(f, 0), 80))?.wire.1);
        }
        ensure!(ids.len() >= 2, "shared: {ids:?}");
        // Replies reach their own pod, in whatever order they come.
        let [a, b] = [0, 1].map(|n| w.udp(n, 4100, (server(f, 1), 53)));
        let (a, b) = (a?, b?);
        ensure!(a.wire != b.wire);
        w.back(&b, &b.answers(b"for b"))?;
        w.back(&a, &a.answers(b"for a"))?;
    }
    Ok(())
}

pub fn r2_2_one_port_for_all_destinations(w: &mut Wire) -> Result<()> {
    // The other pod has the port towards the first server, so this pod's changes.
    for f in BOTH {
        w.udp(1, 4000, (server(f, 0), 3478))?;
        let first = w.udp(0, 4000, (server(f, 0), 3478))?;
        for n in 1..4 {
            let next = w.udp(0, 4000, (server(f, n), 3478))?;
            ensure!(next.wire == first.wire, "{first:?}, then {next:?}");
        }
    }
    Ok(())
}

pub fn r2_3_a_free_port_is_kept(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for port in [1024, 4000, 40000, 65535] {
            ensure!(w.udp(0, port, (server(f, 0), 53))?.wire.1 == port);
            ensure!(w.tcp(0, port, (server(f, 0), 80))?.wire.1 == port);
        }
    }
    Ok(())
}

pub fn r2_3_taken_ports_are_replaced_at_random(w: &mut Wire) -> Result<()> {
    let mut changed = Vec::new();
    for port in 4000..4008 {
        w.udp(0, port, (server(V4, 0), 53))?;
        changed.push(w.udp(1, port, (server(V4, 0), 53))?.wire.1);
    }
    let steps: BTreeSet<u16> = changed
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    ensure!(steps.len() > 4, "predictable: {changed:?}");
    Ok(())
}

pub fn r2_3_random_ports_on_demand(w: &mut Wire) -> Result<()> {
    let mut kept = 0;
    for port in 4000..4008 {
        kept += u8::from(w.udp(0, port, (server(V4, 0), 53))?.wire.1 == port);
    }
    ensure!(kept < 2, "{kept} of 8 kept their port");
    Ok(())
}

pub fn r2_3_hashed_ports_are_repeatable(w: &mut Wire) -> Result<()> {
    let first = w.udp(0, 4000, (server(V4, 0), 53))?;
    ensure!(first.wire.1 != 4000, "the port was kept");
    w.end_mappings()?;
    let again = w.udp(0, 4000, (server(V4, 0), 53))?;
    ensure!(first.wire == again.wire, "{first:?}, then {again:?}");
    Ok(())
}

pub fn r2_4_port_classes_are_kept(w: &mut Wire) -> Result<()> {
    for (port, class) in [(400, 1..=511), (700, 600..=1023), (4000, 1024..=65535)] {
        w.udp(1, port, (server(V4, 0), 53))?;
        let changed = w.udp(0, port, (server(V4, 0), 53))?.wire.1;
        ensure!(
            changed != port && class.contains(&changed),
            "{port} became {changed}"
        );
    }
    Ok(())
}

pub fn r2_5_to_ports_is_kept_to(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for port in [4000, 5003, 60000] {
            let udp = w.udp(0, port, (server(f, 0), 53))?.wire.1;
            let tcp = w.tcp(0, port, (server(f, 0), 80))?.wire.1;
            for id in [udp, tcp] {
                ensure!((5000..=5009).contains(&id), "{port} became {id}");
            }
        }
    }
    Ok(())
}

pub fn r2_5_reserved_ports_are_not_given_away(w: &mut Wire) -> Result<()> {
    // The NodePort range, reserved by default.
    for port in [30000, 31234, 32767] {
        for flow in [
            w.udp(0, port, (server(V4, 0), 53))?,
            w.tcp(0, port, (server(V4, 0), 80))?,
        ] {
            let id = flow.wire.1;
            ensure!(!(30000..=32767).contains(&id), "{port} became {id}");
        }
    }
    Ok(())
}

pub fn r2_6_every_port_is_used_then_the_flow_is_refused(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 53);
        let mut flows = Vec::new();
        for n in 0..10 {
            flows.push(w.udp(n % 2, 4000 + u16::try_from(n)?, outside)?);
        }
        let ids: BTreeSet<u16> = flows.iter().map(|flow| flow.wire.1).collect();
        ensure!(ids == (5000..=5009).collect(), "not all were used: {ids:?}");
        w.refused(0, &udp((pod(f, 0), 4999), outside, b"one too many"))?;
        for flow in flows {
            w.same(&flow, &flow.asks(b"still there"))?;
            w.back(&flow, &flow.answers(b"still there"))?;
        }
        // Another destination has its own set of ports.
        w.udp(0, 4999, (server(f, 1), 53))?;
    }
    Ok(())
}

pub fn r2_8_the_pod_is_told_that_ports_are_used_up(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 53);
        for port in 4000..4010 {
            w.udp(0, port, outside)?;
        }
        w.refused(0, &udp((pod(f, 0), 4999), outside, b"one too many"))?;
        let told = w.expect(At::Pod(0), "ICMP error", |p| {
            p.inner().is_ok_and(|i| i.sport() == 4999)
        })?;
        let wanted = if f == V4 { (3, 1) } else { (1, 3) };
        ensure!(
            told.icmp() == wanted && told.src != server(f, 0),
            "{told:?}"
        );
    }
    Ok(())
}

pub fn r5_8_a_refusal_without_ethernet_header(w: &mut Wire) -> Result<()> {
    r2_8_the_pod_is_told_that_ports_are_used_up(w)
}

pub fn r2_9_unsolicited_packets_do_not_move_a_port(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (outside, inside) = ((server(f, 0), 3478), (pod(f, 0), 4000));
        w.send(At::Uplink(0), &udp(outside, (node(f, 0), 4000), b"punch"))?;
        // The node answers as it would without pods.
        w.expect(At::Uplink(0), "port unreachable", |p| p.dst == outside.0)?;
        let wire = w.out(0, &udp(inside, outside, b"ask"))?;
        ensure!(wire.1 == 4000, "the port became {}", wire.1);
        w.send(
            At::Uplink(0),
            &tcp(outside, (node(f, 0), 4000), SYN, (5, 0), b""),
        )?;
        w.expect(At::Uplink(0), "RST", |p| {
            p.proto == TCP && p.tcp_flags() & RST != 0
        })?;
        let wire = w.out(0, &tcp(inside, outside, SYN, (1000, 0), b""))?;
        ensure!(wire.1 == 4000, "the port became {}", wire.1);
    }
    Ok(())
}

pub fn r2_12_only_the_asked_may_answer(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        w.not_back(0, &udp((server(f, 1), 53), flow.wire, b"other host"))?;
        w.not_back(0, &udp((server(f, 0), 54), flow.wire, b"other port"))?;
        w.back(&flow, &flow.answers(b"the one asked"))?;
    }
    Ok(())
}

pub fn r2_14_unsolicited_packets_are_the_nodes(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        w.udp(0, 4000, (server(f, 0), 53))?;
        let (from, to) = ((server(f, 1), 99), (node(f, 0), 4000));
        let about = udp(to, from, b"never sent").bytes();
        let unreachable = if f == V4 { (3, 3) } else { (1, 4) };
        for (packet, answer) in [
            (udp(from, to, b"x"), true),
            (tcp(from, to, SYN, (1, 0), b""), true),
            (tcp(from, to, SYN | ACK, (1, 1), b""), true),
            (tcp(from, to, RST, (1, 0), b""), false),
            (error(from.0, to.0, unreachable, 0, &about), false),
            (pong(from.0, (to.0, 77), b"x"), false),
            (ping((from.0, 77), to.0, b"x"), true),
        ] {
            w.not_back(0, &packet)?;
            w.expect_nothing(At::Pod(1))?;
            let answers = w.take_all(At::Uplink(0), |p| p.dst == from.0)?;
            ensure!(
                answers.len() == usize::from(answer),
                "to {packet:?}: {answers:?}"
            );
        }
    }
    Ok(())
}
