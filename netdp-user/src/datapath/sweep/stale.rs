//! Detection of live mappings that the policy in force would not create.

use crate::datapath::maps::Maps;
use anyhow::Result;
use netdp_common::layout::Action;
use netdp_common::layout::Addr;
use netdp_common::layout::SETTING_BYPASS_CACHE_VALID;
use std::collections::{BTreeSet, HashSet};

/// Maximum number of policy lookups, by destination, in one sweep; with more destinations the
/// result is unknown.
const LIMIT: usize = 65_536;

/// Destinations of the live mappings, collected by a pass through all of them for the detection.
#[derive(Debug, Default)]
pub struct StaleMappings {
    /// Destinations of live mappings; `None` if they are not needed: the result is known already,
    /// or not all mappings are scanned.
    destinations: Option<HashSet<Addr>>,
}

impl StaleMappings {
    /// Starts collecting, if the datapath's flags say that the result is not known.
    pub fn collect(flags: u32) -> Self {
        let unknown = flags & SETTING_BYPASS_CACHE_VALID == 0;
        Self {
            destinations: unknown.then(HashSet::new),
        }
    }

    /// Adds a mapping that is kept.
    pub fn add(&mut self, destination: Addr) {
        if let Some(destinations) = &mut self.destinations {
            destinations.insert(destination);
            if destinations.len() > LIMIT {
                self.destinations = None;
            }
        }
    }

    /// Reports whether destinations were collected and none is bypassed. `ours` are the node's
    /// addresses: hairpin mappings go there, to which the policy does not apply.
    pub fn none_bypassed(self, maps: &Maps, ours: &BTreeSet<Addr>) -> Result<bool> {
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
    use super::{LIMIT, StaleMappings};
    use netdp_common::layout::Addr;
    use netdp_common::layout::SETTING_BYPASS_CACHE_VALID;

    #[test]
    fn destinations_are_collected_once_and_up_to_a_limit() {
        assert!(
            StaleMappings::collect(SETTING_BYPASS_CACHE_VALID)
                .destinations
                .is_none()
        );
        let mut stale = StaleMappings::collect(0);
        for n in (0u32..).take(LIMIT) {
            stale.add(Addr::from_v4(n.to_be_bytes()));
        }
        assert!(stale.destinations.is_some());
        stale.add(Addr::from_v4([255; 4]));
        assert!(stale.destinations.is_none());
    }
}
