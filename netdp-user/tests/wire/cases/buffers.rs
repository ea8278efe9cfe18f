//! 5.6: layout and sharing of a packet's bytes in memory.

use crate::bed::{At, BOTH, Family, server};
use crate::build::{ACK, SYN, error, udp};
use crate::driver::Wire;
use crate::flow::Flow;
use crate::packet::Packet;
use crate::socket::Socket;
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);

/// Returns the next packet on the tap that ends with these bytes.
fn seen(tap: &Socket, end: &[u8]) -> Result<Packet> {
    loop {
        let frame = tap.receive(SOON)?.context("the tap saw no such packet")?;
        if frame.ends_with(end) {
            return Packet::parse(&frame[14..]);
        }
    }
}

/// The bytes that a tap or a mirror received stay the same when the packet itself is rewritten
/// later.
pub fn r5_6_copies_are_not_touched(w: &mut Wire) -> Result<()> {
    let node = &w.bed.node;
    node.run(&["tc", "qdisc", "add", "dev", "pod0", "clsact"])?;
    let mirror = "filter add dev pod0 ingress protocol all u32 match u32 0 0 \
                  action mirred egress mirror dev pod1";
    node.run(&[&["tc"][..], &mirror.split_whitespace().collect::<Vec<_>>()].concat())?;
    let [pod_side, uplink] = ["pod0", "up0"].map(|device| Socket::open(node, device));
    let (pod_side, uplink) = (pod_side?, uplink?);
    for f in BOTH {
        let flow = w.udp(0, 4000, (server(f, 0), 53))?;
        let sent = flow.asks(b"watched on its way out");
        w.same(&flow, &sent)?;
        // Both copies were taken before the translation.
        ensure!(seen(&pod_side, b"watched on its way out")? == sent);
        w.expect_exactly(At::Pod(1), &sent)?;
        let answer = flow.answers(b"watched on its way in");
        w.back(&flow, &answer)?;
        ensure!(seen(&uplink, b"watched on its way in")? == answer);
    }
    Ok(())
}

/// A sender whose packets have only the Ethernet header in the linear area.
struct Scattering {
    pod: Socket,
    uplink: Socket,
}

impl Scattering {
    fn out(&self, w: &mut Wire, flow: &Flow, packet: &Packet) -> Result<()> {
        self.pod.send(&framed(At::Pod(flow.pod), packet))?;
        let wire = w.came_out(packet)?;
        ensure!(wire == flow.wire, "the mapping changed to {wire:?}");
        Ok(())
    }

    fn back(&self, w: &mut Wire, flow: &Flow, packet: &Packet) -> Result<()> {
        self.uplink.send(&framed(At::Uplink(0), packet))?;
        w.expect_exactly(
            At::Pod(flow.pod),
            &packet.clone().forwarded().to(flow.inside),
        )
    }
}

fn framed(at: At, packet: &Packet) -> Vec<u8> {
    let kind: [u8; 2] = if packet.is_v4() { [8, 0] } else { [0x86, 0xdd] };
    [&at.mac(1)[..], &at.mac(2), &kind, &packet.bytes()].concat()
}

/// Longer than a page: shorter packets are linear whatever the sender requests.
const LONG: [u8; 6000] = [0x5a; 6000];

pub fn r5_6_headers_outside_the_linear_area(w: &mut Wire) -> Result<()> {
    let far = &w.bed.far;
    let s = Scattering {
        pod: Socket::scattering(far, "pod0")?,
        uplink: Socket::scattering(far, "up0")?,
    };
    for f in BOTH {
        // The first packet of a flow, then later ones.
        let (inside, outside) = ((crate::bed::pod(f, 0), 4000), (server(f, 0), 53));
        let first = udp(inside, outside, &LONG);
        s.pod.send(&framed(At::Pod(0), &first))?;
        let wire = w.came_out(&first)?;
        let flow = Flow {
            pod: 0,
            inside,
            outside,
            wire,
        };
        s.back(w, &flow, &flow.answers(&LONG))?;
        s.out(w, &flow, &flow.asks(&LONG))?;
        let tcp = w.tcp(0, 4000, (server(f, 0), 80))?;
        s.out(w, &tcp, &tcp.sends(ACK, (1001, 5001), &LONG))?;
        s.back(w, &tcp, &tcp.gets(ACK, (5001, 7001), &LONG))?;
        // Headers at larger offsets: options or extensions before the ports.
        let with = |packet| dressed(f, packet);
        s.out(w, &flow, &with(flow.asks(&LONG)))?;
        s.back(w, &flow, &with(flow.answers(&LONG)))?;
        s.out(w, &tcp, &with(tcp.sends(ACK, (1001, 5001), &LONG)))?;
        s.back(w, &tcp, &with(tcp.gets(ACK, (5001, 7001), &LONG)))?;
        error_comes_in(w, &s, &flow)?;
        // A first segment with data (RFC 7413), without earlier packets.
        let quick = crate::build::tcp((inside.0, 4001), (outside.0, 80), SYN, (1, 0), &LONG);
        s.pod.send(&framed(At::Pod(0), &quick))?;
        w.came_out(&quick)?;
    }
    Ok(())
}

fn dressed(f: Family, mut packet: Packet) -> Packet {
    match f {
        Family::V4 => packet.options = [&[0x88, 4, 0, 1][..], &[1; 36]].concat(),
        Family::V6 => packet.extensions = vec![(60, [&[4, 1, 36][..], &[0; 36]].concat())],
    }
    packet
}

/// An error that quotes a whole long packet: the quoted headers are outside the linear area, too.
fn error_comes_in(w: &mut Wire, s: &Scattering, flow: &Flow) -> Result<()> {
    let f = Family::of(flow.outside.0);
    let unreachable = if f == Family::V4 { (3, 3) } else { (1, 4) };
    let about = |packet: &Packet| packet.bytes();
    let quoted = flow.asks(&LONG);
    let sent = error(
        flow.outside.0,
        flow.wire.0,
        unreachable,
        0,
        &about(&quoted.clone().from(flow.wire)),
    );
    let wanted = error(
        flow.outside.0,
        flow.inside.0,
        unreachable,
        0,
        &about(&quoted),
    );
    s.uplink.send(&framed(At::Uplink(0), &sent))?;
    w.expect_exactly(At::Pod(0), &wanted.forwarded())
}
