//! Parsing: from packet bytes to a tuple.
//!
//! IPv4 options and IPv6 extension headers are skipped; fragments and ICMP errors (whose inner
//! packet [`parse_inner`](super::parse_inner) reads) are recognised.

use super::bytes::{Bytes, SUMMED};
use super::checksum;
use super::parsed::{FIN, KEEP_IP_ID, L4, Packet, Parsed, RST, TcpSegment, UNKNOWN_LENGTH};
use crate::layout::{Addr, DropReason, Family, Tuple, proto};

/// Length of an Ethernet header, in bytes (IEEE 802.3 3.2).
pub const ETHERNET: u32 = 14;

/// EtherType of IPv4.
pub const ETH_P_IP: u16 = 0x0800;

/// EtherType of IPv6.
pub const ETH_P_IPV6: u16 = 0x86dd;

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
pub(super) enum HeaderEnd {
    L4,
    LaterFragment,
    Unknown,
}

#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) len: u32,
    pub(super) end: HeaderEnd,
    /// Bytes after the header, by its length field; 0 if that does not give it.
    rest: u32,
}

/// Parses an IPv4 header (RFC 791 3.1).
#[inline(always)]
pub(super) fn parse_v4<B: Bytes + ?Sized>(
    bytes: &B,
    at: usize,
    pkt: &mut Packet,
) -> Option<Header> {
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
pub(super) fn parse_v6<B: Bytes + ?Sized>(
    bytes: &B,
    at: usize,
    pkt: &mut Packet,
) -> Option<Header> {
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
            pkt.l4 = L4::AddressOnly;
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
        _ => pkt.l4 = L4::AddressOnly,
    }
    Some(())
}

#[inline(always)]
pub(super) const fn set_ports(tuple: &mut Tuple, ports: u32) {
    tuple.src_id = (ports >> 16) as u16;
    tuple.dst_id = (ports & 0xffff) as u16;
}

/// Classifies an ICMP message by its type (RFC 792, RFC 950, RFC 4443). A query carries its
/// identifier after the checksum.
#[inline(always)]
pub(super) fn set_icmp(tuple: &mut Tuple, kind: u32, id: u32) -> L4 {
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
