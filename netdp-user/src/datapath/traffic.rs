//! The traffic of mappings: what their halves have, and what was carried over from them.

use super::maps::{Maps, NOT_UP_TO_DATE};
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use netdp_common::layout::{Half, Mapping, Traffic, Tuple, pins};
use std::path::Path;

/// The map of what was carried over.
pub(super) struct TrafficMap {
    entries: HashMap<MapData, Tuple, Traffic>,
    /// A second handle, for batches.
    data: MapData,
}

impl TrafficMap {
    /// Opens the map pinned below `bpffs`; `None` if the pins are of a version without it.
    ///
    /// # Errors
    /// Returns an error if it can't be opened, or has another type or size.
    pub(super) fn open(bpffs: &Path) -> Result<Option<Self>> {
        if !bpffs.join(pins::TRAFFIC).exists() {
            return Ok(None);
        }
        let pinned = || bpffs::open_map(bpffs, pins::TRAFFIC);
        Ok(Some(Self {
            entries: Map::HashMap(pinned()?).try_into()?,
            data: pinned()?,
        }))
    }
}

impl Maps {
    /// Returns the map of what was carried over.
    pub(super) fn traffic_data(&self) -> Result<&MapData> {
        let map = self.traffic.as_ref().context(NOT_UP_TO_DATE)?;
        Ok(&map.data)
    }

    /// Returns the packets of a half, and their bytes if it counts them: of a half that an earlier
    /// version has begun, those since it does.
    pub(super) fn traffic(
        &self,
        half: Half,
        tuple: &Tuple,
        mapping: &Mapping,
    ) -> (u64, Option<u64>) {
        let mut traffic = mapping.uncarried(half);
        if mapping.is_carried_over()
            && let Some(map) = &self.traffic
            && let Ok(carried) = map.entries.get(&half.traffic_key(tuple), 0)
        {
            traffic.add(&carried);
        }
        let counts_bytes = mapping.flags & half.counted() != 0;
        (traffic.packets, counts_bytes.then_some(traffic.bytes))
    }

    /// Removes the entries of halves that have ended; missing ones are skipped.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub(super) fn remove_traffic(&self, keys: &[Tuple]) -> Result<()> {
        match &self.traffic {
            Some(map) => batch::remove(&map.data, keys).context("in the traffic map"),
            None => Ok(()),
        }
    }

    /// Calls `each` for the key of every entry.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(super) fn for_each_traffic(&self, mut each: impl FnMut(&Tuple)) -> Result<()> {
        match &self.traffic {
            Some(map) => batch::for_each::<Tuple, Traffic>(&map.data, |key, _| each(key))
                .context("reading the traffic map"),
            None => Ok(()),
        }
    }
}
