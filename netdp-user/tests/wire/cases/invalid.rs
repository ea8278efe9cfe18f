//! 4: packets that are invalid or out of date.

use crate::bed::{At, BOTH, pod, server};
use crate::build::{ACK, FIN, PSH, RST, SYN, ping, tcp, udp};
use crate::driver::Wire;
use crate::packet::{ICMP, ICMPV6, Packet, SCTP, TCP, UDP, UDP_LITE};
use anyhow::{Result, ensure};

/// Segments that open nothing: none may leave with the pod's address, whatever drops it.
pub fn r4_1_segments_without_a_connection_do_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 80);
        let xmas = FIN | PSH | 0x20;
        let flags = [
            FIN,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | ACK,
            0,
            SYN | FIN,
            xmas,
            SYN | RST,
            0x3f,
            FIN | RST,
            PSH,
        ];
        for (port, flags) in (4000..).zip(flags) {
            let segment = tcp((pod(f, 0), port), outside, flags, (7, 9), b"x");
            w.send(At::Pod(0), &segment)?;
        }
        // Packets that left are checked at the end of the case.
        w.take_all(At::Uplink(0), |_| true)?;
    }
    Ok(())
}

pub fn r4_1_bad_checksums_do_not_leak(w: &mut Wire) -> Result<()> {
    w.bad_checksums_are_sent();
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 80));
        for packet in [
            udp(inside, outside, b"spoiled"),
            tcp(inside, outside, SYN, (1, 0), b"spoiled"),
            ping(inside, outside.0, b"spoiled"),
            crate::build::udp_lite(inside, outside, b"spoiled"),
            crate::build::dccp(inside, outside, b"spoiled"),
            crate::build::sctp(inside, outside, b"spoiled_"),
        ] {
            w.send(At::Pod(0), &packet.spoiled())?;
        }
        w.take_all(At::Uplink(0), |_| true)?;
    }
    Ok(())
}

pub fn r4_1_malformed_packets_do_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        for proto in [ICMP, TCP, UDP, ICMPV6, SCTP, UDP_LITE, 33, 51] {
            for len in [0, 1, 3, 4, 7, 12] {
                let packet = Packet::new(pod(f, 0), server(f, 0), proto, vec![0xff; len]);
                w.send(At::Pod(0), &packet)?;
            }
        }
        // A TCP header length that is too large or too small.
        for offset in [0, 0x40, 0xf0] {
            let mut packet = tcp((pod(f, 0), 4000), (server(f, 0), 80), ACK, (1, 1), b"");
            packet.body[12] = offset;
            w.send(At::Pod(0), &packet.summed())?;
        }
        // A UDP length beyond the end of the packet.
        let mut packet = udp((pod(f, 0), 4000), (server(f, 0), 80), b"x");
        packet.body[4..6].copy_from_slice(&[0xff, 0xff]);
        w.bad_checksums_are_sent();
        w.send(At::Pod(0), &packet)?;
        w.take_all(At::Uplink(0), |_| true)?;
    }
    Ok(())
}

pub fn r4_1_out_of_window_segments_do_not_leak(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        for (flags, seq, ack) in [
            (ACK, 0x4000_0000, 5001),
            (ACK, 1001, 0x9000_0000),
            (RST, 0x7000_0000, 0),
            (RST | ACK, 1, 1),
            (FIN | ACK, 0xf000_0000, 5001),
        ] {
            w.send(At::Pod(0), &flow.sends(flags, (seq, ack), b"astray"))?;
        }
        w.take_all(At::Uplink(0), |_| true)?;
        w.back(&flow, &flow.gets(ACK, (5001, 1001), b"none the worse"))?;
    }
    Ok(())
}

pub fn r4_2_out_of_window_data_comes_in(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        let astray = flow.gets(ACK, (0x5000_0000, 1001), b"astray");
        w.send(At::Uplink(0), &astray)?;
        // The pod must handle it; the node must not answer in its place.
        w.expect_nothing(At::Uplink(0))?;
        let came = w.take_all(At::Pod(0), |_| true)?;
        let whole = astray.forwarded().to(flow.inside);
        ensure!(came.is_empty() || came == [whole], "{came:?}");
        w.back(&flow, &flow.gets(ACK, (5001, 1001), b"none the worse"))?;
    }
    Ok(())
}

pub fn r4_3_a_connection_in_mid_stream_is_picked_up(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (inside, outside) = ((pod(f, 0), 4000), (server(f, 0), 80));
        let wire = w.out(0, &tcp(inside, outside, ACK | PSH, (70, 80), b"middle"))?;
        ensure!(wire.1 == 4000, "its port became {}", wire.1);
        let back = tcp(outside, wire, ACK, (80, 76), b"answer");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &back.forwarded().to(inside))?;
    }
    Ok(())
}

pub fn r4_4_late_segments_after_the_close(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        w.same(&flow, &flow.sends(FIN | ACK, (1001, 5001), b""))?;
        w.back(&flow, &flow.gets(FIN | ACK, (5001, 1002), b""))?;
        w.same(&flow, &flow.sends(ACK, (1002, 5002), b""))?;
        for (flags, seq) in [
            (FIN | ACK, 1001),
            (ACK, 1002),
            (RST, 1002),
            (RST | ACK, 1002),
        ] {
            w.same(&flow, &flow.sends(flags, (seq, 5002), b""))?;
        }
        w.back(&flow, &flow.gets(FIN | ACK, (5001, 1002), b""))?;
        w.back(&flow, &flow.gets(RST, (5002, 0), b""))?;
        w.same(&flow, &flow.sends(RST, (1002, 0), b""))?;
    }
    Ok(())
}

pub fn r4_5_bad_checksums_stay_bad(w: &mut Wire) -> Result<()> {
    w.bad_checksums_are_sent();
    for f in BOTH {
        let udp = w.udp(0, 4000, (server(f, 0), 53))?;
        let tcp = w.tcp(0, 4000, (server(f, 0), 80))?;
        for packet in [
            udp.asks(b"spoiled!"),
            tcp.sends(ACK, (1001, 5001), b"spoiled!"),
        ] {
            w.send(At::Pod(0), &packet.spoiled())?;
        }
        for packet in w.take_all(At::Uplink(0), |_| true)? {
            ensure!(!packet.checksum_ok(), "mended: {packet:?}");
        }
        for packet in [
            udp.answers(b"spoiled!"),
            tcp.gets(ACK, (5001, 1001), b"spoiled!"),
        ] {
            w.send(At::Uplink(0), &packet.spoiled())?;
        }
        for packet in w.take_all(At::Pod(0), |_| true)? {
            ensure!(!packet.checksum_ok(), "mended: {packet:?}");
        }
    }
    Ok(())
}
