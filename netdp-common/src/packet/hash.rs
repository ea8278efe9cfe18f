//! Hashes of tuples and addresses.

use super::siphash;
use crate::layout::{Addr, Secret, Tuple};

/// Hashes all fields of a tuple with the node's secret. The hash is stable for as long as the node
/// keeps the secret, and cannot be predicted without it.
#[inline(always)]
#[must_use]
pub const fn keyed_hash(tuple: &Tuple, secret: Secret) -> u64 {
    let (src, dst) = (tuple.src.words(), tuple.dst.words());
    let ids = (tuple.src_id as u64) << 16 | tuple.dst_id as u64;
    siphash::hash(
        secret,
        [
            (src[0] as u64) << 32 | src[1] as u64,
            (src[2] as u64) << 32 | src[3] as u64,
            (dst[0] as u64) << 32 | dst[1] as u64,
            (dst[2] as u64) << 32 | dst[3] as u64,
            ids << 32 | tuple.proto as u64,
        ],
    )
}

/// Returns the [`quick_hash`] of a tuple.
#[inline(always)]
#[must_use]
pub const fn tuple_hash(tuple: &Tuple) -> u32 {
    let ids = (tuple.src_id as u32) << 16 | tuple.dst_id as u32;
    quick_hash(&tuple.src, &tuple.dst, ids)
}

/// Hashes addresses and ports in fewer steps than [`keyed_hash`], to select a queue: the
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
    // In host order, so that neighbouring addresses are neighbouring numbers, which multiples of
    // these factors spread well.
    let pod = u32::from_be(word(pod)).wrapping_mul(POD_FACTOR);
    let peer = u32::from_be(word(peer)).wrapping_mul(GOLDEN_RATIO);
    pod.wrapping_add(peer) >> (u32::BITS - bits)
}

/// Returns the words in which addresses of one network differ, XORed.
#[inline(always)]
const fn word(addr: &Addr) -> u32 {
    let words = addr.words();
    words[3] ^ words[2] ^ words[1]
}

/// 2^32 divided by the golden ratio, made odd: the factor of a multiplicative hash.
const GOLDEN_RATIO: u32 = 0x9e37_79b1;

/// Another odd factor, by which the multiples of the two are spread too.
const POD_FACTOR: u32 = 0xc2b2_ae35;

/// Returns the lower half of a hash.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "half of it is enough")]
pub const fn low32(hash: u64) -> u32 {
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::pair_slot;
    use super::tuple_hash;
    use crate::layout::{Addr, Tuple, proto};
    use std::collections::HashMap;

    /// Returns the part of the pairs that have one of 2^`bits` slots for themselves.
    fn alone(pods: u8, peers: u16, bits: u32) -> f64 {
        let mut slots = HashMap::<u32, u32>::new();
        for pod in 0..pods {
            for peer in 0..peers {
                let [high, low] = peer.to_be_bytes();
                let pod = Addr::from_v4([10, 244, 1, 2 + pod]);
                let peer = Addr::from_v4([10, 0, high, low]);
                *slots.entry(pair_slot(&pod, &peer, bits)).or_default() += 1;
            }
        }
        let alone: u32 = slots.values().filter(|pairs| **pairs == 1).sum();
        f64::from(alone) / (f64::from(pods) * f64::from(peers))
    }

    /// With random slots, 0.71, 0.23, 0.62 and then 0.61 of the pairs would be alone in theirs.
    #[test]
    fn pairs_of_addresses_mostly_have_a_slot_for_themselves() {
        for (pods, peers, bits, wanted) in [
            (16, 16, 10, 0.9),
            (32, 32, 10, 0.5),
            (1, 500, 10, 0.9),
            (1, 4096, 13, 1.0),
            (16, 256, 13, 0.9),
            (64, 64, 13, 0.8),
        ] {
            let alone = alone(pods, peers, bits);
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
                queues[tuple_hash(&tuple(n)) as usize >> (32 - QUEUES.ilog2())] += 1;
            }
            assert!(
                queues.iter().all(|flows| (256..1024).contains(flows)),
                "{queues:?}"
            );
        }
    }
}
