//! Whether mappings live that the policy in force would not make.

use crate::datapath::maps::Maps;
use anyhow::Result;
use netdp_common::abi::{Action, SETTING_NONE_STICKY};
use netdp_common::addr::Addr;
use std::collections::{BTreeSet, HashSet};

/// How many destinations the policy is asked about in one sweep; with more, it
/// stays unknown.
const LIMIT: usize = 65_536;

/// What a sweep through all mappings collects to find out.
#[derive(Debug, Default)]
pub struct Sticky {
    /// The destinations of living mappings; `None` where nobody asks: it is known
    /// already, or not all mappings are looked at.
    destinations: Option<HashSet<Addr>>,
}

impl Sticky {
    /// Begins to look, if the datapath's flags say that it is not known.
    pub fn look(flags: u32) -> Self {
        let unknown = flags & SETTING_NONE_STICKY == 0;
        Self {
            destinations: unknown.then(HashSet::new),
        }
    }

    /// Takes a mapping into account that lives on.
    pub fn note(&mut self, destination: Addr) {
        if let Some(destinations) = &mut self.destinations {
            destinations.insert(destination);
            if destinations.len() > LIMIT {
                self.destinations = None;
            }
        }
    }

    /// Whether it was asked and there is none. `ours` are the node's addresses:
    /// hairpin mappings go there, for which the policy is not asked.
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
    use netdp_common::abi::SETTING_NONE_STICKY;
    use netdp_common::addr::Addr;

    #[test]
    fn nobody_asks_twice_nor_about_too_many() {
        assert!(Sticky::look(SETTING_NONE_STICKY).destinations.is_none());
        let mut sticky = Sticky::look(0);
        for n in (0u32..).take(LIMIT) {
            sticky.note(Addr::from_v4(n.to_be_bytes()));
        }
        assert!(sticky.destinations.is_some());
        sticky.note(Addr::from_v4([255; 4]));
        assert!(sticky.destinations.is_none());
    }
}
