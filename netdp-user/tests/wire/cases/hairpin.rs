//! 2.13: pods that reach each other by their external endpoints.

use crate::bed::{At, BOTH, Family, V4, node, pod, server};
use crate::build::{ACK, RST, SYN, error, ping, tcp, udp};
use crate::driver::Wire;
use crate::flow::Flow;
use crate::packet::{End, Packet, TCP};
use anyhow::{Result, ensure};

/// Opens both pods' flows to one server; the second pod's port changes, because the first one has
/// it.
fn met(w: &mut Wire, f: Family) -> Result<[Flow; 2]> {
    let outside = (server(f, 0), 3478);
    Ok([w.udp(0, 4000, outside)?, w.udp(1, 4000, outside)?])
}

/// Checks that a pod's packet reaches the other pod, with its external endpoint as the source.
fn turns(w: &mut Wire, from: usize, packet: &Packet, wire: End, to: &Flow) -> Result<()> {
    w.send(At::Pod(from), packet)?;
    let wanted = packet.clone().forwarded().from(wire).to(to.inside);
    w.expect_exactly(At::Pod(to.pod), &wanted)
}

/// Checks that a pod's packet to the node is dropped without an answer.
fn vanishes(w: &mut Wire, from: usize, packet: &Packet) -> Result<()> {
    w.send(At::Pod(from), packet)?;
    w.expect_nothing(At::Pod(0))?;
    w.expect_nothing(At::Pod(1))
}

pub fn r2_13_pods_that_ask_for_each_other_meet(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let [a, b] = met(w, f)?;
        ensure!(b.wire.1 != 4000, "the port was to be changed");
        // Only peers of the mapping may enter (2.12); the attempt opens the reverse path.
        vanishes(w, 0, &udp(a.inside, b.wire, b"first"))?;
        turns(w, 1, &udp(b.inside, a.wire, b"second"), b.wire, &a)?;
        turns(w, 0, &udp(a.inside, b.wire, b"third"), a.wire, &b)?;
        turns(w, 1, &udp(b.inside, a.wire, b""), b.wire, &a)?;
        // Packets to the server are translated as before.
        w.same(&a, &a.asks(b"still there"))?;
        w.back(&b, &b.answers(b"still there"))?;

        // TCP: a simultaneous open.
        let outside = (server(f, 0), 80);
        let (a, b) = (w.tcp(0, 5000, outside)?, w.tcp(1, 5001, outside)?);
        let there = |flags, numbers| tcp(a.inside, b.wire, flags, numbers, b"");
        let back = |flags, numbers| tcp(b.inside, a.wire, flags, numbers, b"");
        vanishes(w, 0, &there(SYN, (100, 0)))?;
        turns(w, 1, &back(SYN, (200, 0)), b.wire, &a)?;
        turns(w, 0, &there(SYN | ACK, (100, 201)), a.wire, &b)?;
        turns(w, 1, &back(ACK, (201, 101)), b.wire, &a)?;
        turns(w, 0, &there(RST, (101, 0)), a.wire, &b)?;
    }
    Ok(())
}

pub fn r2_13_a_pod_learns_that_the_other_refuses(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let [a, b] = met(w, f)?;
        vanishes(w, 1, &udp(b.inside, a.wire, b"first"))?;
        let asked = udp(a.inside, b.wire, b"second");
        turns(w, 0, &asked, a.wire, &b)?;
        // The refused packet as each of the two pods sees it.
        let unreachable = if f == V4 { (3, 3) } else { (1, 4) };
        let seen = udp(a.wire, b.inside, b"second").forwarded().bytes();
        let sent = udp(a.inside, b.wire, b"second").forwarded().bytes();
        w.send(
            At::Pod(1),
            &error(b.inside.0, a.wire.0, unreachable, 0, &seen),
        )?;
        let told = error(b.wire.0, a.inside.0, unreachable, 0, &sent).forwarded();
        w.expect_exactly(At::Pod(0), &told)?;
    }
    Ok(())
}

pub fn r2_13_the_nodes_own_ports_stay_its_own(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let [_, b] = met(w, f)?;
        let own = (node(f, 0), 4999);
        w.send(At::Pod(0), &udp((pod(f, 0), 4000), own, b"x"))?;
        w.expect(At::Pod(0), "port unreachable", |p| p.src == own.0)?;
        let outside = (server(f, 0), 80);
        let taken = w.tcp(1, 5001, outside)?.wire;
        // A TCP port that no pod has, then one in mid-stream.
        for (port, flags) in [(4999, SYN), (taken.1, ACK)] {
            let packet = tcp((pod(f, 0), 4000), (own.0, port), flags, (1, 0), b"");
            w.send(At::Pod(0), &packet)?;
            w.expect(At::Pod(0), "RST", |p| {
                p.proto == TCP && p.tcp_flags() & RST != 0
            })?;
        }
        w.send(At::Pod(0), &ping((pod(f, 0), 4000), b.wire.0, b"x"))?;
        w.expect(At::Pod(0), "answer", |p| p.src == b.wire.0)?;
        w.expect_nothing(At::Pod(1))?;
    }
    Ok(())
}
