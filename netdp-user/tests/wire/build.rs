//! Constructors of the packets that cases send.

use super::packet::{DCCP, End, ICMP, ICMPV6, Packet, Part, SCTP, TCP, UDP, UDP_LITE};
use std::net::IpAddr;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// Returns an L4 header that begins with the ports.
fn ports(src: End, dst: End) -> Vec<u8> {
    [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat()
}

pub fn udp(src: End, dst: End, payload: &[u8]) -> Packet {
    let mut body = ports(src, dst);
    body.extend(u16::try_from(8 + payload.len()).unwrap_or(0).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    Packet::new(src.0, dst.0, UDP, body).summed()
}

/// Returns a UDP-Lite packet with a checksum over the first `coverage` bytes; 0 means all.
pub fn udp_lite(src: End, dst: End, payload: &[u8]) -> Packet {
    let mut packet = udp(src, dst, payload);
    packet.proto = UDP_LITE;
    packet.body[4..6].fill(0);
    packet.summed()
}

/// Returns a TCP segment with a timestamp option, so that options are always present.
pub fn tcp(src: End, dst: End, flags: u8, (seq, ack): (u32, u32), payload: &[u8]) -> Packet {
    let mut body = ports(src, dst);
    body.extend(seq.to_be_bytes());
    body.extend(ack.to_be_bytes());
    body.extend([0x80, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    body.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
    body.extend(payload);
    Packet::new(src.0, dst.0, TCP, body).summed()
}

/// Returns an echo request; `id` takes the place of the source port.
pub fn ping((src, id): End, dst: IpAddr, payload: &[u8]) -> Packet {
    query(src, dst, if src.is_ipv4() { 8 } else { 128 }, id, payload)
}

/// Returns an echo reply; `id` takes the place of the destination port.
pub fn pong(src: IpAddr, (dst, id): End, payload: &[u8]) -> Packet {
    query(src, dst, if src.is_ipv4() { 0 } else { 129 }, id, payload)
}

/// Returns any ICMP query or its reply.
pub fn query(src: IpAddr, dst: IpAddr, kind: u8, id: u16, payload: &[u8]) -> Packet {
    let mut body = vec![kind, 0, 0, 0];
    body.extend(id.to_be_bytes());
    body.extend([0, 7]);
    body.extend(payload);
    let proto = if src.is_ipv4() { ICMP } else { ICMPV6 };
    Packet::new(src, dst, proto, body).summed()
}

/// Returns an ICMP error that quotes `inner`.
pub fn error(src: IpAddr, dst: IpAddr, (kind, code): (u8, u8), rest: u32, inner: &[u8]) -> Packet {
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest.to_be_bytes());
    body.extend(inner);
    let proto = if src.is_ipv4() { ICMP } else { ICMPV6 };
    Packet::new(src, dst, proto, body).summed()
}

/// Returns an SCTP INIT packet (RFC 9260 3.3.2).
pub fn sctp(src: End, dst: End, cookie: &[u8]) -> Packet {
    sctp_chunk(src, dst, 1, [0; 4], cookie)
}

/// Returns the INIT ACK with the initiator's tag.
pub fn sctp_ack(src: End, dst: End, cookie: &[u8]) -> Packet {
    sctp_chunk(src, dst, 2, [0, 0, 0, 9], cookie)
}

fn sctp_chunk(src: End, dst: End, kind: u8, tag: [u8; 4], cookie: &[u8]) -> Packet {
    let mut body = ports(src, dst);
    body.extend(tag);
    body.extend([0; 4]);
    body.extend([kind, 0]);
    body.extend(u16::try_from(24 + cookie.len()).unwrap_or(0).to_be_bytes());
    body.extend([0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    // The state cookie, a parameter.
    body.extend([0, 7]);
    body.extend(u16::try_from(4 + cookie.len()).unwrap_or(0).to_be_bytes());
    body.extend(cookie);
    Packet::new(src.0, dst.0, SCTP, body).summed()
}

/// Returns a DCCP-Request (RFC 4340 5.1, 5.2) with a checksum over everything.
pub fn dccp(src: End, dst: End, payload: &[u8]) -> Packet {
    let mut body = ports(src, dst);
    body.extend([5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    body.extend(payload);
    Packet::new(src.0, dst.0, DCCP, body).summed()
}

/// Returns a packet of any other protocol.
pub fn other(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Packet {
    Packet::new(src, dst, proto, payload.to_vec())
}

impl Packet {
    /// Returns the packet in fragments with at most `size` bytes of body each.
    pub fn fragments(&self, size: u16) -> Vec<Packet> {
        let chunks = self.body.chunks(usize::from(size));
        let last = chunks.len().saturating_sub(1);
        (0..)
            .zip(chunks)
            .map(|(n, chunk)| Packet {
                part: Some(Part {
                    offset: n * size,
                    more: usize::from(n) < last,
                    id: if self.is_v4() {
                        0
                    } else {
                        0x5eed_0000 | u32::from(self.id)
                    },
                }),
                body: chunk.to_vec(),
                ..self.clone()
            })
            .collect()
    }

    /// Returns the packet without its UDP checksum.
    #[must_use]
    pub fn unsummed(mut self) -> Self {
        self.body[6..8].fill(0);
        self
    }

    pub fn tcp_flags(&self) -> u8 {
        self.body.get(13).copied().unwrap_or(0)
    }

    /// Returns type and code of an ICMP message.
    pub fn icmp(&self) -> (u8, u8) {
        (
            self.body.first().copied().unwrap_or(0),
            self.body.get(1).copied().unwrap_or(0),
        )
    }

    /// Returns the packet quoted by an ICMP error.
    pub fn inner(&self) -> anyhow::Result<Packet> {
        Packet::parse_cut(self.body.get(8..).unwrap_or_default())
    }
}

/// Reassembles a datagram from its fragments, in any order.
pub fn reassembled(parts: &[Packet]) -> anyhow::Result<Packet> {
    let mut parts = parts.to_vec();
    parts.sort_by_key(|p| p.part.map_or(0, |p| p.offset));
    let mut whole = parts
        .first()
        .cloned()
        .ok_or_else(|| anyhow::anyhow!("no fragments"))?;
    for part in &parts[1..] {
        let same = (part.src, part.dst, part.id) == (whole.src, whole.dst, whole.id)
            && part.part.map(|p| p.id) == whole.part.map(|p| p.id);
        anyhow::ensure!(same, "not of one datagram: {parts:?}");
        let offset = usize::from(part.part.map_or(0, |p| p.offset));
        anyhow::ensure!(
            offset == whole.body.len(),
            "a hole or an overlap: {parts:?}"
        );
        whole.body.extend(&part.body);
    }
    whole.part = None;
    Ok(whole)
}
