//! 6: ICMP errors, from outside and from pods.

use crate::bed::{At, BOTH, Family, V4, pod, server};
use crate::build::{ACK, error, ping, tcp, udp};
use crate::driver::Wire;
use crate::flow::Flow;
use crate::packet::Packet;
use anyhow::{Result, ensure};

/// Type, code and the word after the checksum (MTU, pointer).
type Kind = ((u8, u8), u32);

fn kinds(f: Family) -> &'static [Kind] {
    match f {
        V4 => &[
            ((3, 0), 0),
            ((3, 1), 0),
            ((3, 3), 0),
            ((3, 4), 1300),
            ((3, 13), 0),
            ((11, 0), 0),
            ((11, 1), 0),
            ((12, 0), 0x1400_0000),
        ],
        Family::V6 => &[
            ((1, 0), 0),
            ((1, 1), 0),
            ((1, 4), 0),
            ((2, 0), 1300),
            ((3, 0), 0),
            ((3, 1), 0),
            ((4, 0), 40),
            ((4, 1), 6),
        ],
    }
}

/// Sends an error about a packet of the pod from outside and returns the packet that the pod
/// receives. `quote` converts the packet to the quoted bytes.
fn comes_in(
    w: &mut Wire,
    flow: &Flow,
    sent: &Packet,
    kind: Kind,
    quote: impl Fn(&Packet) -> Vec<u8>,
) -> Result<()> {
    let from = server(Family::of(flow.outside.0), 7);
    let ((kind, code), rest) = kind;
    let translated = sent.clone().forwarded().from(flow.wire);
    let outside = error(from, flow.wire.0, (kind, code), rest, &quote(&translated));
    let seen = translated.from(flow.inside);
    let inside = error(from, flow.inside.0, (kind, code), rest, &quote(&seen));
    w.send(At::Uplink(0), &outside)?;
    w.expect_exactly(At::Pod(flow.pod), &inside.forwarded())
}

/// Opens flows of every protocol with ports or identifiers; returns them with a packet of each. The
/// other pod uses the same ports, so that they change.
fn flows(w: &mut Wire, f: Family) -> Result<Vec<(Flow, Packet)>> {
    let mut flows = Vec::new();
    for n in [1, 0] {
        let flow = w.udp(n, 4000, (server(f, 0), 53))?;
        flows.push((flow, flow.asks(b"a question")));
        let flow = w.tcp(n, 4001, (server(f, 0), 80))?;
        flows.push((flow, flow.sends(ACK, (1001, 5001), b"some data")));
        let inside = (pod(f, n), 77);
        let sent = ping(inside, server(f, 0), b"echo");
        let wire = w.out(n, &sent)?;
        let outside = (server(f, 0), 0);
        flows.push((
            Flow {
                pod: n,
                inside,
                outside,
                wire,
            },
            sent,
        ));
    }
    Ok(flows)
}

pub fn r6_2_inbound_errors_reach_the_pod(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for (flow, sent) in flows(w, f)? {
            for &kind in kinds(f) {
                comes_in(w, &flow, &sent, kind, Packet::bytes)?;
            }
        }
    }
    Ok(())
}

pub fn r6_2_quench_and_redirect_do_not(w: &mut Wire) -> Result<()> {
    let flow = w.udp(0, 4000, (server(V4, 0), 53))?;
    let sent = flow.asks(b"x").from(flow.wire).bytes();
    for (kind, rest) in [((4, 0), 0), ((5, 1), 0xc000_0201)] {
        w.not_back(0, &error(server(V4, 1), flow.wire.0, kind, rest, &sent))?;
    }
    Ok(())
}

pub fn r6_3_eight_bytes_are_enough(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for (flow, sent) in flows(w, f)? {
            let header = sent.bytes().len() - sent.body.len();
            for len in [8, 12] {
                comes_in(w, &flow, &sent, kinds(f)[3], |p| {
                    p.bytes()[..header + len].to_vec()
                })?;
            }
        }
    }
    Ok(())
}

pub fn r6_3_options_inside(w: &mut Wire) -> Result<()> {
    for (flow, sent) in flows(w, V4)? {
        let mut with = sent;
        with.options = vec![1, 1, 1, 1, 0x88, 4, 0, 1];
        comes_in(w, &flow, &with, kinds(V4)[1], Packet::bytes)?;
        comes_in(w, &flow, &with, kinds(V4)[1], |p| p.bytes()[..36].to_vec())?;
    }
    Ok(())
}

pub fn r6_3_extensions_stay(w: &mut Wire) -> Result<()> {
    // RFC 4884: the quote is padded, its length is given, and objects follow.
    let object = [0x20, 0, 0xdc, 0xfc, 0, 8, 1, 1, 0, 0x10, 0x31, 1];
    for f in BOTH {
        for (flow, sent) in flows(w, f)? {
            let quote = |p: &Packet| {
                let mut bytes = p.bytes();
                bytes.resize(128, 0);
                [&bytes[..], &object].concat()
            };
            let length = if f == V4 { 32 << 16 } else { 16 << 24 };
            let kind = if f == V4 { (11, 0) } else { (3, 0) };
            comes_in(w, &flow, &sent, (kind, length), quote)?;
        }
    }
    Ok(())
}

pub fn r6_3_a_quoted_datagram_without_checksum(w: &mut Wire) -> Result<()> {
    let flow = w.udp(0, 4000, (server(V4, 0), 53))?;
    let sent = flow.asks(b"unsummed").unsummed();
    w.same(&flow, &sent)?;
    comes_in(w, &flow, &sent, kinds(V4)[2], Packet::bytes)
}

pub fn r6_4_errors_by_the_pod(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        w.udp(1, 4000, (server(f, 0), 53))?;
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let answer = flow.answers(b"to a closed port");
        w.back(&flow, &answer)?;
        let arrived = answer.forwarded();
        let seen = arrived.clone().to(flow.inside);
        let kind = if f == V4 { (3, 3) } else { (1, 4) };
        for len in [usize::MAX, seen.bytes().len() - seen.body.len() + 8] {
            let cut = |p: &Packet| {
                let bytes = p.bytes();
                bytes[..len.min(bytes.len())].to_vec()
            };
            let sent = error(flow.inside.0, flow.outside.0, kind, 0, &cut(&seen));
            let wanted = error(flow.wire.0, flow.outside.0, kind, 0, &cut(&arrived));
            w.send(At::Pod(0), &sent)?;
            w.expect_exactly(At::Uplink(0), &wanted.forwarded())?;
        }
    }
    Ok(())
}

pub fn r6_4_errors_about_nothing_do_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for (flags, ports) in [(true, 4000), (false, 4001)] {
            let (inside, outside) = ((pod(f, 0), ports), (server(f, 0), 53));
            let about = if flags {
                udp(outside, inside, b"never came")
            } else {
                tcp(outside, inside, ACK, (1, 1), b"never came")
            };
            let kind = if f == V4 { (3, 3) } else { (1, 4) };
            w.send(
                At::Pod(0),
                &error(inside.0, outside.0, kind, 0, &about.bytes()),
            )?;
        }
        w.take_all(At::Uplink(0), |_| true)?;
    }
    Ok(())
}

pub fn r6_5_bad_checksums_inside_do_not_matter(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let translated = flow.asks(b"spoiled on its way").spoiled().from(flow.wire);
        let ((kind, code), rest) = kinds(f)[2];
        w.send(
            At::Uplink(0),
            &error(
                server(f, 7),
                flow.wire.0,
                (kind, code),
                rest,
                &translated.bytes(),
            ),
        )?;
        let seen = w.expect(At::Pod(0), "ICMP error", |p| p.icmp() == (kind, code))?;
        let inner = seen.inner()?;
        ensure!(
            seen.checksum_ok() && (inner.src, inner.sport()) == flow.inside,
            "{seen:?}"
        );
    }
    Ok(())
}

pub fn r6_5_bad_icmp_checksums_stay_bad_or_go(w: &mut Wire) -> Result<()> {
    w.bad_checksums_are_sent();
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let translated = flow.asks(b"x").from(flow.wire);
        let (kind, rest) = kinds(f)[2];
        let bad = error(server(f, 7), flow.wire.0, kind, rest, &translated.bytes()).spoiled();
        w.send(At::Uplink(0), &bad)?;
        for packet in w.take_all(At::Pod(0), |_| true)? {
            ensure!(!packet.checksum_ok(), "mended: {packet:?}");
        }
    }
    Ok(())
}
