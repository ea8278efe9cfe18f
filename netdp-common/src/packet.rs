//! From bytes to tuple.

use crate::addr::{Addr, Family};
use crate::tuple::{Tuple, proto};
use crate::verdict::DropReason;

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

/// The bytes of a packet, in 32-bit words as they lie in memory.
pub trait Bytes {
    /// `N` words from `offset` bytes on, if the packet has them.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

impl Bytes for [u8] {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.get(offset..offset.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().ok()?);
        }
        Some(words)
    }
}

/// The TCP header fields that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TcpSegment {
    /// The flags octet (RFC 9293 3.1).
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum L4 {
    /// A TCP segment.
    Tcp(TcpSegment),
    /// A UDP datagram.
    Udp,
    /// An ICMP echo request.
    Query,
    /// An ICMP echo reply.
    QueryReply,
    /// Something that can't be translated, and why.
    Untranslatable(DropReason),
}

/// An address and its L4 id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port or ICMP identifier, host byte order.
    pub id: u32,
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The tuple on the wire. Ids are 0 where `l4` is untranslatable.
    pub tuple: Tuple,
    /// The address family.
    pub family: Family,
    /// What it carries.
    pub l4: L4,
    /// Offset of the IP header from the start of the packet.
    pub l3_offset: u32,
    /// Offset of the L4 header from the start of the packet.
    pub l4_offset: u32,
    /// What takes the place of one end of the tuple, once the verdict is to
    /// rewrite: of the source at egress, of the destination at ingress.
    pub new: Endpoint,
}

impl Packet {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        tuple: Tuple::new(Addr::from_v6([0; 16]), Addr::from_v6([0; 16]), 0, 0, 0),
        family: Family::V4,
        l4: L4::Udp,
        l3_offset: 0,
        l4_offset: 0,
        new: Endpoint {
            addr: Addr::from_v6([0; 16]),
            id: 0,
        },
    };
}

/// What kind of packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// IP; the [`Packet`] is filled in.
    Ip,
    /// Something else, such as ARP.
    NotIp,
    /// IP, but not even its addresses can be told.
    Malformed,
}

/// Parses the packet at `l3_offset` bytes into `pkt`. `ethertype` is in host
/// byte order.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(
    bytes: &B,
    ethertype: u16,
    l3_offset: u32,
    pkt: &mut Packet,
) -> Parsed {
    let header = match ethertype {
        ETH_P_IP => parse_v4(bytes, l3_offset as usize, pkt),
        ETH_P_IPV6 => parse_v6(bytes, l3_offset as usize, pkt),
        _ => return Parsed::NotIp,
    };
    let Some(Header { len, fragment }) = header else {
        return Parsed::Malformed;
    };
    pkt.l3_offset = l3_offset;
    pkt.l4_offset = l3_offset + len;
    pkt.tuple.src_id = 0;
    pkt.tuple.dst_id = 0;
    if fragment {
        pkt.l4 = L4::Untranslatable(DropReason::Fragment);
    } else if parse_l4(bytes, pkt).is_none() {
        pkt.l4 = L4::Untranslatable(DropReason::Malformed);
    }
    Parsed::Ip
}

struct Header {
    len: u32,
    fragment: bool,
}

/// RFC 791 3.1.
#[inline(always)]
fn parse_v4<B: Bytes + ?Sized>(bytes: &B, at: usize, pkt: &mut Packet) -> Option<Header> {
    let [w0, w1, w2, src, dst] = bytes.words::<5>(at)?.map(u32::from_be);
    let len = (w0 >> 24 & 0xf) * 4;
    // A GSO packet over 64 KiB has a total length of 0 (iph_totlen in
    // include/linux/ip.h, Linux 6.12).
    let total = w0 & 0xffff;
    if w0 >> 28 != 4 || len < 20 || total != 0 && total < len {
        return None;
    }
    pkt.family = Family::V4;
    pkt.tuple.src = Addr::from_v4_word(src.to_be());
    pkt.tuple.dst = Addr::from_v4_word(dst.to_be());
    pkt.tuple.proto = w2 >> 16 & 0xff;
    Some(Header {
        len,
        fragment: w1 & 0x3fff != 0,
    })
}

/// RFC 8200 3.
#[inline(always)]
fn parse_v6<B: Bytes + ?Sized>(bytes: &B, at: usize, pkt: &mut Packet) -> Option<Header> {
    let [w0, w1, s0, s1, s2, s3, d0, d1, d2, d3] = bytes.words::<10>(at)?;
    pkt.family = Family::V6;
    pkt.tuple.src = Addr::from_words([s0, s1, s2, s3]);
    pkt.tuple.dst = Addr::from_words([d0, d1, d2, d3]);
    let next = u32::from_be(w1) >> 8 & 0xff;
    pkt.tuple.proto = next;
    // RFC 4291 2.5.5.2: mapped addresses do not appear on the wire; here they
    // would pass for IPv4 tuples.
    if u32::from_be(w0) >> 28 != 6 || pkt.tuple.src.is_v4() || pkt.tuple.dst.is_v4() {
        return None;
    }
    Some(Header {
        len: 40,
        fragment: next == proto::IPV6_FRAGMENT,
    })
}

/// Fills in `l4` and the ids; `None` if the header is cut short.
#[inline(always)]
fn parse_l4<B: Bytes + ?Sized>(bytes: &B, pkt: &mut Packet) -> Option<()> {
    let at = pkt.l4_offset as usize;
    match (pkt.tuple.proto, pkt.family) {
        (proto::TCP, _) => {
            // The whole header, so that all a rewrite touches is there.
            let [ports, seq, ack, flags, _] = bytes.words::<5>(at)?.map(u32::from_be);
            set_ports(pkt, ports);
            pkt.l4 = L4::Tcp(TcpSegment {
                flags: (flags >> 16 & 0xff) as u8,
                seq,
                ack,
            });
        }
        (proto::UDP, _) => {
            let [ports, _] = bytes.words::<2>(at)?.map(u32::from_be);
            set_ports(pkt, ports);
            pkt.l4 = L4::Udp;
        }
        (proto::ICMP, Family::V4) => parse_icmp(bytes, pkt, 8, 0)?,
        (proto::ICMPV6, Family::V6) => parse_icmp(bytes, pkt, 128, 129)?,
        _ => pkt.l4 = L4::Untranslatable(DropReason::UnsupportedProtocol),
    }
    Some(())
}

#[inline(always)]
fn set_ports(pkt: &mut Packet, ports: u32) {
    pkt.tuple.src_id = (ports >> 16) as u16;
    pkt.tuple.dst_id = (ports & 0xffff) as u16;
}

/// RFC 792, RFC 4443: a query carries its identifier after the checksum.
#[inline(always)]
fn parse_icmp<B: Bytes + ?Sized>(
    bytes: &B,
    pkt: &mut Packet,
    request: u32,
    reply: u32,
) -> Option<()> {
    let [w0, w1] = bytes.words::<2>(pkt.l4_offset as usize)?.map(u32::from_be);
    let id = (w1 >> 16) as u16;
    pkt.l4 = if w0 >> 24 == request {
        pkt.tuple.src_id = id;
        L4::Query
    } else if w0 >> 24 == reply {
        pkt.tuple.dst_id = id;
        L4::QueryReply
    } else {
        L4::Untranslatable(DropReason::IcmpNoFlow)
    };
    Some(())
}

#[cfg(test)]
mod tests;
