//! The maps that count new mappings, and refusals: `port_searches`, `refusals`.

use super::maps::{Maps, NOT_UP_TO_DATE};
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use netdp_common::layout::{Addr, NewMappings, pins};
use netdp_common::slot::{Key, Role};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

/// The two maps.
pub(super) struct RefusalMaps {
    new: PerCpuArray<MapData, NewMappings>,
    refusals: MapData,
}

impl RefusalMaps {
    /// Opens the maps pinned below `bpffs`; `None` if the pins are of a version without them.
    ///
    /// # Errors
    /// Returns an error if a map can't be opened, or has another type or size.
    pub(super) fn open(bpffs: &Path) -> Result<Option<Self>> {
        let files = [pins::PORT_SEARCHES, pins::REFUSALS];
        if !files.iter().all(|file| bpffs.join(file).exists()) {
            return Ok(None);
        }
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        Ok(Some(Self {
            new: Map::PerCpuArray(pinned(pins::PORT_SEARCHES)?).try_into()?,
            refusals: pinned(pins::REFUSALS)?,
        }))
    }
}

impl Maps {
    fn refusal_maps(&self) -> Result<&RefusalMaps> {
        self.refusals.as_ref().context(NOT_UP_TO_DATE)
    }

    /// Returns the counts of searches and protocols of new mappings, summed over all CPUs.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn new_mappings(&self) -> Result<NewMappings> {
        let new = &self.refusal_maps()?.new;
        let per_cpu = (new.get(&0, 0)).context("reading the port_searches map")?;
        let mut sum = NewMappings::default();
        for cpu in per_cpu.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }

    /// Returns the refusals by bucket of pods ([`Key::bucket`]); zero ones are left out.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn refusals(&self) -> Result<HashMap<u32, u64>> {
        let mut refusals = HashMap::new();
        batch::for_each::<u32, u64>(&self.refusal_maps()?.refusals, |bucket, count| {
            if *count != 0 {
                refusals.insert(*bucket, *count);
            }
        })
        .context("reading the refusals map")?;
        Ok(refusals)
    }

    /// Returns the function that gives a pod's bucket by its address.
    ///
    /// # Errors
    /// Returns an error if the node's secret can't be read.
    pub(crate) fn bucket_of_pod(&self) -> Result<impl Fn(IpAddr) -> u32> {
        let secret = self.limits()?.secret;
        Ok(move |address| Key::of(secret, &Addr::from(address), Role::Pod).bucket())
    }
}
