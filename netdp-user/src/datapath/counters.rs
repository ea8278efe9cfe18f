//! The counters: one set for each number of an interface, and their sum.
//!
//! Programs count at any time, each CPU in entries of its own, which nothing else may write without
//! losing what is counted meanwhile. Where a number is given to another interface, the agent
//! therefore records what the number had counted before, instead of clearing it.

use super::bpffs;
use super::earlier::EarlierCounters;
use super::maps::{Maps, NOT_UP_TO_DATE};
use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use netdp_common::layout::{Counters, UPLINK_NUMBERS, Uplink, pins};
use std::collections::BTreeSet;
use std::path::Path;

/// The maps of counters.
pub(super) struct CounterMaps {
    counted: PerCpuArray<MapData, Counters>,
    /// The counters of each number at the time when it was given to its interface.
    before: Array<MapData, Counters>,
    /// Those of layout 1, if the datapath began with it. Nothing is moved from there, for the same
    /// reason.
    earlier: Option<EarlierCounters>,
}

impl CounterMaps {
    /// Opens the maps pinned below `bpffs`; `None` if the pins are of layout 1 only.
    ///
    /// # Errors
    /// Returns an error if a map can't be opened, or has another type or size.
    pub(super) fn open(bpffs: &Path) -> Result<Option<Self>> {
        // An upgrade that was interrupted may have left one without the other.
        let files = [pins::COUNTERS, pins::COUNTERS_BEFORE];
        if !files.iter().all(|file| bpffs.join(file).exists()) {
            return Ok(None);
        }
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        Ok(Some(Self {
            counted: Map::PerCpuArray(pinned(pins::COUNTERS)?).try_into()?,
            before: Map::Array(pinned(pins::COUNTERS_BEFORE)?).try_into()?,
            earlier: EarlierCounters::open(bpffs)?,
        }))
    }

    /// Returns what was counted under a number, summed over all CPUs. 0 has what was counted by
    /// programs of layout 1.
    fn sum(&self, number: u32) -> Result<Counters> {
        let per_cpu = self
            .counted
            .get(&number, 0)
            .context("reading the counters map")?;
        let mut sum = Counters::default();
        for cpu in per_cpu.iter() {
            sum.add(cpu);
        }
        if number == 0
            && let Some(earlier) = &self.earlier
        {
            sum.add(&earlier.sum()?);
        }
        Ok(sum)
    }
}

impl Maps {
    /// Returns the counters, summed over all interfaces and CPUs.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn counters(&self) -> Result<Counters> {
        let maps = self.counter_maps()?;
        let mut sum = Counters::default();
        for number in 0..UPLINK_NUMBERS {
            sum.add(&maps.sum(number)?);
        }
        Ok(sum)
    }

    /// Returns the counters of the interface that has a number ([`Uplink::number`]) since it has it.
    /// Number 0 has all others, those of interfaces that had the numbers earlier included: the sum
    /// over all numbers is what [`counters`](Self::counters) returns. If maps whose pins were out of
    /// reach have been adopted, what earlier interfaces had counted is included: no program uses
    /// `counters_before`, so that it was not found and is empty.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub fn counters_of(&self, number: u32) -> Result<Counters> {
        let maps = self.counter_maps()?;
        let before = |number: u32| {
            let before = maps.before.get(&number, 0);
            before.context("reading the counters_before map")
        };
        let mut counters = maps.sum(number)?;
        if number == 0 {
            for other in 1..UPLINK_NUMBERS {
                counters.add(&before(other)?);
            }
        } else {
            counters.subtract(&before(number)?);
        }
        Ok(counters)
    }

    /// Returns the counters of all interfaces together, and of each number since its interface has
    /// it; 0 is the number of interfaces that have none of their own. What earlier interfaces have
    /// counted is only part of the sum: an interface that goes takes its numbers with it, instead of
    /// adding them to another's at once.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(crate) fn counters_by_number(&self) -> Result<(Counters, Vec<Counters>)> {
        let maps = self.counter_maps()?;
        let mut sum = Counters::default();
        let mut by_number = Vec::new();
        for number in 0..UPLINK_NUMBERS {
            let mut counted = maps.sum(number)?;
            sum.add(&counted);
            if number != 0 {
                let before = maps.before.get(&number, 0);
                counted.subtract(&before.context("reading the counters_before map")?);
            }
            by_number.push(counted);
        }
        Ok((sum, by_number))
    }

    /// Returns the entry of an interface with its number: the one that its entry in the map has, or
    /// the lowest that no other has, which counts for it from now on. 0 if all are taken.
    pub(super) fn numbered(&mut self, ifindex: u32, uplink: &Uplink) -> Result<Uplink> {
        if let Ok(now) = self.uplink(ifindex)
            && now.number() != 0
        {
            return Ok(uplink.with_number(now.number()));
        }
        let mut taken = BTreeSet::new();
        for other in self.interfaces()? {
            taken.insert(self.uplink(other)?.number());
        }
        let Some(free) = (1..UPLINK_NUMBERS).find(|number| !taken.contains(number)) else {
            return Ok(uplink.with_number(0));
        };
        let sum = self.counter_maps()?.sum(free)?;
        let maps = self.counters.as_mut().context(NOT_UP_TO_DATE)?;
        maps.before
            .set(free, sum, 0)
            .context("writing the counters_before map")?;
        Ok(uplink.with_number(free))
    }

    fn counter_maps(&self) -> Result<&CounterMaps> {
        self.counters.as_ref().context(NOT_UP_TO_DATE)
    }
}
