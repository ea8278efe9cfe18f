//! Sizes of the tables, for metrics.

use super::maps::Maps;
use anyhow::{Context as _, Result};
use aya::maps::MapData;

/// The tables whose use metrics report, each with its capacity in entries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Capacities {
    /// Original halves of mappings.
    pub snat: u32,
    /// Reply halves of mappings, and reservations.
    pub rev_snat: u32,
    /// Traffic that was carried over from halves.
    pub traffic: u32,
    /// Live inbound flows.
    pub inbound_live: u32,
    /// Rules of one policy.
    pub policy: u32,
    /// Addresses of the node.
    pub local_addrs: u32,
}

impl Maps {
    /// Returns the capacities of the tables: maps that an earlier version created keep theirs.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report them, or a map is missing.
    pub(crate) fn capacities(&self) -> Result<Capacities> {
        let of = |map: &MapData| -> Result<u32> {
            Ok(map.info().context("querying a map's size")?.max_entries())
        };
        Ok(Capacities {
            snat: of(&self.snat_data)?,
            rev_snat: of(&self.rev_snat_data)?,
            traffic: of(self.traffic_data()?)?,
            inbound_live: of(&self.pods()?.inbound_live_data)?,
            policy: of(&self.policy_data[0])?,
            local_addrs: u32::try_from(self.address_capacity())?,
        })
    }
}
