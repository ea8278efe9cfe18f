//! 8: protocols other than TCP, UDP and ICMP.

use crate::bed::{At, BOTH, V4, node, pod, server};
use crate::build::{dccp, other, sctp, sctp_ack, udp_lite};
use crate::driver::Wire;
use crate::packet::{End, Packet};
use anyhow::{Result, ensure};

/// GRE, ESP, IP in IP, IPv6 in IP, EtherIP, an experimental one.
const BARE: [u8; 6] = [47, 50, 4, 41, 97, 253];

fn payload(proto: u8) -> Vec<u8> {
    // A GRE header without a key; arbitrary bytes for the other protocols.
    [vec![0, 0, 8, 0], vec![proto; 37]].concat()
}

pub fn r8_1_any_protocol_by_address(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for proto in BARE {
            let sent = other(pod(f, 0), server(f, 0), proto, &payload(proto));
            w.out(0, &sent)?;
            let back = other(server(f, 0), node(f, 0), proto, &payload(proto));
            w.send(At::Uplink(0), &back)?;
            w.expect_exactly(At::Pod(0), &back.forwarded().to((pod(f, 0), 0)))?;
        }
    }
    Ok(())
}

pub fn r8_1_a_second_pod_is_refused(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for proto in BARE {
            let sent = other(pod(f, 0), server(f, 0), proto, &payload(proto));
            w.out(0, &sent)?;
            w.refused(1, &other(pod(f, 1), server(f, 0), proto, &payload(proto)))?;
            w.out(1, &other(pod(f, 1), server(f, 1), proto, &payload(proto)))?;
            w.out(0, &sent)?;
        }
    }
    Ok(())
}

type Build = fn(End, End, &[u8]) -> Packet;

/// Checks packets of a protocol with ports in both directions.
fn both_ways(w: &mut Wire, there: Build, back: Build) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 7000));
        let wire = w.out(0, &there(inside, outside, b"out here"))?;
        let back = back(outside, wire, b"and back");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &back.forwarded().to(inside))?;
    }
    Ok(())
}

pub fn r5_7_sctp_keeps_its_crc(w: &mut Wire) -> Result<()> {
    both_ways(w, sctp, sctp_ack)
}

pub fn r5_7_sctp_ports_never_change(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 7000);
        w.out(0, &sctp((pod(f, 0), 4000), outside, b"first___"))?;
        w.refused(1, &sctp((pod(f, 1), 4000), outside, b"second__"))?;
        let wire = w.out(1, &sctp((pod(f, 1), 4001), outside, b"otherone"))?;
        ensure!(wire.1 == 4001);
    }
    Ok(())
}

pub fn r8_1_udp_lite(w: &mut Wire) -> Result<()> {
    both_ways(w, udp_lite, udp_lite)
}

pub fn r8_1_udp_lite_with_partial_coverage(w: &mut Wire) -> Result<()> {
    w.bad_checksums_are_sent();
    for f in BOTH {
        // Only header and pseudo-header are covered.
        let covered = |src: End, dst: End| {
            let mut packet = udp_lite(src, dst, b"");
            packet.body[4..6].copy_from_slice(&[0, 8]);
            packet = packet.summed();
            // The pseudo-header has the whole length (RFC 3828 3.1).
            let sum = u32::from(!crate::packet::word(&packet.body, 6)) + 5;
            let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
            packet.body[6..8].copy_from_slice(&sum.to_be_bytes());
            packet.body.extend(b"media");
            packet
        };
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 7000));
        w.send(At::Pod(0), &covered(inside, outside))?;
        let left = w.expect(At::Uplink(0), "UDP-Lite", |p| p.dst == outside.0)?;
        let wire = (left.src, left.sport());
        ensure!(wire.0 == node(f, 0), "{left:?}");
        ensure!(left == covered(wire, outside).forwarded(), "{left:?}");
    }
    Ok(())
}

pub fn r8_1_dccp(w: &mut Wire) -> Result<()> {
    both_ways(w, dccp, dccp)
}

pub fn r8_1_udp_lite_of_two_pods(w: &mut Wire) -> Result<()> {
    let outside = (server(V4, 0), 7000);
    let a = w.out(0, &udp_lite((pod(V4, 0), 4000), outside, b"a"))?;
    let b = w.out(1, &udp_lite((pod(V4, 1), 4000), outside, b"b"))?;
    ensure!(a != b, "one tuple for two");
    for (n, wire) in [(1, b), (0, a)] {
        let back = udp_lite(outside, wire, b"back");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(n), &back.forwarded().to((pod(V4, n), 4000)))?;
    }
    Ok(())
}
