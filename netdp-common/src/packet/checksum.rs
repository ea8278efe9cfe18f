//! Incremental update of the Internet checksum (RFC 1624, equation 3).
//!
//! Sums are over 16-bit words in memory order; the ones' complement sum does not depend on byte
//! order (RFC 1071 2(B)).

use crate::layout::{Addr, Family};

/// A sum of up to fifteen 32-bit words with its carries, which [`fold`] and [`fold32`] add back at
/// the low end: adding the carries one by one takes three times as many steps on a machine without
/// a carry flag.
pub type Sum = u64;

/// Returns the sum of replacing `old` by `new`, for [`replace`]; two words.
#[inline(always)]
#[must_use]
pub const fn diff(old: u32, new: u32) -> Sum {
    !old as Sum + new as Sum
}

/// Adds two 32-bit ones' complement sums.
#[inline(always)]
#[must_use]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u32
}

/// Returns the sum of replacing one address by another of the same family; two words, or eight.
#[inline(always)]
#[must_use]
pub const fn addr_diff(old: &Addr, new: &Addr, family: Family) -> Sum {
    let (old, new) = (old.words(), new.words());
    let last = diff(old[3], new[3]);
    match family {
        Family::V4 => last,
        Family::V6 => diff(old[0], new[0]) + diff(old[1], new[1]) + diff(old[2], new[2]) + last,
    }
}

/// Returns the sum of an address; one word, or four.
#[inline(always)]
#[must_use]
const fn addr_sum(addr: &Addr, family: Family) -> Sum {
    let [a, b, c, d] = addr.words();
    match family {
        Family::V4 => d as Sum,
        Family::V6 => a as Sum + b as Sum + c as Sum + d as Sum,
    }
}

/// Returns the sum of a pseudo-header (RFC 9293 3.1, RFC 8200 8.1). `len` is the length of the L4
/// header and its payload. Four words, or ten.
#[inline(always)]
#[must_use]
pub const fn pseudo_sum(src: &Addr, dst: &Addr, family: Family, proto: u8, len: u16) -> Sum {
    let addrs = addr_sum(src, family) + addr_sum(dst, family);
    addrs + (proto as u16).to_be() as Sum + len.to_be() as Sum
}

/// Reports whether a checksum field contains just the sum of its pseudo-header, to which the device
/// will add the rest (`CHECKSUM_PARTIAL`, include/linux/skbuff.h). By chance a complete checksum
/// may look the same.
#[inline(always)]
#[must_use]
pub const fn may_be_partial(field: u16, pseudo: Sum) -> bool {
    matches!(fold(pseudo + !field as Sum), 0 | 0xffff)
}

/// Folds a sum to 16 bits.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the folds leave 16 bits")]
pub const fn fold(sum: Sum) -> u16 {
    // Below 2^36, then below 2^21, then 2^16 + 2^5.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Folds a sum to 32 bits, for `bpf_l4_csum_replace` with `from` 0 and size 0 and for
/// `bpf_csum_update`.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the folds leave 32 bits")]
pub const fn fold32(sum: Sum) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// Returns a checksum field after a change by `diff` of the data that it covers. Field and sum are
/// both in memory order.
#[inline(always)]
#[must_use]
pub const fn replace(field: u16, diff: Sum) -> u16 {
    !fold(!field as Sum + diff)
}

/// The checksum deltas of replacing one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumDelta {
    /// The sum of replacing the address, see [`addr_diff`].
    pub addr: Sum,
    /// The sum of replacing the port.
    pub id: Sum,
}

impl ChecksumDelta {
    /// Returns the L4 checksum field after the change. `None` if the packet has no checksum: 0
    /// stands for that in UDP (RFC 768), where `may_lack` is set and a checksum of 0 is written in
    /// its other form.
    #[inline(always)]
    #[must_use]
    pub const fn field(self, field: u16, may_lack: bool) -> Option<u16> {
        if may_lack && field == 0 {
            return None;
        }
        match replace(field, self.addr + self.id) {
            0 if may_lack => Some(0xffff),
            new => Some(new),
        }
    }

    /// Returns the change of the sum of all bytes from the IP header on (`skb->csum`); 0 or
    /// `u32::MAX` for no change. `summed`: the L4 checksum field is updated, which compensates for
    /// address and port. In IPv4 the header checksum compensates for the address, too.
    #[inline(always)]
    #[must_use]
    pub const fn total(self, family: Family, summed: bool) -> u32 {
        match (family, summed) {
            (Family::V4, true) => !fold32(self.addr),
            (Family::V4, false) => fold32(self.id),
            (Family::V6, true) => 0,
            (Family::V6, false) => fold32(self.addr + self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ChecksumDelta, Sum, add, addr_diff, diff, fold, fold32, may_be_partial, pseudo_sum, replace,
    };
    use crate::layout::{Addr, Family};
    use proptest::prelude::*;

    /// RFC 1071's definition, word by word.
    fn full(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in data.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    /// 0x0000 and 0xffff are the same ones' complement number.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut data in prop::collection::vec(any::<u8>(), 40..200), new: [u8; 16], v6: bool) {
            let (family, at) = if v6 { (Family::V6, 0..16) } else { (Family::V4, 12..16) };
            let before = full(&data);
            let old: [u8; 16] = data[..16].try_into().unwrap();
            data[at.clone()].copy_from_slice(&new[at]);
            let delta = addr_diff(&Addr::from_v6(old), &Addr::from_v6(new), family);
            prop_assert!(same(replace(before, delta), full(&data)));
        }

        #[test]
        fn a_partial_checksum_is_told(src: [u8; 16], dst: [u8; 16], proto: u8, len: u16, v6: bool) {
            let (family, from) = if v6 { (Family::V6, 0) } else { (Family::V4, 12) };
            let mut header = [&src[from..], &dst[from..]].concat();
            header.extend([0, proto]);
            header.extend(len.to_be_bytes());
            let seed = !full(&header);
            let (src, dst) = (Addr::from_v6(src), Addr::from_v6(dst));
            let pseudo = pseudo_sum(&src, &dst, family, proto, len);
            prop_assert!(same(fold(pseudo), seed));
            for field in 0..=u16::MAX {
                prop_assert_eq!(may_be_partial(field, pseudo), same(field, seed), "{}", field);
            }
        }

        #[test]
        fn a_wrong_checksum_stays_wrong(field: u16, error in 1u16..0xffff, old: u32, new: u32) {
            let wrong = !fold(Sum::from(!field) + Sum::from(error));
            prop_assert!(!same(wrong, field));
            let delta = diff(old, new);
            prop_assert!(!same(replace(wrong, delta), replace(field, delta)));
        }

        #[test]
        fn the_sum_of_all_bytes_follows(
            mut packet in prop::collection::vec(any::<u8>(), 60..100),
            new: [u8; 16],
            port: [u8; 2],
            v6: bool,
            none: bool,
            may_lack: bool,
        ) {
            let (family, header, addr) = if v6 {
                (Family::V6, 40, 8..24)
            } else {
                (Family::V4, 20, 12..16)
            };
            let checksum = header + 6;
            if none {
                packet[checksum..checksum + 2].fill(0);
            }
            let word = |bytes: &[u8]| u16::from_ne_bytes([bytes[0], bytes[1]]);
            let padded = |bytes: &[u8]| {
                let mut whole = [0; 16];
                whole[16 - bytes.len()..].copy_from_slice(bytes);
                Addr::from_v6(whole)
            };
            let before = full(&packet);
            let change = ChecksumDelta {
                addr: addr_diff(&padded(&packet[addr.clone()]), &Addr::from_v6(new), family),
                id: diff(word(&packet[header..]).into(), word(&port).into()),
            };
            packet[addr.clone()].copy_from_slice(&new[16 - addr.len()..]);
            packet[header..header + 2].copy_from_slice(&port);
            if family == Family::V4 {
                let sum = replace(word(&packet[10..]), change.addr);
                packet[10..12].copy_from_slice(&sum.to_ne_bytes());
            }
            let field = word(&packet[checksum..]);
            let after = change.field(field, may_lack);
            prop_assert_eq!(after.is_none(), may_lack && field == 0);
            prop_assert!(!may_lack || after != Some(0), "would say that there is none");
            if let Some(after) = after {
                packet[checksum..checksum + 2].copy_from_slice(&after.to_ne_bytes());
            }
            let total = change.total(family, after.is_some());
            prop_assert!(same(replace(before, total.into()), full(&packet)));
        }

        #[test]
        fn carries_are_brought_around(words in prop::collection::vec(prop_oneof![any::<u32>(), Just(u32::MAX)], 0..=15)) {
            let sum = words.iter().map(|word| Sum::from(*word)).sum();
            let one_by_one = words.iter().copied().fold(0, add);
            prop_assert_eq!(fold32(sum), one_by_one);
            prop_assert_eq!(fold(sum), fold(one_by_one.into()));
        }

        #[test]
        fn there_and_back_is_the_same(field: u16, old: u32, new: u32) {
            let back = replace(replace(field, diff(old, new)), diff(new, old));
            prop_assert!(same(back, field));
        }
    }
}
