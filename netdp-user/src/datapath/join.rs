//! Reply halves for a reader that walks through the original ones: the first are looked up one by
//! one; where there are more, all are read in batches into a compact sorted list, 20 bytes each.

use super::batch;
use super::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::layout::{MAPPING_HOST, Mapping, Tuple};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

/// The most look-ups of single halves, each of which is a system call, before all are read.
const SINGLE: usize = 16_384;

/// The most steps of an interpolation search; the hashes are spread evenly, so that a few suffice.
const STEPS: usize = 64;

/// The fields that diagnosis needs, with a hash of the tuple in two words, so that an entry has no
/// padding.
#[derive(Clone, Copy)]
struct Compact {
    hash: [u32; 2],
    last_seen: u32,
    traffic: u32,
    flags: u16,
    tcp_seen: u8,
}

impl Compact {
    fn hash(&self) -> u64 {
        u64::from(self.hash[0]) << 32 | u64::from(self.hash[1])
    }
}

/// The reply halves of a walk.
pub(super) struct ReplyHalves<'a> {
    maps: &'a Maps,
    looked_up: usize,
    hash: RandomState,
    /// Sorted by hash, once they have been read.
    all: Option<Vec<Compact>>,
}

impl<'a> ReplyHalves<'a> {
    /// Creates a reader that has read nothing yet.
    pub(super) fn new(maps: &'a Maps) -> Self {
        Self {
            maps,
            looked_up: 0,
            hash: RandomState::new(),
            all: None,
        }
    }

    /// Returns the half of a wire tuple: of its fields those that its traffic, its state and its
    /// last packet are computed from.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(super) fn get(&mut self, wire: &Tuple) -> Result<Option<Mapping>> {
        if self.all.is_none() && self.looked_up < SINGLE {
            self.looked_up += 1;
            return Ok(self.maps.rev_snat.get(wire, 0).ok());
        }
        let all = match &mut self.all {
            Some(all) => all,
            none => none.insert(read(self.maps, &self.hash)?),
        };
        if let Some(half) = find(all, self.hash.hash_one(wire)) {
            return Ok(Some(Mapping {
                flags: half.flags,
                last_seen: half.last_seen,
                tcp_seen: half.tcp_seen,
                traffic: half.traffic,
                ..Mapping::new(&wire.dst, 0, 0, 0)
            }));
        }
        // It has begun since.
        Ok(self.maps.rev_snat.get(wire, 0).ok())
    }
}

fn read(maps: &Maps, hash: &RandomState) -> Result<Vec<Compact>> {
    let mut all = Vec::new();
    batch::for_each::<Tuple, Mapping>(&maps.rev_snat_data, |wire, half| {
        // A reservation of the node's own flow is no mapping.
        if half.flags & MAPPING_HOST == 0 {
            let hash = hash.hash_one(wire);
            all.push(Compact {
                hash: halves(hash),
                last_seen: half.last_seen,
                traffic: half.traffic,
                flags: half.flags,
                tcp_seen: half.tcp_seen,
            });
        }
    })
    .context("reading the rev_snat map")?;
    all.sort_unstable_by_key(Compact::hash);
    Ok(all)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
const fn halves(hash: u64) -> [u32; 2] {
    [(hash >> 32) as u32, hash as u32]
}

/// Finds the entry with this hash: an interpolation search, because evenly spread hashes lie near
/// where their value says.
fn find(sorted: &[Compact], wanted: u64) -> Option<&Compact> {
    let (mut start, mut end) = (0, sorted.len());
    for _ in 0..STEPS {
        let (first, last) = (
            sorted.get(start)?.hash(),
            sorted.get(end.checked_sub(1)?)?.hash(),
        );
        if start >= end || wanted < first || wanted > last {
            return None;
        }
        let width = u128::from(last - first).max(1);
        let offset = u128::from(wanted - first) * (end - 1 - start) as u128 / width;
        let at = start + offset as usize;
        let entry = sorted.get(at)?;
        match entry.hash().cmp(&wanted) {
            std::cmp::Ordering::Equal => return Some(entry),
            std::cmp::Ordering::Less => start = at + 1,
            std::cmp::Ordering::Greater => end = at,
        }
    }
    let rest = sorted.get(start..end)?;
    let at = rest.binary_search_by_key(&wanted, Compact::hash).ok()?;
    rest.get(at)
}

#[cfg(test)]
mod tests {
    use super::{Compact, find, halves};
    use proptest::prelude::*;

    fn entries(hashes: impl IntoIterator<Item = u64>) -> Vec<Compact> {
        let mut all: Vec<_> = hashes.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        let entry = |hash| Compact {
            hash: halves(hash),
            last_seen: 0,
            traffic: 0,
            flags: 0,
            tcp_seen: 0,
        };
        all.into_iter().map(entry).collect()
    }

    #[test]
    fn an_entry_has_twenty_bytes() {
        assert_eq!(size_of::<Compact>(), 20);
    }

    proptest! {
        #[test]
        fn every_hash_is_found_and_no_other(
            hashes in prop::collection::vec(prop_oneof![any::<u64>(), 0..64_u64], 0..300),
            others in prop::collection::vec(any::<u64>(), 8),
        ) {
            let all = entries(hashes.iter().copied());
            for hash in &hashes {
                prop_assert_eq!(find(&all, *hash).map(Compact::hash), Some(*hash));
            }
            for other in others.into_iter().filter(|other| !hashes.contains(other)) {
                prop_assert!(find(&all, other).is_none());
            }
        }
    }

    /// Values at both ends of a list of neighbours: an interpolation search alone would take a step
    /// for each.
    #[test]
    fn unevenly_spread_hashes_are_found() {
        let all = entries((0..10_000).chain([u64::MAX - 1, u64::MAX]));
        for hash in [0, 1, 4_999, 9_999, u64::MAX - 1, u64::MAX] {
            assert_eq!(find(&all, hash).map(Compact::hash), Some(hash));
        }
        assert!(find(&all, 10_000).is_none());
    }
}
