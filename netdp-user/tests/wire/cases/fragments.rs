//! 7: fragmentation and reassembly.

use crate::bed::{At, BOTH, Family, V4, node, pod, server};
use crate::build::{ACK, reassembled, tcp, udp};
use crate::driver::Wire;
use crate::flow::Flow;
use crate::packet::Packet;
use anyhow::{Result, ensure};

const DATA: [u8; 4000] = [0x5a; 4000];

fn flow(w: &mut Wire, f: Family, n: usize) -> Result<Flow> {
    w.udp(n, 4000, (server(f, 0), 53))
}

fn datagram(flow: &Flow, id: u16) -> Packet {
    let mut packet = flow.asks(&DATA);
    packet.id = id;
    packet
}

/// Reassembles the packet on the uplink and compares it with the sent one. IPv4's identification
/// may have changed.
pub fn left_whole(w: &mut Wire, flow: &Flow, sent: &Packet) -> Result<()> {
    let parts = w.take_all(At::Uplink(0), |p| p.part.is_some())?;
    same_datagram(&parts, &sent.clone().forwarded().from(flow.wire))
}

/// Reassembles fragments and compares the result with `wanted`.
pub fn same_datagram(parts: &[Packet], wanted: &Packet) -> Result<()> {
    let mut whole = reassembled(parts)?;
    ensure!(whole.checksum_ok(), "a bad checksum: {whole:?}");
    whole.id = wanted.id;
    ensure!(whole == *wanted, "{whole:?}, not {wanted:?}");
    Ok(())
}

pub fn r7_2_the_node_fragments(w: &mut Wire) -> Result<()> {
    let flow = flow(w, V4, 0)?;
    let sent = flow.asks(&DATA[..1440]);
    w.send(At::Pod(0), &sent)?;
    let parts = w.take_all(At::Uplink(0), |p| p.part.is_some())?;
    ensure!(
        parts.len() == 2 && parts[0].part.is_some_and(|p| p.offset == 0),
        "{parts:?}"
    );
    same_datagram(&parts, &sent.forwarded().from(flow.wire))
}

fn out(w: &mut Wire, order: impl Fn(&mut Vec<Packet>)) -> Result<()> {
    for f in BOTH {
        let flow = flow(w, f, 0)?;
        let sent = datagram(&flow, 0x7777);
        let mut parts = sent.fragments(1200);
        order(&mut parts);
        for part in &parts {
            w.send(At::Pod(0), part)?;
        }
        left_whole(w, &flow, &sent)?;
    }
    Ok(())
}

pub fn r7_3_out_in_order(w: &mut Wire) -> Result<()> {
    out(w, |_| {})
}

pub fn r7_3_out_reversed(w: &mut Wire) -> Result<()> {
    out(w, |parts| parts.reverse())
}

pub fn r7_3_out_first_in_the_middle(w: &mut Wire) -> Result<()> {
    out(w, |parts| parts.rotate_right(2))
}

pub fn r7_3_out_with_a_changed_port(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        flow(w, f, 1)?;
    }
    out(w, |parts| parts.swap(0, 1))
}

pub fn r7_3_a_lone_fragment_does_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = flow(w, f, 0)?;
        let parts = datagram(&flow, 0x4444).fragments(1200);
        w.send(At::Pod(0), &parts[1])?;
        w.send(At::Pod(1), &parts[2].clone().from((pod(f, 1), 0)))?;
        for part in w.take_all(At::Uplink(0), |_| true)? {
            ensure!(part.src == node(f, 0), "{part:?}");
        }
    }
    Ok(())
}

fn back(w: &mut Wire, order: impl Fn(&mut Vec<Packet>)) -> Result<()> {
    for f in BOTH {
        flow(w, f, 1)?;
        for n in [1, 0] {
            let flow = flow(w, f, n)?;
            let mut sent = flow.answers(&DATA);
            sent.id = 0x3333 + u16::from(n == 0);
            let mut parts = sent.fragments(1200);
            order(&mut parts);
            for part in &parts {
                w.send(At::Uplink(0), part)?;
            }
            let parts = w.take_all(At::Pod(n), |p| p.part.is_some())?;
            same_datagram(&parts, &sent.forwarded().to(flow.inside))?;
        }
    }
    Ok(())
}

pub fn r7_4_back_in_order(w: &mut Wire) -> Result<()> {
    back(w, |_| {})
}

pub fn r7_4_back_reversed(w: &mut Wire) -> Result<()> {
    back(w, |parts| parts.reverse())
}

pub fn r7_4_back_first_in_the_middle(w: &mut Wire) -> Result<()> {
    back(w, |parts| parts.rotate_right(2))
}

pub fn r7_4_two_datagrams_interleaved(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flows = [flow(w, f, 0)?, flow(w, f, 1)?];
        let sent = [(flows[0], 0x1111), (flows[1], 0x2222)].map(|(flow, id)| {
            let mut packet = flow.answers(&DATA);
            packet.id = id;
            packet
        });
        let [a, b] = [sent[0].fragments(1200), sent[1].fragments(1200)];
        for (a, b) in a.iter().rev().zip(&b) {
            w.send(At::Uplink(0), a)?;
            w.send(At::Uplink(0), b)?;
        }
        for n in 0..2 {
            let parts = w.take_all(At::Pod(n), |p| p.part.is_some())?;
            same_datagram(&parts, &sent[n].clone().forwarded().to(flows[n].inside))?;
        }
    }
    Ok(())
}

pub fn r7_4_lone_fragments_do_not_use_up_the_room(w: &mut Wire) -> Result<()> {
    let flow = flow(w, V4, 0)?;
    for id in 0..2000 {
        let mut lone = udp((server(V4, 3), 53), flow.wire, &DATA)
            .fragments(1200)
            .remove(1);
        lone.id = id;
        w.send(At::Uplink(0), &lone)?;
    }
    let mut sent = flow.answers(&DATA);
    sent.id = 0x6666;
    for part in sent.fragments(1200).iter().rev() {
        w.send(At::Uplink(0), part)?;
    }
    let parts = w.take_all(At::Pod(0), |p| p.part.is_some())?;
    same_datagram(&parts, &sent.forwarded().to(flow.inside))
}

pub fn r7_5_tiny_and_overlapping_fragments_do_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 80));
        // RFC 1858: the first fragment ends before the flags.
        let segment = tcp(inside, outside, ACK, (1, 1), &DATA[..64]);
        for part in segment.fragments(8) {
            w.send(At::Pod(0), &part)?;
        }
        // The second fragment overlaps the first.
        let mut parts = udp(inside, outside, &DATA).fragments(1200);
        for part in &mut parts {
            part.id = 0x0bad;
            if let Some(p) = part.part.as_mut() {
                p.id = 0x0bad;
                p.offset = p.offset.saturating_sub(16);
            }
            w.send(At::Pod(0), part)?;
        }
        for part in w.take_all(At::Uplink(0), |_| true)? {
            ensure!(part.src == node(f, 0), "{part:?}");
        }
    }
    Ok(())
}

pub fn r7_6_two_pods_with_one_identification(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flows = [flow(w, f, 0)?, flow(w, f, 1)?];
        let sent = flows.map(|flow| datagram(&flow, 0x4242));
        let parts = sent.clone().map(|packet| packet.fragments(1200));
        for (n, part) in parts[0].iter().enumerate() {
            w.send(At::Pod(0), part)?;
            // IPv6's identification is chosen by the source alone: 32 bits.
            let mut other = parts[1][n].clone();
            if let Some(p) = other.part.as_mut().filter(|_| f == Family::V6) {
                p.id ^= 0xffff;
            }
            w.send(At::Pod(1), &other)?;
        }
        let left = w.take_all(At::Uplink(0), |p| p.part.is_some())?;
        // Datagrams with the same identification must not overlap in time.
        let key = |p: &Packet| (p.id, p.part.map(|part| part.id));
        let mut groups: Vec<Vec<Packet>> = Vec::new();
        for part in left {
            let starts = |group: &&mut Vec<Packet>| {
                let done = group.iter().any(|p| p.part.is_some_and(|p| !p.more));
                key(&group[0]) == key(&part) && !(done && group.len() == parts[0].len())
            };
            match groups.iter_mut().find(starts) {
                Some(group) => group.push(part),
                None => groups.push(vec![part]),
            }
        }
        ensure!(groups.len() == 2, "{groups:?}");
        for (packet, flow) in sent.iter().zip(&flows) {
            let wanted = packet.clone().forwarded().from(flow.wire);
            ensure!(
                groups
                    .iter()
                    .any(|group| same_datagram(group, &wanted).is_ok()),
                "{wanted:?} is not among {groups:?}"
            );
        }
    }
    Ok(())
}
