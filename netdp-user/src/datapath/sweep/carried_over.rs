//! The halves from which traffic was carried over: the entries in `traffic` end with them.

use crate::datapath::maps::Maps;
use anyhow::Result;
use netdp_common::layout::{Half, Mapping, Tuple};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The halves that a pass has seen from which traffic was carried over, by a hash of their key: 8
/// bytes each while it runs.
#[derive(Default)]
pub struct CarriedOver {
    hash: RandomState,
    halves: HashSet<u64>,
}

impl CarriedOver {
    /// Adds a half if it is one of them.
    pub fn note(&mut self, half: Half, tuple: &Tuple, mapping: &Mapping) {
        if mapping.is_carried_over() {
            let hash = self.hash.hash_one(half.traffic_key(tuple));
            self.halves.insert(hash);
        }
    }

    /// Returns the number of these halves.
    pub fn count(&self) -> usize {
        self.halves.len()
    }

    /// Removes the entries of halves that do not exist any more, or belong to another mapping: an
    /// agent was killed, or a packet carried over while its mapping ended. The pass has seen all
    /// halves.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or changed.
    pub fn remove_others(&self, maps: &Maps) -> Result<()> {
        let mut others = Vec::new();
        maps.for_each_traffic(|key| {
            if !self.halves.contains(&self.hash.hash_one(key)) && !has_half(maps, key) {
                others.push(*key);
            }
        })?;
        maps.remove_traffic(&others)
    }
}

/// Reports whether the half of an entry exists and is marked, as it is before the entry exists.
fn has_half(maps: &Maps, key: &Tuple) -> bool {
    let (half, tuple) = Half::of_traffic_key(key);
    let mapping = match half {
        Half::Original => maps.snat.get(&tuple, 0),
        Half::Reply => maps.rev_snat.get(&tuple, 0),
    };
    mapping.is_ok_and(|mapping| mapping.is_carried_over())
}
