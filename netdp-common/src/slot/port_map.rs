//! The ports towards one destination that were found taken: a hint that shortens the search for a
//! free one. The mapping table is authoritative; a bit set wrongly costs a port for a while, a
//! missing one costs a try.

use crate::flow::age;
use crate::layout::{
    PORT_MAP_WORDS, PORT_MAPS, PORT_RANGES, PortMapBits, PortMapOwner, PortRange, Secret, Tuple,
};
use crate::packet::{keyed_hash, low32};

/// Returns the wire tuple that stands for all ports of the node towards a destination.
#[inline(always)]
#[must_use]
pub const fn destination(wire: &Tuple) -> Tuple {
    let mut key = *wire;
    key.dst_id = 0;
    key
}

/// Returns the index of a destination's map.
#[inline(always)]
#[must_use]
pub const fn index(secret: Secret, key: &Tuple) -> u32 {
    low32(keyed_hash(key, secret)) & (PORT_MAPS - 1)
}

/// Returns the ports of word `n` that lie in the ranges, as bits.
#[inline(always)]
#[must_use]
pub const fn word_mask(ranges: &[PortRange; PORT_RANGES], n: u32) -> u64 {
    let first = n * 64;
    let mut mask = 0;
    let mut i = 0;
    while i < PORT_RANGES {
        mask |= range_mask(ranges[i], first);
        i += 1;
    }
    mask
}

/// Returns those of the 64 ports from `first` on that lie in the range, as bits.
#[inline(always)]
const fn range_mask(range: PortRange, first: u32) -> u64 {
    let (min, max) = (range.min as u32, range.max as u32);
    if min > max || max < first || min >= first + 64 {
        return 0;
    }
    let low = min.saturating_sub(first);
    let high = if max < first + 63 { max - first } else { 63 };
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// Returns the position of the lowest set bit; `word` is not 0. BPF has no single instruction for
/// it.
#[inline(always)]
#[must_use]
pub const fn lowest(word: u64) -> u32 {
    let mut word = word;
    let mut at = 0;
    if word & 0xffff_ffff == 0 {
        word >>= 32;
        at += 32;
    }
    if word & 0xffff == 0 {
        word >>= 16;
        at += 16;
    }
    if word & 0xff == 0 {
        word >>= 8;
        at += 8;
    }
    if word & 0xf == 0 {
        word >>= 4;
        at += 4;
    }
    if word & 3 == 0 {
        word >>= 2;
        at += 2;
    }
    if word & 1 == 0 {
        at += 1;
    }
    at
}

/// Returns the word of a port, and its bit there.
#[inline(always)]
const fn position(port: u16) -> (u32, u64) {
    (port as u32 / 64, 1 << (port % 64))
}

/// A port map in place, shared with other CPUs and the agent.
#[derive(Clone, Copy)]
pub struct PortMapSlot {
    owner: *mut PortMapOwner,
    bits: *mut PortMapBits,
}

impl PortMapSlot {
    /// # Safety
    /// Both pointers must stay readable and writable for as long as the slot is used (map values
    /// inside one program run).
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(owner: *mut PortMapOwner, bits: *mut PortMapBits) -> Self {
        Self { owner, bits }
    }

    /// Reports whether the map belongs to a destination and was used within `unused` ticks.
    #[inline(always)]
    #[must_use]
    pub fn is_in_use(self, now: u32, unused: u32) -> bool {
        // SAFETY: valid by the contract of `new`; words of two owners may mix, which
        // costs tries.
        unsafe { (*self.owner).wire.proto != 0 && age(now, (*self.owner).used_at) < unused }
    }

    /// Reports whether the map was cleared more than `stale` ticks ago.
    #[inline(always)]
    #[must_use]
    pub fn is_stale(self, now: u32, stale: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { age(now, (*self.owner).cleared_at) > stale }
    }

    /// Returns the bucket of the pod for which no port of this range was free within that many
    /// ticks.
    #[inline(always)]
    #[must_use]
    pub fn refused_lately(self, class: u16, now: u32, within: u32) -> Option<u32> {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let refused = (*self.owner).refused;
            let same = (*self.owner).refused_class == u32::from(class);
            let lately = refused != 0 && same && age(now, (*self.owner).refused_at) < within;
            lately.then(|| refused - 1)
        }
    }

    /// Reports whether the map belongs to this destination.
    #[inline(always)]
    #[must_use]
    pub fn is_of(self, key: &Tuple) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.owner).wire.is_same(key) }
    }

    /// Assigns the map to another destination. The caller clears the bits.
    #[inline(always)]
    pub fn take(self, key: &Tuple, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.owner).wire = *key;
            (*self.owner).used_at = now;
            (*self.owner).cleared_at = now;
            (*self.owner).refused = 0;
        }
    }

    /// Records the time of a use, in ticks.
    #[inline(always)]
    pub fn touch(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.owner).used_at = now }
    }

    /// Records the time at which the map is cleared, in ticks.
    #[inline(always)]
    pub fn set_cleared(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.owner).cleared_at = now }
    }

    /// Records that for a pod of this bucket no port was free in the range that begins with
    /// `class`.
    #[inline(always)]
    pub fn set_refused(self, bucket: u32, class: u16, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.owner).refused = bucket + 1;
            (*self.owner).refused_at = now;
            (*self.owner).refused_class = class.into();
        }
    }

    /// Returns the word `n`, modulo the number of words.
    #[inline(always)]
    #[must_use]
    pub fn word(self, n: u32) -> u64 {
        // SAFETY: valid by the contract of `new`, and the index is in bounds.
        unsafe {
            *(&raw const (*self.bits).0)
                .cast::<u64>()
                .add((n & (PORT_MAP_WORDS - 1)) as usize)
        }
    }

    /// Writes the word `n`, modulo the number of words.
    #[inline(always)]
    pub fn set_word(self, n: u32, word: u64) {
        // SAFETY: as above. A concurrent write of another CPU may be lost.
        unsafe {
            *(&raw mut (*self.bits).0)
                .cast::<u64>()
                .add((n & (PORT_MAP_WORDS - 1)) as usize) = word;
        }
    }

    /// Marks a port as taken.
    #[inline(always)]
    pub fn mark_taken(self, port: u16) {
        let (n, bit) = position(port);
        self.set_word(n, self.word(n) | bit);
    }

    /// Marks a port as free.
    #[inline(always)]
    pub fn mark_free(self, port: u16) {
        let (n, bit) = position(port);
        self.set_word(n, self.word(n) & !bit);
    }
}

#[cfg(test)]
mod tests {
    use super::{lowest, word_mask};
    use crate::layout::PortRange;

    #[test]
    fn a_word_holds_the_ports_of_the_ranges_and_no_others() {
        let ranges = [
            PortRange::new(1, 3),
            PortRange::new(60, 70),
            PortRange::new(1024, 65_535),
            PortRange::EMPTY,
        ];
        for port in 0..=u16::MAX {
            let wanted = ranges.iter().any(|r| r.min <= port && port <= r.max);
            let mask = word_mask(&ranges, u32::from(port) / 64);
            assert_eq!(mask >> (port % 64) & 1 != 0, wanted, "{port}");
        }
    }

    #[test]
    fn the_lowest_bit_is_found() {
        for bit in 0..64 {
            assert_eq!(lowest(1 << bit), bit);
            assert_eq!(lowest(u64::MAX << bit), bit);
        }
    }
}
