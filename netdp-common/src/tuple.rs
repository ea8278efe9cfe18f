//! The five fields that identify a packet's flow on the wire.

use crate::addr::Addr;
use crate::siphash;

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

    /// Hashes all fields with the node's secret. The hash is stable for as long as the node keeps
    /// the secret, and cannot be predicted without it.
    #[inline(always)]
    #[must_use]
    pub const fn keyed_hash(&self, secret: siphash::Key) -> u64 {
        let (src, dst) = (self.src.words(), self.dst.words());
        let ids = (self.src_id as u64) << 16 | self.dst_id as u64;
        siphash::hash(
            secret,
            [
                (src[0] as u64) << 32 | src[1] as u64,
                (src[2] as u64) << 32 | src[3] as u64,
                (dst[0] as u64) << 32 | dst[1] as u64,
                (dst[2] as u64) << 32 | dst[3] as u64,
                ids << 32 | self.proto as u64,
            ],
        )
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

    /// Returns the [`quick_hash`] of this tuple.
    #[inline(always)]
    #[must_use]
    pub const fn quick_hash(&self) -> u32 {
        let ids = (self.src_id as u32) << 16 | self.dst_id as u32;
        quick_hash(&self.src, &self.dst, ids)
    }

    /// Reports whether `proto` is ICMP of either family.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        self.proto == proto::ICMP || self.proto == proto::ICMPV6
    }
}

/// Hashes addresses and ports in fewer steps than [`Tuple::keyed_hash`], to select a queue: the
/// upper bits are the well-mixed ones. `ids` has the source's id in the upper half and the
/// destination's in the lower.
#[inline(always)]
#[must_use]
pub const fn quick_hash(src: &Addr, dst: &Addr, ids: u32) -> u32 {
    // 2^64 divided by the golden ratio, made odd.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let pair = (word(src) as u64) << 32 | word(dst) as u64;
    let mixed = pair.wrapping_mul(GOLDEN) >> 32 ^ ids as u64;
    (mixed.wrapping_mul(GOLDEN) >> 32) as u32
}

/// Returns a slot among 2^`bits` for a pair of addresses. The pods of one node and their peers
/// mostly differ in the last octets only; such pairs should not collide.
#[inline(always)]
#[must_use]
pub const fn pair_slot(pod: &Addr, peer: &Addr, bits: u32) -> u32 {
    let mixed = word(pod).rotate_left(16) ^ word(peer);
    mixed.wrapping_mul(GOLDEN_RATIO) >> (u32::BITS - bits)
}

/// Returns the words in which addresses of one network differ, XORed.
#[inline(always)]
const fn word(addr: &Addr) -> u32 {
    let words = addr.words();
    words[3] ^ words[2] ^ words[1]
}

/// 2^32 divided by the golden ratio, made odd: the factor of a multiplicative hash.
const GOLDEN_RATIO: u32 = 0x9e37_79b1;

#[cfg(test)]
mod tests {
    use super::{Tuple, pair_slot, proto};
    use crate::addr::Addr;
    use std::collections::HashMap;

    /// With random slots, 0.71, 0.23 and 0.62 of the pairs would be alone in theirs.
    #[test]
    fn pairs_of_addresses_mostly_have_a_slot_for_themselves() {
        for (pods, peers, wanted) in [(16, 16, 0.9), (32, 32, 0.5), (1, 500, 0.9)] {
            let mut slots = HashMap::<u32, u32>::new();
            for pod in 0..pods {
                for peer in 0..peers {
                    let [high, low] = u16::to_be_bytes(peer);
                    let pod = Addr::from_v4([10, 244, 1, 2 + pod]);
                    let peer = Addr::from_v4([10, 0, high, low]);
                    *slots.entry(pair_slot(&pod, &peer, 10)).or_default() += 1;
                }
            }
            let alone: u32 = slots.values().filter(|pairs| **pairs == 1).sum();
            let alone = f64::from(alone) / (f64::from(pods) * f64::from(peers));
            assert!(alone >= wanted, "{pods} pods, {peers} peers: {alone}");
        }
    }

    /// The upper bits select the queue.
    #[test]
    fn the_quick_hash_spreads_ports_and_hosts_over_queues() {
        const QUEUES: usize = 8;
        let to = Addr::from_v4([198, 51, 100, 7]);
        let by_port = |n: u16| Tuple::new(Addr::from_v4([10, 0, 0, 1]), to, n, 443, proto::TCP);
        let by_host = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Tuple::new(Addr::from_v4([10, 0, high, low]), to, 5000, 443, proto::TCP)
        };
        for tuple in [&by_port as &dyn Fn(u16) -> Tuple, &by_host] {
            let mut queues = [0; QUEUES];
            for n in 0..4096 {
                queues[tuple(n).quick_hash() as usize >> (32 - QUEUES.ilog2())] += 1;
            }
            assert!(
                queues.iter().all(|flows| (256..1024).contains(flows)),
                "{queues:?}"
            );
        }
    }
}
