//! Parsing: from packet bytes to a tuple.
//!
//! IPv4 options and IPv6 extension headers are skipped; fragments and ICMP errors (whose inner
//! packet [`parse_inner`] reads) are recognised.

mod plain;

use crate::addr::{Addr, Family};
use crate::checksum;
use crate::conntrack::{ACK, FIN, RST, SYN};
use crate::tuple::{Tuple, proto};
use crate::verdict::DropReason;
pub use plain::{Plain, peek, plain, queue_hash};

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

/// The bytes of a packet, as 32-bit words in memory order.
pub trait Bytes {
    /// Returns `N` words from `offset` bytes on, or `None` if the packet is shorter.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// Returns the ones' complement sum of up to [`SUMMED`] bytes from `offset` on (RFC 1071), or
    /// `None` if the packet is shorter.
    fn sum(&self, offset: usize, len: u32) -> Option<u32>;
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

    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        let bytes = self.get(offset..offset.checked_add(len as usize)?)?;
        let mut sum = 0;
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word.get_mut(..chunk.len())?.copy_from_slice(chunk);
            sum += checksum::Sum::from(u32::from_ne_bytes(word));
        }
        Some(checksum::narrow(sum))
    }
}

/// [`TcpSegment::payload`] where the IP header does not give the length: for a fragment, or a GSO
/// packet over 64 KiB.
pub const UNKNOWN_LENGTH: u16 = u16::MAX;

/// The TCP header fields on which decisions depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TcpSegment {
    /// The flags octet (RFC 9293 3.1).
    pub flags: u8,
    /// 1 if this is a RST whose checksum is wrong, or that is too long to be verified. 0 for all
    /// other segments, which are not verified.
    pub bad_checksum: u8,
    /// Bytes of payload if this is a FIN, or [`UNKNOWN_LENGTH`]. 0 for all other segments, whose
    /// length is not needed.
    pub payload: u16,
    /// Sequence number, host byte order.
    pub seq: u32,
    /// Acknowledgement number, host byte order.
    pub ack: u32,
}

/// The L4 content of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum L4 {
    /// TCP, with the fields of the segment.
    Tcp(TcpSegment),
    /// UDP, UDP-Lite or DCCP: ports, and a checksum over a pseudo-header.
    Udp,
    /// An ICMP query, such as an echo request.
    Query,
    /// The reply to an ICMP query, such as an echo reply.
    QueryReply,
    /// An ICMP error. It carries the packet that caused it.
    Error,
    /// A neighbour discovery message that no router has forwarded (RFC 4861 7.1: a hop limit of
    /// 255). It is link-local and never translated.
    Discovery,
    /// A protocol of which only the addresses are translated. The ids are 0, or SCTP's ports, which
    /// must not change: its CRC covers them.
    Address,
    /// A fragment without an L4 header. The ids are 0.
    LaterFragment,
    /// A packet that cannot be translated, with the reason.
    Untranslatable(DropReason),
}

impl L4 {
    /// Reports whether it is a bare SYN: it opens a TCP connection and does nothing else.
    #[inline(always)]
    #[must_use]
    pub const fn is_bare_syn(&self) -> bool {
        match self {
            Self::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
            _ => false,
        }
    }
}

/// An endpoint: an address and an L4 id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
    /// The port or ICMP identifier, host byte order.
    pub id: u32,
}

/// [`Packet::new_ip_id`]: the identification is not rewritten.
pub const KEEP_IP_ID: u32 = u32::MAX;

/// A parsed packet, and the values to write into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The tuple on the wire. The ids are 0 where the packet has none.
    pub tuple: Tuple,
    /// The address family of both addresses.
    pub family: Family,
    /// The L4 content.
    pub l4: L4,
    /// Offset of the IP header from the start of the packet.
    pub l3_offset: u32,
    /// Offset of the L4 header from the start of the packet.
    pub l4_offset: u32,
    /// 1 if the packet is a fragment, including the first one.
    pub is_fragment: u32,
    /// The identification field that all fragments of one datagram share.
    pub fragment_id: u32,
    /// The new endpoint, written if the verdict is to rewrite: the source on egress, the
    /// destination on ingress.
    pub new: Endpoint,
    /// The IPv4 identification to write, or [`KEEP_IP_ID`].
    pub new_ip_id: u32,
}

impl Packet {
    /// The initial value, before parsing.
    pub const EMPTY: Self = Self {
        tuple: Tuple::new(Addr::from_v6([0; 16]), Addr::from_v6([0; 16]), 0, 0, 0),
        family: Family::V4,
        l4: L4::Udp,
        l3_offset: 0,
        l4_offset: 0,
        is_fragment: 0,
        fragment_id: 0,
        new: Endpoint {
            addr: Addr::from_v6([0; 16]),
            id: 0,
        },
        new_ip_id: KEEP_IP_ID,
    };
}

/// The result of parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Parsed {
    /// IP; the [`Packet`] is complete.
    Ip,
    /// Not IP, for example ARP.
    NotIp,
    /// IP, but not even its addresses can be read.
    Malformed,
}

/// The number of IPv6 extension headers that are skipped, at most.
const MAX_EXTENSIONS: u32 = 5;

/// Parses the packet at `l3_offset` bytes into `pkt`. `ethertype` is in host
/// byte order.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(
    bytes: &B,
    ethertype: u16,
    l3_offset: u32,
    pkt: &mut Packet,
) -> Parsed {
    pkt.l3_offset = l3_offset;
    pkt.tuple.src_id = 0;
    pkt.tuple.dst_id = 0;
    pkt.is_fragment = 0;
    pkt.fragment_id = 0;
    pkt.new_ip_id = KEEP_IP_ID;
    let header = match ethertype {
        ETH_P_IP => parse_v4(bytes, l3_offset as usize, pkt),
        ETH_P_IPV6 => parse_v6(bytes, l3_offset as usize, pkt),
        _ => return Parsed::NotIp,
    };
    let Some(header) = header else {
        return Parsed::Malformed;
    };
    pkt.l4_offset = l3_offset + header.len;
    match header.end {
        HeaderEnd::L4 => {
            if parse_l4(bytes, pkt, header.rest).is_none() {
                pkt.l4 = L4::Untranslatable(DropReason::Malformed);
            }
        }
        HeaderEnd::LaterFragment => pkt.l4 = L4::LaterFragment,
        HeaderEnd::Unknown => pkt.l4 = L4::Untranslatable(DropReason::ExtensionHeader),
    }
    Parsed::Ip
}

#[derive(Clone, Copy)]
enum HeaderEnd {
    L4,
    LaterFragment,
    Unknown,
}

#[derive(Clone, Copy)]
struct Header {
    len: u32,
    end: HeaderEnd,
    /// Bytes after the header, by its length field; 0 if that does not give it.
    rest: u32,
}

/// Parses an IPv4 header (RFC 791 3.1).
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
    let mut end = HeaderEnd::L4;
    // More fragments, or not the first.
    if w1 & 0x3fff != 0 {
        pkt.is_fragment = 1;
        pkt.fragment_id = w1 >> 16;
        if w1 & 0x1fff != 0 {
            end = HeaderEnd::LaterFragment;
        }
    }
    let rest = total.saturating_sub(len);
    Some(Header { len, end, rest })
}

/// Parses an IPv6 header and its extension headers (RFC 8200 3).
#[inline(always)]
fn parse_v6<B: Bytes + ?Sized>(bytes: &B, at: usize, pkt: &mut Packet) -> Option<Header> {
    let [w0, w1, s0, s1, s2, s3, d0, d1, d2, d3] = bytes.words::<10>(at)?;
    pkt.family = Family::V6;
    pkt.tuple.src = Addr::from_words([s0, s1, s2, s3]);
    pkt.tuple.dst = Addr::from_words([d0, d1, d2, d3]);
    pkt.tuple.proto = u32::from_be(w1) >> 8 & 0xff;
    // RFC 4291 2.5.5.2: mapped addresses do not appear on the wire; here they would be taken for
    // IPv4 tuples.
    if u32::from_be(w0) >> 28 != 6 || pkt.tuple.src.is_v4() || pkt.tuple.dst.is_v4() {
        return None;
    }
    let mut header = step_over_extensions(bytes, at, pkt);
    let payload = u32::from_be(w1) >> 16;
    header.rest = (payload + 40).saturating_sub(header.len);
    Some(header)
}

/// Skips extension headers, which begin with the next header and their length (RFC 8200 4).
#[inline(always)]
fn step_over_extensions<B: Bytes + ?Sized>(bytes: &B, at: usize, pkt: &mut Packet) -> Header {
    let mut len = 40;
    let unknown = HeaderEnd::Unknown;
    for _ in 0..=MAX_EXTENSIONS {
        let this = pkt.tuple.proto;
        if !matches!(
            this,
            proto::IPV6_HOP_BY_HOP
                | proto::IPV6_ROUTING
                | proto::IPV6_DESTINATION
                | proto::IPV6_FRAGMENT
        ) {
            let end = HeaderEnd::L4;
            return Header { len, end, rest: 0 };
        }
        let Some([w0, w1]) = bytes.words::<2>(at + len as usize) else {
            return Header {
                len,
                end: unknown,
                rest: 0,
            };
        };
        let w0 = u32::from_be(w0);
        pkt.tuple.proto = w0 >> 24;
        if this == proto::IPV6_FRAGMENT {
            len += 8;
            pkt.is_fragment = 1;
            pkt.fragment_id = u32::from_be(w1);
            if w0 & 0xfff8 != 0 {
                let end = HeaderEnd::LaterFragment;
                return Header { len, end, rest: 0 };
            }
        } else {
            len += ((w0 >> 16 & 0xff) + 1) * 8;
        }
    }
    Header {
        len,
        end: unknown,
        rest: 0,
    }
}

/// The maximum of bytes of a TCP segment that are summed: the longest header (RFC 9293 3.1) and the
/// diagnostic text that some stacks put into a RST.
pub const SUMMED: u32 = 128;

/// Reports whether the checksum of a TCP segment of `len` bytes is right, or a partial one that the
/// device will complete. `false` also if the segment is too long to be verified. `field`: the word
/// that begins with the checksum, in memory order.
#[inline(always)]
fn tcp_checksum_holds<B: Bytes + ?Sized>(bytes: &B, pkt: &Packet, field: u32, len: u32) -> bool {
    let Ok(length) = u16::try_from(len) else {
        return false;
    };
    if !(20..=SUMMED).contains(&len) {
        return false;
    }
    let Tuple { src, dst, .. } = &pkt.tuple;
    const TCP: u8 = 6;
    let pseudo = checksum::pseudo_sum(src, dst, pkt.family, TCP, length);
    let [a, b, ..] = field.to_ne_bytes();
    if checksum::may_be_partial(u16::from_ne_bytes([a, b]), pseudo) {
        return true;
    }
    bytes
        .sum(pkt.l4_offset as usize, len)
        .is_some_and(|sum| checksum::fold(pseudo + checksum::Sum::from(sum)) == 0xffff)
}

/// Fills in `l4` and the ids; `None` if the header is truncated. `len`: bytes from the L4 header
/// on, by the length field of the IP header.
#[inline(always)]
fn parse_l4<B: Bytes + ?Sized>(bytes: &B, pkt: &mut Packet, len: u32) -> Option<()> {
    let at = pkt.l4_offset as usize;
    match (pkt.tuple.proto, pkt.family) {
        (proto::TCP, _) => {
            // The whole header, so that every byte that a rewrite touches is present.
            let [ports, seq, ack, flags, field] = bytes.words::<5>(at)?;
            let [ports, seq, ack, flags] = [ports, seq, ack, flags].map(u32::from_be);
            set_ports(&mut pkt.tuple, ports);
            let (flags, header) = ((flags >> 16 & 0xff) as u8, (flags >> 28) * 4);
            pkt.l4 = L4::Tcp(TcpSegment {
                flags,
                bad_checksum: (flags & RST != 0 && !tcp_checksum_holds(bytes, pkt, field, len))
                    as u8,
                payload: if flags & FIN == 0 {
                    0
                } else if pkt.is_fragment != 0 || len < header {
                    UNKNOWN_LENGTH
                } else {
                    u16::try_from(len - header).unwrap_or(UNKNOWN_LENGTH)
                },
                seq,
                ack,
            });
        }
        (proto::UDP | proto::UDP_LITE | proto::DCCP, _) => {
            let [ports, _] = bytes.words::<2>(at)?.map(u32::from_be);
            set_ports(&mut pkt.tuple, ports);
            pkt.l4 = L4::Udp;
        }
        (proto::SCTP, _) => {
            let [ports] = bytes.words::<1>(at)?.map(u32::from_be);
            set_ports(&mut pkt.tuple, ports);
            pkt.l4 = L4::Address;
        }
        (proto::ICMP, Family::V4) | (proto::ICMPV6, Family::V6) => {
            let [w0, w1] = bytes.words::<2>(at)?.map(u32::from_be);
            pkt.l4 = set_icmp(&mut pkt.tuple, w0 >> 24, w1 >> 16);
            if matches!(pkt.family, Family::V6) && matches!(w0 >> 24, 133..=137) {
                let [w1] = bytes
                    .words::<1>(pkt.l3_offset as usize + 4)?
                    .map(u32::from_be);
                if w1 & 0xff == 0xff {
                    pkt.l4 = L4::Discovery;
                }
            }
        }
        // The integrity check of AH covers the addresses (RFC 4302 3.3.3.1).
        (proto::ICMP | proto::ICMPV6 | proto::AH, _) => {
            pkt.l4 = L4::Untranslatable(DropReason::UnsupportedProtocol);
        }
        _ => pkt.l4 = L4::Address,
    }
    Some(())
}

#[inline(always)]
const fn set_ports(tuple: &mut Tuple, ports: u32) {
    tuple.src_id = (ports >> 16) as u16;
    tuple.dst_id = (ports & 0xffff) as u16;
}

/// Classifies an ICMP message by its type (RFC 792, RFC 950, RFC 4443). A query carries its
/// identifier after the checksum.
#[inline(always)]
fn set_icmp(tuple: &mut Tuple, kind: u32, id: u32) -> L4 {
    let id = (id & 0xffff) as u16;
    let v4 = tuple.proto == proto::ICMP;
    match (v4, kind) {
        (true, 8 | 13 | 15 | 17) | (false, 128) => {
            tuple.src_id = id;
            L4::Query
        }
        (true, 0 | 14 | 16 | 18) | (false, 129) => {
            tuple.dst_id = id;
            L4::QueryReply
        }
        (true, 3 | 11 | 12) | (false, 1..=4) => L4::Error,
        _ => L4::Untranslatable(DropReason::IcmpNoFlow),
    }
}

/// The packet inside an ICMP error, as far as the error carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Inner {
    /// The tuple of the inner packet, as on the wire.
    pub tuple: Tuple,
    /// Offset of the inner IP header from the start of the outer packet.
    pub l3_offset: u32,
    /// Offset of the inner L4 header from the start of the outer packet.
    pub l4_offset: u32,
    /// Offset of the inner L4 checksum, or 0 if the error does not include it.
    pub checksum_offset: u32,
}

impl Inner {
    /// The initial value, before parsing.
    pub const EMPTY: Self = Self {
        tuple: Packet::EMPTY.tuple,
        l3_offset: 0,
        l4_offset: 0,
        checksum_offset: 0,
    };
}

/// Reads the packet inside the ICMP error `pkt`. RFC 5508 3.2 (REQ-3): eight
/// bytes of L4 suffice, and the IP header may have options.
#[inline(always)]
pub fn parse_inner<B: Bytes + ?Sized>(bytes: &B, pkt: &Packet, inner: &mut Inner) -> Option<()> {
    let at = pkt.l4_offset + 8;
    let mut scratch = Packet::EMPTY;
    let header = match pkt.family {
        Family::V4 => parse_v4(bytes, at as usize, &mut scratch)?,
        Family::V6 => parse_v6(bytes, at as usize, &mut scratch)?,
    };
    inner.tuple = scratch.tuple;
    inner.l3_offset = at;
    inner.l4_offset = at + header.len;
    inner.checksum_offset = 0;
    if !matches!(header.end, HeaderEnd::L4) {
        return None;
    }
    let l4 = inner.l4_offset;
    let [w0, w1] = bytes.words::<2>(l4 as usize)?.map(u32::from_be);
    match inner.tuple.proto {
        proto::TCP => {
            set_ports(&mut inner.tuple, w0);
            if bytes.words::<5>(l4 as usize).is_some() {
                inner.checksum_offset = l4 + 16;
            }
        }
        proto::UDP | proto::UDP_LITE | proto::DCCP => {
            set_ports(&mut inner.tuple, w0);
            inner.checksum_offset = l4 + 6;
        }
        proto::SCTP => set_ports(&mut inner.tuple, w0),
        proto::ICMP | proto::ICMPV6 => {
            if !matches!(
                set_icmp(&mut inner.tuple, w0 >> 24, w1 >> 16),
                L4::Query | L4::QueryReply
            ) {
                return None;
            }
            inner.checksum_offset = l4 + 2;
        }
        _ => {}
    }
    Some(())
}
