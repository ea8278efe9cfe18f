//! The five fields that identify a packet's flow on the wire.

use super::addr::Addr;

/// IP protocol numbers that the datapath handles (IANA protocol-numbers).
pub mod proto {
    /// IPv6 hop-by-hop options (RFC 8200 4.3).
    pub const IPV6_HOP_BY_HOP: u32 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u32 = 1;
    /// Transmission Control Protocol (RFC 9293).
    pub const TCP: u32 = 6;
    /// User Datagram Protocol (RFC 768).
    pub const UDP: u32 = 17;
    /// Datagram Congestion Control Protocol (RFC 4340).
    pub const DCCP: u32 = 33;
    /// IPv6 routing header (RFC 8200 4.4).
    pub const IPV6_ROUTING: u32 = 43;
    /// IPv6 fragment header (RFC 8200 4.5).
    pub const IPV6_FRAGMENT: u32 = 44;
    /// IPsec authentication header (RFC 4302).
    pub const AH: u32 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u32 = 58;
    /// IPv6 destination options (RFC 8200 4.6).
    pub const IPV6_DESTINATION: u32 = 60;
    /// Stream Control Transmission Protocol (RFC 9260).
    pub const SCTP: u32 = 132;
    /// Lightweight User Datagram Protocol (RFC 3828).
    pub const UDP_LITE: u32 = 136;
}

/// A tuple as on the wire. An ICMP query carries its identifier in `src_id` and its reply in
/// `dst_id`; the other id is 0, so that [`Tuple::reversed`] holds for every protocol.
///
/// Ports are in host byte order, so that `bpftool map dump` prints the port number itself (docs/adr
/// records the choice). Addresses are in network byte order.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Source address, network byte order.
    pub src: Addr,
    /// Destination address, network byte order.
    pub dst: Addr,
    /// Source port or ICMP query identifier, host byte order.
    pub src_id: u16,
    /// Destination port or ICMP reply identifier, host byte order.
    pub dst_id: u16,
    /// IP protocol number. A 32-bit word, so that there is no padding: map keys are compared as
    /// bytes.
    pub proto: u32,
}

impl Tuple {
    /// Builds a tuple from its fields; ids are in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(src: Addr, dst: Addr, src_id: u16, dst_id: u16, proto: u32) -> Self {
        Self {
            src,
            dst,
            src_id,
            dst_id,
            proto,
        }
    }

    /// Returns the tuple of the reply to this packet.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst, self.src, self.dst_id, self.src_id, self.proto)
    }

    /// Returns the wire tuple of this packet once its source is `addr`, `id`: the tuple of the
    /// reply as it arrives.
    #[inline(always)]
    #[must_use]
    pub const fn reply_to(&self, addr: Addr, id: u16) -> Self {
        Self::new(self.dst, addr, self.dst_id, id, self.proto)
    }

    /// Inverts [`reply_to`](Self::reply_to): returns the original tuple, with the source `addr`,
    /// `id`, whose reply has this wire tuple.
    #[inline(always)]
    #[must_use]
    pub const fn answers(&self, addr: Addr, id: u16) -> Self {
        Self::new(addr, self.src, id, self.src_id, self.proto)
    }

    /// Reports whether the tuples are equal. Compares words: a comparison of arrays would call
    /// memcmp.
    #[inline(always)]
    #[must_use]
    pub const fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (self.src.words(), other.src.words());
        let (c, d) = (self.dst.words(), other.dst.words());
        let src = (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        let dst = (c[0] ^ d[0]) | (c[1] ^ d[1]) | (c[2] ^ d[2]) | (c[3] ^ d[3]);
        let ids = (self.src_id ^ other.src_id) | (self.dst_id ^ other.dst_id);
        src | dst | ids as u32 | (self.proto ^ other.proto) == 0
    }

    /// Reports whether `proto` is ICMP of either family.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        self.proto == proto::ICMP || self.proto == proto::ICMPV6
    }
}
