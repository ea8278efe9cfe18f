//! The five fields that name a packet's flow on the wire.

use crate::addr::Addr;

/// IP protocol numbers that the datapath knows (IANA protocol-numbers).
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u32 = 1;
    /// TCP.
    pub const TCP: u32 = 6;
    /// UDP.
    pub const UDP: u32 = 17;
    /// The IPv6 fragment header.
    pub const IPV6_FRAGMENT: u32 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u32 = 58;
}

/// A tuple as on the wire. For ICMP queries the request carries its identifier
/// in `src_id` and the reply in `dst_id`, the other being 0, so that
/// [`Tuple::reversed`] holds for every protocol.
///
/// Ports are in host byte order: `bpftool map dump` then prints the very number
/// (docs/adr records the choice). Addresses are in network byte order.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port or ICMP query identifier, host byte order.
    pub src_id: u16,
    /// Destination port or ICMP reply identifier, host byte order.
    pub dst_id: u16,
    /// IP protocol number. A word, so that no padding is left: map keys are
    /// compared as bytes.
    pub proto: u32,
}

impl Tuple {
    /// A tuple.
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

    /// The tuple of the answer to this packet.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst, self.src, self.dst_id, self.src_id, self.proto)
    }

    /// The reversed tuple of this packet after its source became `addr`, `id`:
    /// what the answer looks like when it comes in from the wire.
    #[inline(always)]
    #[must_use]
    pub const fn reply_to(&self, addr: Addr, id: u16) -> Self {
        Self::new(self.dst, addr, self.dst_id, id, self.proto)
    }

    /// Whether `proto` is ICMP of either family.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        self.proto == proto::ICMP || self.proto == proto::ICMPV6
    }
}
