//! 6.6, 6.7: ICMP errors by the node itself; 7.1: path MTU discovery.

use crate::bed::{At, BOTH, Family, V4, node, pod, server};
use crate::build::{ACK, udp};
use crate::driver::Wire;
use crate::flow::Flow;
use crate::packet::{Packet, word};
use anyhow::{Result, ensure};

fn too_big(f: Family) -> (u8, u8) {
    if f == V4 { (3, 4) } else { (2, 0) }
}

fn exceeded(f: Family) -> (u8, u8) {
    if f == V4 { (11, 0) } else { (3, 0) }
}

/// Checks that the server gets an error from the node that quotes the flow as the server sees it,
/// and returns the error.
fn told(w: &mut Wire, flow: &Flow, sent: &Packet, kind: (u8, u8)) -> Result<Packet> {
    w.send(At::Uplink(0), sent)?;
    let told = w.expect(At::Uplink(0), "ICMP error", |p| {
        p.dst == flow.outside.0 && p.icmp() == kind
    })?;
    let inner = told.inner()?;
    ensure!(
        (inner.dst, inner.dport()) == flow.wire && (inner.src, inner.sport()) == flow.outside,
        "{told:?} quotes {inner:?}"
    );
    ensure!(told.src == flow.wire.0 && told.checksum_ok(), "{told:?}");
    Ok(told)
}

pub fn r6_6_a_server_learns_the_pods_small_mtu(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for n in [1, 0] {
            w.udp(n, 4000, (server(f, 0), 53))?;
        }
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let mut large = flow.answers(&[7; 1380]);
        large.df = f == V4;
        let told_ = told(w, &flow, &large, too_big(f))?;
        ensure!(word(&told_.body, 6) == 1300, "{told_:?}");
        let flow = w.tcp(0, 4001, (server(f, 0), 80))?;
        let mut large = flow.gets(ACK, (5001, 1001), &[7; 1380]);
        large.df = f == V4;
        told(w, &flow, &large, too_big(f))?;
        w.back(&flow, &flow.gets(ACK, (5001, 1001), &[7; 1200]))?;
    }
    Ok(())
}

pub fn r6_6_a_server_learns_that_hops_ran_out(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for n in [1, 0] {
            let flow = w.udp(n, 4000, (server(f, 0), 53))?;
            let mut last_hop = flow.answers(b"one hop too far");
            last_hop.ttl = 1;
            told(w, &flow, &last_hop, exceeded(f))?;
            let flow = w.tcp(n, 4000, (server(f, 0), 80))?;
            let mut last_hop = flow.gets(ACK, (5001, 1001), b"one hop too far");
            last_hop.ttl = 1;
            told(w, &flow, &last_hop, exceeded(f))?;
        }
    }
    Ok(())
}

pub fn r6_7_a_pod_learns_of_its_own_packet(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let mut last_hop = flow.asks(b"traceroute");
        last_hop.ttl = 1;
        let mut large = flow.asks(&[7; 1440]);
        large.df = f == V4;
        for (sent, kind) in [(last_hop, exceeded(f)), (large, too_big(f))] {
            w.send(At::Pod(0), &sent)?;
            let told = w.expect(At::Pod(0), "ICMP error", |p| p.icmp() == kind)?;
            let inner = told.inner()?;
            ensure!(
                (inner.src, inner.sport()) == flow.inside && inner.dst == flow.outside.0,
                "{told:?} quotes {inner:?}"
            );
            ensure!(told.dst == pod(f, 0) && told.src != pod(f, 0) && told.checksum_ok());
            if kind == too_big(f) {
                ensure!(word(&told.body, 6) == 1400, "{told:?}");
            }
        }
        w.expect_nothing(At::Uplink(0))?;
        w.same(&flow, &flow.asks(b"smaller"))?;
    }
    Ok(())
}

pub fn r7_1_a_hop_beyond_is_smaller(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        let mut sent = flow.sends(ACK, (1001, 5001), &[7; 1380]);
        sent.df = f == V4;
        w.same(&flow, &sent)?;
        // The router quotes the maximum that RFC 1812 and RFC 4443 allow.
        let quoted = sent.clone().forwarded().from(flow.wire).bytes();
        let limit = if f == V4 { 548 } else { 1232 };
        let router = server(f, 9);
        let error = crate::build::error(router, flow.wire.0, too_big(f), 1300, &quoted[..limit]);
        w.send(At::Uplink(0), &error)?;
        let told = w.expect(At::Pod(0), "ICMP error", |p| p.src == router)?;
        let inner = told.inner()?;
        ensure!(told.checksum_ok() && told.icmp() == too_big(f) && word(&told.body, 6) == 1300);
        ensure!((inner.src, inner.sport()) == flow.inside, "{inner:?}");
        ensure!(told.body.len() == limit + 8);
    }
    Ok(())
}

pub fn r5_1_the_ttl_goes_down_once(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for ttl in [2, 64, 255] {
            let mut sent = udp((pod(f, 0), 4000), (server(f, 0), 53), b"hops");
            sent.ttl = ttl;
            let wire = w.out(0, &sent)?;
            ensure!(wire.0 == node(f, 0));
            let mut back = udp((server(f, 0), 53), wire, b"hops");
            back.ttl = ttl;
            w.send(At::Uplink(0), &back)?;
            w.expect_exactly(At::Pod(0), &back.forwarded().to((pod(f, 0), 4000)))?;
        }
    }
    Ok(())
}
