//! Fast-path parsing: untagged IPv4 TCP and UDP without options or fragments, from the first words
//! alone.

use super::bytes::Bytes;
use super::hash::quick_hash;
use super::parse::{ETH_P_IP, ETH_P_IPV6, set_ports};
use super::parsed::{FIN, KEEP_IP_ID, L4, Packet, RST, SYN, TcpSegment};
use crate::layout::{Addr, Family, Tuple, proto};

/// Returns the addresses of a packet if nothing else can affect the decision on a bypassed pair: no
/// fragment, no ICMP, and for IPv6, TCP or UDP directly after the header. `None` for all others, and
/// for TCP segments with a SYN or a RST right after the header, which are counted.
#[inline(always)]
pub fn peek<B: Bytes + ?Sized>(bytes: &B, ethertype: u16, l3_offset: u32) -> Option<(Addr, Addr)> {
    let at = l3_offset as usize;
    match ethertype {
        ETH_P_IP => {
            let [w0, w1, w2, src, dst] = bytes.words::<5>(at)?;
            let (w0, w1, w2) = (u32::from_be(w0), u32::from_be(w1), u32::from_be(w2));
            let (len, total) = ((w0 >> 24 & 0xf) * 4, w0 & 0xffff);
            let plain = w0 >> 28 == 4
                && len >= 20
                && (total == 0 || total >= len)
                && w1 & 0x3fff == 0
                && w2 >> 16 & 0xff != proto::ICMP
                && !(w0 >> 24 == 0x45
                    && w2 >> 16 & 0xff == proto::TCP
                    && has_syn_or_rst(bytes, at + 20));
            plain.then(|| (Addr::from_v4_word(src), Addr::from_v4_word(dst)))
        }
        ETH_P_IPV6 => {
            let [w0, w1, s0, s1, s2, s3, d0, d1, d2, d3] = bytes.words::<10>(at)?;
            let next = u32::from_be(w1) >> 8 & 0xff;
            let (src, dst) = (
                Addr::from_words([s0, s1, s2, s3]),
                Addr::from_words([d0, d1, d2, d3]),
            );
            let plain = u32::from_be(w0) >> 28 == 6
                && matches!(next, proto::TCP | proto::UDP)
                && !src.is_v4()
                && !dst.is_v4()
                && !(next == proto::TCP && has_syn_or_rst(bytes, at + 40));
            plain.then_some((src, dst))
        }
        _ => None,
    }
}

/// Reports whether the TCP header at an offset has a SYN or a RST.
#[inline(always)]
fn has_syn_or_rst<B: Bytes + ?Sized>(bytes: &B, at: usize) -> bool {
    match bytes.words::<1>(at + 12) {
        Some([flags]) => u32::from_be(flags) >> 16 & (SYN | RST) as u32 != 0,
        None => false,
    }
}

/// Returns the hash that selects the queue of a packet between these addresses, which is the
/// [`quick_hash`] of its [`Tuple`], if it is unfragmented TCP or UDP directly after a header
/// without options. `None` for all others.
#[inline(always)]
pub fn queue_hash<B: Bytes + ?Sized>(
    bytes: &B,
    ethertype: u16,
    l3_offset: u32,
    src: &Addr,
    dst: &Addr,
) -> Option<u32> {
    let at = l3_offset as usize;
    let [w0, w1, w2] = bytes.words::<3>(at)?.map(u32::from_be);
    let (protocol, header) = match ethertype {
        ETH_P_IP if w0 >> 24 == 0x45 && w1 & 0x3fff == 0 => (w2 >> 16 & 0xff, 20),
        ETH_P_IPV6 if w0 >> 28 == 6 => (w1 >> 8 & 0xff, 40),
        _ => return None,
    };
    if !matches!(protocol, proto::TCP | proto::UDP) {
        return None;
    }
    let [ids] = bytes.words::<1>(at + header)?;
    Some(quick_hash(src, dst, u32::from_be(ids)))
}

/// A fast-path packet: unfragmented TCP or UDP directly after an IPv4 header without options, and
/// no FIN or RST. Small enough for registers: deciding about it and rewriting it needs no
/// [`Packet`] in memory.
#[derive(Clone, Copy, Debug)]
pub struct FastPacket {
    /// Source address, network byte order.
    src: u32,
    dst: u32,
    /// Ports in host byte order, the source's in the upper half.
    ports: u32,
    /// The TCP segment, or [`L4::Udp`].
    pub l4: L4,
}

impl FastPacket {
    /// Returns the source address.
    #[inline(always)]
    #[must_use]
    pub const fn src(&self) -> Addr {
        Addr::from_v4_word(self.src)
    }

    /// Returns the destination address.
    #[inline(always)]
    #[must_use]
    pub const fn dst(&self) -> Addr {
        Addr::from_v4_word(self.dst)
    }

    /// Reports whether it is a TCP segment with a SYN.
    #[inline(always)]
    #[must_use]
    pub const fn has_syn(&self) -> bool {
        match self.l4 {
            L4::Tcp(segment) => segment.flags & SYN != 0,
            _ => false,
        }
    }

    /// Returns the tuple, with ids in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn tuple(&self) -> Tuple {
        let proto = match self.l4 {
            L4::Tcp(_) => proto::TCP,
            _ => proto::UDP,
        };
        let mut tuple = Tuple::new(self.src(), self.dst(), 0, 0, proto);
        set_ports(&mut tuple, self.ports);
        tuple
    }

    /// Fills in all of `pkt` except the new endpoint, as [`parse`](super::parse()) does.
    #[inline(always)]
    pub fn fill(&self, l3_offset: u32, pkt: &mut Packet) {
        pkt.family = Family::V4;
        pkt.tuple = self.tuple();
        pkt.l4 = self.l4;
        pkt.l3_offset = l3_offset;
        pkt.l4_offset = l3_offset + 20;
        pkt.is_fragment = 0;
        pkt.fragment_id = 0;
        pkt.new_ip_id = KEEP_IP_ID;
    }
}

/// Parses a packet that is [`FastPacket`]; `None` for all others.
#[inline(always)]
pub fn parse_fast<B: Bytes + ?Sized>(
    bytes: &B,
    ethertype: u16,
    l3_offset: u32,
) -> Option<FastPacket> {
    if ethertype != ETH_P_IP {
        return None;
    }
    let at = l3_offset as usize;
    let [w0, w1, w2, src, dst] = bytes.words::<5>(at)?;
    let (w0, protocol) = (u32::from_be(w0), u32::from_be(w2) >> 16 & 0xff);
    let total = w0 & 0xffff;
    if w0 >> 24 != 0x45 || total != 0 && total < 20 || u32::from_be(w1) & 0x3fff != 0 {
        return None;
    }
    let (ports, l4) = match protocol {
        proto::TCP => {
            // The whole header, so that every byte that a rewrite touches is present.
            let [ports, seq, ack, flags, _] = bytes.words::<5>(at + 20)?.map(u32::from_be);
            let flags = (flags >> 16 & 0xff) as u8;
            // A FIN needs its length and a RST its checksum: both take the slow path.
            if flags & (FIN | RST) != 0 {
                return None;
            }
            let segment = TcpSegment {
                flags,
                bad_checksum: 0,
                payload: 0,
                seq,
                ack,
            };
            (ports, L4::Tcp(segment))
        }
        proto::UDP => {
            let [ports, _] = bytes.words::<2>(at + 20)?.map(u32::from_be);
            (ports, L4::Udp)
        }
        _ => return None,
    };
    Some(FastPacket {
        src,
        dst,
        ports,
        l4,
    })
}
