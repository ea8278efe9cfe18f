//! Pins of earlier layouts, and those that an unfinished upgrade has left.

use super::bpffs;
use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use netdp_common::layout::{
    Counters, DropReason, EARLIEST_LAYOUT, LAYOUT, Settings, Traffic, pins,
};
use std::path::Path;

/// Number of 8-byte counters in the versions with layout 1: the first lacks the drop reasons for
/// forged sources, protocols of the node and limits of pods; the first two lack the one for IPsec
/// policies.
const NUMBERS: [usize; 3] = [23, 26, 27];

/// Number of counters of layout 1 other than those of drops, which follow them.
const OUTCOMES: usize = 12;

/// Counters of layout 1. Programs of that layout that are still attached count in them.
pub enum EarlierCounters {
    First(PerCpuArray<MapData, [u64; NUMBERS[0]]>),
    Second(PerCpuArray<MapData, [u64; NUMBERS[1]]>),
    Last(PerCpuArray<MapData, [u64; NUMBERS[2]]>),
}

impl EarlierCounters {
    /// Opens the pinned counters of layout 1. Returns `None` if there are none.
    ///
    /// # Errors
    /// Returns an error if the map can't be opened, or no version had such counters.
    pub fn open(bpffs: &Path) -> Result<Option<Self>> {
        let path = bpffs.join(pins::EARLIER_COUNTERS);
        if !path.exists() {
            return Ok(None);
        }
        let map = bpffs::open_map(bpffs, pins::EARLIER_COUNTERS)?;
        let opening = || format!("reading the pinned map {}", path.display());
        let number = map.info().with_context(opening)?.value_size() as usize / size_of::<u64>();
        let map = Map::PerCpuArray(map);
        let [first, second, last] = NUMBERS;
        Ok(Some(if number == first {
            Self::First(map.try_into().with_context(opening)?)
        } else if number == second {
            Self::Second(map.try_into().with_context(opening)?)
        } else if number == last {
            Self::Last(map.try_into().with_context(opening)?)
        } else {
            bail!(
                "the pinned map {} has {number} counters, and no version of netdp made such a map. To \
                 continue, remove that file: counts of before the upgrade are lost, and no mapping",
                path.display()
            )
        }))
    }

    /// Returns the counters, summed over all CPUs.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn sum(&self) -> Result<Counters> {
        Ok(match self {
            Self::First(map) => counters(&sum(map)?),
            Self::Second(map) => counters(&sum(map)?),
            Self::Last(map) => counters(&sum(map)?),
        })
    }
}

fn sum<const N: usize>(map: &PerCpuArray<MapData, [u64; N]>) -> Result<[u64; N]> {
    let mut sum = [0_u64; N];
    let counted = map
        .get(&0, 0)
        .context("reading the counters of the earlier layout")?;
    for cpu in counted.iter() {
        for (sum, count) in sum.iter_mut().zip(cpu) {
            *sum += count;
        }
    }
    Ok(sum)
}

/// Returns counters by the order that they had in layout 1, which has no bytes; drop reasons were
/// appended.
fn counters(values: &[u64]) -> Counters {
    let outcome = |index: usize| values.get(index).copied().unwrap_or_default();
    let packets = |index| Traffic {
        packets: outcome(index),
        bytes: 0,
    };
    let mut counters = Counters {
        egress_masqueraded: packets(0),
        egress_bypassed: packets(1),
        egress_host: packets(2),
        egress_replies: packets(3),
        egress_untouched: packets(4),
        ingress_translated: packets(5),
        ingress_passed: packets(6),
        egress_let_out: packets(7),
        errors_translated: outcome(8),
        fragments_held: outcome(9),
        mappings_created: outcome(10),
        ports_changed: outcome(11),
        ..Counters::default()
    };
    for (reason, count) in DropReason::ALL.iter().zip(values.iter().skip(OUTCOMES)) {
        *counters.drops.get_mut(*reason) = *count;
    }
    counters
}

/// Checks that an agent or a command of this version may use maps of a layout; 0 is that of maps to
/// which no program has been attached.
///
/// # Errors
/// Returns an error that says what to do.
pub fn check_layout(layout: u32, bpffs: &Path) -> Result<()> {
    if layout == 0 || (EARLIEST_LAYOUT..=LAYOUT).contains(&layout) {
        return Ok(());
    }
    bail!(
        "the maps under {} have layout {layout}, this netdp uses {LAYOUT}. To continue, run `netdp \
         detach --bpffs {}` (live mappings are lost), or start the version that made them",
        bpffs.display(),
        bpffs.display()
    )
}

/// Removes maps of this layout beside mappings of an earlier one, or beside none: an upgrade was
/// begun and not finished, or the earlier version's `netdp detach` did not know them. What they hold
/// is about no mapping that exists.
///
/// # Errors
/// Returns an error if the settings can't be read or a pin can't be removed.
pub fn remove_unfinished(bpffs: &Path) -> Result<()> {
    let remove = |file: &str| bpffs::remove_pin(&bpffs.join(file), &mut Vec::new());
    let remove_new = || pins::NEW.iter().try_for_each(|file| remove(file));
    if !bpffs.join(pins::SNAT).exists() {
        pins::EARLIER
            .iter()
            .try_for_each(|(file, _)| remove(file))?;
        return remove_new();
    }
    match pinned_layout(bpffs)? {
        // Epochs begin anew with the settings: pairs of old ones must not seem to be of them.
        None => remove(pins::BYPASS_CACHE),
        Some(layout) if (EARLIEST_LAYOUT..LAYOUT).contains(&layout) => remove_new(),
        Some(_) => Ok(()),
    }
}

/// Returns the layout of the pinned maps; `None` if the map that says so is not there.
fn pinned_layout(bpffs: &Path) -> Result<Option<u32>> {
    let path = bpffs.join(pins::SETTINGS);
    if !path.exists() {
        return Ok(None);
    }
    let map = Map::Array(bpffs::open_map(bpffs, pins::SETTINGS)?);
    // A map of another size is refused later, with its name.
    let Ok(settings) = Array::<_, Settings>::try_from(map) else {
        return Ok(None);
    };
    let reading = || format!("reading the pinned map {}", path.display());
    Ok(Some(settings.get(&0, 0).with_context(reading)?.layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn counters_of_layout_1_keep_their_meaning() {
        let values: Vec<u64> = (100..).take(NUMBERS[2]).collect();
        let all = counters(&values);
        let outcomes = BTreeMap::from(all.outcomes());
        assert_eq!(outcomes["egress_masqueraded"], 100);
        assert_eq!(outcomes["egress_let_out"], 107);
        assert_eq!(outcomes["traffic_unattributed"], 0);
        assert_eq!(outcomes["errors_translated"], 108);
        assert_eq!(all.drops.malformed, 112);
        assert_eq!(all.drops.ipsec_policy, 126);
        let fewer = counters(&values[..NUMBERS[0]]);
        assert_eq!(
            (fewer.ports_changed, fewer.drops.rewrite_failed),
            (111, 122)
        );
        assert_eq!(fewer.drops.forged_source, 0);
    }
}
