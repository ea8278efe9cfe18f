//! 3: timers, with a clock that the test advances.

use crate::bed::{At, BOTH, V4, pod, server};
use crate::build::{ACK, FIN, RST, SYN, error, ping, tcp, udp};
use crate::clock::wait_for_mappings;
use crate::driver::Wire;
use crate::flow::Flow;
use anyhow::{Result, ensure};
use std::time::Duration;

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// Waits until the sweep has left this many mappings.
fn left(w: &mut Wire, count: usize) -> Result<()> {
    let bpffs = w.bed.agent()?.bpffs();
    w.bed.sweep()?;
    wait_for_mappings(&bpffs, count)
}

pub fn r3_1_udp(w: &mut Wire) -> Result<()> {
    let answered = w.udp(0, 4000, (server(V4, 0), 5353))?;
    w.out(
        0,
        &udp((pod(V4, 0), 4001), (server(V4, 0), 5353), b"unanswered"),
    )?;
    w.advance(Duration::from_secs(115))?;
    left(w, 2)?;
    w.advance(Duration::from_secs(10))?;
    left(w, 1)?;
    w.back(&answered, &answered.answers(b"after two minutes"))?;
    w.advance(Duration::from_secs(295))?;
    w.back(&answered, &answered.answers(b"after five minutes"))?;
    w.advance(Duration::from_secs(310))?;
    left(w, 0)?;
    w.not_back(0, &answered.answers(b"too late"))
}

pub fn r3_2_tcp_established(w: &mut Wire) -> Result<()> {
    let flow = w.tcp(0, 4000, (server(V4, 0), 80))?;
    // A segment of a connection that is older than the agent.
    let picked_up = (pod(V4, 0), 4001);
    w.out(0, &tcp(picked_up, (server(V4, 0), 80), ACK, (7, 8), b"x"))?;
    w.advance(minutes(6))?;
    left(w, 1)?;
    // RFC 5382 requires at least two hours and four minutes; here it is five days.
    w.advance(minutes(5 * 24 * 60 - 10))?;
    left(w, 1)?;
    w.back(&flow, &flow.gets(ACK, (5001, 1001), b"still here"))?;
    w.advance(minutes(5 * 24 * 60 + 1))?;
    left(w, 0)
}

pub fn r3_3_tcp_on_its_way(w: &mut Wire) -> Result<()> {
    let outside = (server(V4, 0), 80);
    w.out(0, &tcp((pod(V4, 0), 4000), outside, SYN, (1, 0), b""))?;
    let closed = w.tcp(0, 4001, outside)?;
    close(w, &closed)?;
    w.advance(Duration::from_secs(235))?;
    left(w, 2)?;
    w.advance(Duration::from_secs(10))?;
    left(w, 0)
}

fn close(w: &mut Wire, flow: &Flow) -> Result<()> {
    w.same(flow, &flow.sends(FIN | ACK, (1001, 5001), b""))?;
    w.back(flow, &flow.gets(FIN | ACK, (5001, 1002), b""))?;
    w.same(flow, &flow.sends(ACK, (1002, 5002), b""))
}

pub fn r3_3_a_half_closed_download_goes_on(w: &mut Wire) -> Result<()> {
    let flow = w.tcp(0, 4000, (server(V4, 0), 80))?;
    w.same(&flow, &flow.sends(FIN | ACK, (1001, 5001), b""))?;
    w.back(&flow, &flow.gets(ACK, (5001, 1002), b""))?;
    w.advance(minutes(120))?;
    left(w, 1)?;
    w.back(&flow, &flow.gets(ACK, (5001, 1002), b"two hours later"))
}

pub fn r3_4_icmp_and_others(w: &mut Wire) -> Result<()> {
    w.out(0, &ping((pod(V4, 0), 5), server(V4, 0), b"x"))?;
    w.advance(Duration::from_secs(57))?;
    left(w, 1)?;
    w.advance(Duration::from_secs(5))?;
    left(w, 0)?;
    w.out(
        0,
        &crate::build::other(pod(V4, 0), server(V4, 0), 47, &[0; 12]),
    )?;
    w.advance(Duration::from_secs(590))?;
    left(w, 1)?;
    w.advance(Duration::from_secs(15))?;
    left(w, 0)
}

pub fn r3_5_outbound_packets_refresh(w: &mut Wire) -> Result<()> {
    let flow = w.udp(0, 4000, (server(V4, 0), 53))?;
    let syn = tcp((pod(V4, 0), 4001), (server(V4, 0), 80), SYN, (1, 0), b"");
    w.out(0, &syn)?;
    for _ in 0..2 {
        w.advance(Duration::from_secs(200))?;
        w.same(&flow, &flow.asks(b"keep-alive"))?;
        w.out(0, &syn)?;
    }
    // The repeated SYN has had its four minutes.
    left(w, 1)
}

pub fn r3_6_icmp_never_ends_a_mapping(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        let sent = flow.sends(ACK, (1001, 5001), b"x").from(flow.wire).bytes();
        let kinds = if f == V4 {
            [(3, 1), (3, 3), (11, 0)]
        } else {
            [(1, 0), (1, 4), (3, 0)]
        };
        for kind in kinds {
            w.send(
                At::Uplink(0),
                &error(server(f, 1), flow.wire.0, kind, 0, &sent),
            )?;
            w.expect(At::Pod(0), "the error", |p| p.icmp() == kind)?;
        }
        w.back(&flow, &flow.gets(ACK, (5001, 1001), b"alive"))?;
        w.same(&flow, &flow.sends(ACK, (1001, 5006), b"alive"))?;
    }
    Ok(())
}

pub fn r3_7_a_rst_leaves_the_mapping_for_a_while(w: &mut Wire) -> Result<()> {
    let flow = w.tcp(0, 4000, (server(V4, 0), 80))?;
    w.same(&flow, &flow.sends(RST, (1001, 0), b""))?;
    w.back(&flow, &flow.gets(ACK, (5001, 1001), b"crossed the RST"))?;
    if w.bed.agent.is_some() {
        w.advance(Duration::from_secs(230))?;
        left(w, 1)?;
        w.back(&flow, &flow.gets(ACK, (5001, 1001), b"late"))?;
    }
    Ok(())
}

pub fn r3_8_a_guessed_rst_does_not_shorten_a_flow(w: &mut Wire) -> Result<()> {
    let flow = w.tcp(0, 4000, (server(V4, 0), 80))?;
    for seq in [5000, 5002, 9999] {
        let forged = flow.gets(RST, (seq, 0), b"");
        w.send(At::Uplink(0), &forged)?;
        w.take_all(At::Pod(0), |_| true)?;
    }
    w.advance(minutes(60))?;
    left(w, 1)?;
    w.back(&flow, &flow.gets(ACK, (5001, 1001), b"alive"))?;
    // The RST with the right number does.
    w.back(&flow, &flow.gets(RST, (5006, 0), b""))?;
    w.same(&flow, &flow.sends(ACK, (1001, 5006), b""))?;
    w.back(&flow, &flow.gets(RST, (5006, 0), b""))?;
    w.advance(minutes(5))?;
    left(w, 0)
}

pub fn r3_9_a_new_syn_reopens(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        close(w, &flow)?;
        let syn = flow.sends(SYN, (900_000, 0), b"");
        let wire = w.out(0, &syn)?;
        let flow = Flow { wire, ..flow };
        w.back(&flow, &flow.gets(SYN | ACK, (800_000, 900_001), b""))?;
        w.same(&flow, &flow.sends(ACK, (900_001, 800_001), b""))?;
        if w.bed.agent.is_some() && f == V4 {
            w.advance(minutes(60))?;
            left(w, 1)?;
        }
        w.back(&flow, &flow.gets(ACK, (800_001, 900_001), b"anew"))?;
    }
    Ok(())
}

pub fn r3_9_simultaneous_open(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 4000));
        let wire = w.out(0, &tcp(inside, outside, SYN, (1000, 0), b""))?;
        let flow = Flow {
            pod: 0,
            inside,
            outside,
            wire,
        };
        w.back(&flow, &flow.gets(SYN, (5000, 0), b""))?;
        w.same(&flow, &flow.sends(SYN | ACK, (1000, 5001), b""))?;
        w.back(&flow, &flow.gets(SYN | ACK, (5000, 1001), b""))?;
        w.same(&flow, &flow.sends(ACK, (1001, 5001), b"data"))?;
        ensure!(w.take_all(At::Pod(0), |_| true)?.is_empty());
    }
    Ok(())
}

pub fn r3_11_timeouts_are_settings(w: &mut Wire) -> Result<()> {
    w.out(0, &udp((pod(V4, 0), 4000), (server(V4, 0), 53), b"x"))?;
    w.tcp(0, 4001, (server(V4, 0), 80))?;
    w.advance(Duration::from_secs(12))?;
    left(w, 1)?;
    w.advance(Duration::from_secs(15))?;
    left(w, 0)
}
