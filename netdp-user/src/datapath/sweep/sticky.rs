//! Detection of live mappings that the policy in force would not create.

use crate::datapath::maps::Maps;
use anyhow::Result;
use netdp_common::layout::{Action, Addr, SETTING_BYPASS_CACHE_VALID};
use std::collections::{BTreeSet, HashSet};

/// Maximum number of policy lookups, by destination, in one sweep; with more destinations the
/// result is unknown.
const LIMIT: usize = 65_536;

/// Data that a sweep through all mappings collects for the detection.
#[derive(Debug, Default)]
pub struct Sticky {
    /// Destinations of live mappings; `None` if they are not needed: the result is known already,
    /// or not all mappings are scanned.
    destinations: Option<HashSet<Addr>>,
}

impl Sticky {
    /// Starts collecting, if the datapath's flags say that the result is not known.
    pub fn look(flags: u32) -> Self {
        let unknown = flags & SETTING_BYPASS_CACHE_VALID == 0;
        Self {
            destinations: unknown.then(HashSet::new),
        }
    }

    /// Adds a mapping that is kept.
    pub fn note(&mut self, destination: Addr) {
        if let Some(destinations) = &mut self.destinations {
            destinations.insert(destination);
            if destinations.len() > LIMIT {
                self.destinations = None;
            }
        }
    }

    /// Reports whether destinations were collected and none is bypassed. `ours` are the node's
    /// addresses: hairpin mappings go there, to which the policy does not apply.
    pub fn none(self, maps: &Maps, ours: &BTreeSet<Addr>) -> Result<bool> {
        let Some(destinations) = self.destinations else {
            return Ok(false);
        };
        for destination in &destinations {
            if !ours.contains(destination) && maps.action(destination)? == Action::Bypass {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, Sticky};
    use netdp_common::layout::{Addr, SETTING_BYPASS_CACHE_VALID};

    #[test]
    fn nobody_asks_twice_nor_about_too_many() {
        assert!(
            Sticky::look(SETTING_BYPASS_CACHE_VALID)
                .destinations
                .is_none()
        );
        let mut sticky = Sticky::look(0);
        for n in (0u32..).take(LIMIT) {
            sticky.note(Addr::from_v4(n.to_be_bytes()));
        }
        assert!(sticky.destinations.is_some());
        sticky.note(Addr::from_v4([255; 4]));
        assert!(sticky.destinations.is_none());
    }
}
