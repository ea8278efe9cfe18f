//! 5: fields that are rewritten, and fields that are not.

use crate::bed::{At, BOTH, V4, V6, pod, server};
use crate::build::{ACK, SYN, tcp, udp};
use crate::driver::Wire;
use crate::packet::Packet;
use anyhow::{Result, ensure};

/// Returns a packet without default values in its headers.
fn dressed(mut packet: Packet, id: u16) -> Packet {
    packet.ttl = 17;
    packet.tos = 0xb9;
    if packet.is_v4() {
        packet.id = id;
        packet.df = true;
    } else {
        packet.label = 0x3_1416;
    }
    packet
}

pub fn r5_1_nothing_else_changes(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        // Odd and even lengths, up to the MTU.
        for len in [0, 1, 2, 511, 1400] {
            let payload: Vec<u8> = (0..len).map(|n: u16| n.to_be_bytes()[1]).collect();
            w.same(&flow, &dressed(flow.asks(&payload), len))?;
            w.back(&flow, &dressed(flow.answers(&payload), len + 9))?;
        }
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        w.same(
            &flow,
            &dressed(flow.sends(ACK | 0xc0, (1001, 5001), b"out"), 0),
        )?;
        w.back(
            &flow,
            &dressed(flow.gets(ACK | 0x40, (5001, 1004), b"back"), 65535),
        )?;
    }
    Ok(())
}

pub fn r5_1_ipv4_options_stay(w: &mut Wire) -> Result<()> {
    let flow = w.udp(0, 4000, (server(V4, 0), 53))?;
    // No-operation options and an unknown one, up to the maximum header length.
    for len in [4, 8, 40] {
        let mut options = vec![0x88, 4, 0, 1];
        options.resize(len, 1);
        let with = |packet: Packet| Packet {
            options: options.clone(),
            ..packet
        };
        w.same(&flow, &with(flow.asks(b"with options")))?;
        w.back(&flow, &with(flow.answers(b"with options")))?;
    }
    Ok(())
}

pub fn r5_2_no_udp_checksum_stays_none(w: &mut Wire) -> Result<()> {
    let flow = w.udp(0, 4000, (server(V4, 0), 53))?;
    w.same(&flow, &flow.asks(b"unsummed").unsummed())?;
    w.back(&flow, &flow.answers(b"unsummed").unsummed())
}

pub fn r5_2_a_computed_zero_is_sent_as_ones(w: &mut Wire) -> Result<()> {
    // Returns a payload for which the checksum of the translated datagram is 0.
    fn filler(packet: &Packet) -> [u8; 2] {
        [packet.body[6], packet.body[7]]
    }
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let zero = filler(&flow.asks(&[0, 0]).from(flow.wire));
        let translated = flow.asks(&zero).from(flow.wire);
        ensure!(translated.body[6..8] == [0xff, 0xff]);
        w.same(&flow, &flow.asks(&zero))?;
        let zero = filler(&flow.answers(&[0, 0]).to(flow.inside));
        w.back(&flow, &flow.answers(&zero))?;
        // And one whose own checksum is all ones.
        let ones = filler(&flow.asks(&[0, 0]));
        ensure!(flow.asks(&ones).body[6..8] == [0xff, 0xff]);
        w.same(&flow, &flow.asks(&ones))?;
        let ones = filler(&flow.answers(&[0, 0]));
        w.back(&flow, &flow.answers(&ones))?;
    }
    Ok(())
}

pub fn r5_8_vlan_tags_in_band(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for tags in [
            &[[0x81, 0, 0, 7]][..],
            &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]],
        ] {
            let packet = udp((pod(f, 0), 4000), (server(f, 0), 53), b"tagged");
            w.node_sends_tagged(&packet, tags)?;
            // The capture removes one tag; only the address matters.
            let frames = w.frames_with(At::Uplink(0), b"tagged")?;
            let pods = crate::checksum::octets(pod(f, 0));
            let leaks = |frame: &Vec<u8>| frame.windows(pods.len()).any(|part| part == pods);
            ensure!(frames.len() == 1 && !leaks(&frames[0]), "{frames:02x?}");
        }
    }
    Ok(())
}

pub fn r5_9_ipv6_extension_headers(w: &mut Wire) -> Result<()> {
    let udp = w.udp(0, 4000, (server(V6, 0), 53))?;
    let tcp = w.tcp(0, 4000, (server(V6, 0), 80))?;
    let pad = |len: u8| {
        let mut rest = vec![len / 8 - 1, 1, len - 4];
        rest.resize(usize::from(len) - 1, 0);
        rest
    };
    // A routing header with one segment and no segments left.
    let routing = [vec![2, 4, 0, 0, 0, 0, 0], vec![0x20; 16]].concat();
    for extensions in [
        vec![(0, pad(8))],
        vec![(60, pad(16))],
        vec![(43, routing.clone())],
        vec![(0, pad(8)), (60, pad(8)), (43, routing), (60, pad(24))],
    ] {
        let with = |packet: Packet| Packet {
            extensions: extensions.clone(),
            ..packet
        };
        w.same(&udp, &with(udp.asks(b"extended")))?;
        w.same(&tcp, &with(tcp.sends(ACK, (1001, 5001), b"")))?;
        w.back(&udp, &with(udp.answers(b"extended")))?;
        w.back(&tcp, &with(tcp.gets(ACK, (5001, 1001), b"")))?;
    }
    Ok(())
}

pub fn r5_9_unknown_headers_do_not_leak(w: &mut Wire) -> Result<()> {
    let mut many = udp((pod(V6, 0), 4000), (server(V6, 0), 53), b"many");
    many.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0]); 12];
    w.send(At::Pod(0), &many)?;
    for proto in [59, 135, 139, 140, 51] {
        let body = vec![59, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        w.send(
            At::Pod(0),
            &Packet::new(pod(V6, 0), server(V6, 0), proto, body),
        )?;
    }
    w.take_all(At::Uplink(0), |_| true)?;
    Ok(())
}

pub fn r5_10_ethernet_padding_is_ignored(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 80));
        let padded = |packet: &Packet| [packet.bytes(), vec![0xee; 18]].concat();
        for packet in [
            udp(inside, outside, b""),
            tcp(inside, outside, SYN, (1, 0), b""),
        ] {
            w.send_bytes(At::Pod(0), &padded(&packet))?;
            let wire = w.came_out(&packet)?;
            let back = match packet.proto {
                crate::packet::UDP => udp(outside, wire, b"x"),
                _ => tcp(outside, wire, SYN | ACK, (1, 2), b""),
            };
            w.send_bytes(At::Uplink(0), &padded(&back))?;
            w.expect_exactly(At::Pod(0), &back.forwarded().to(inside))?;
        }
    }
    Ok(())
}
