//! Readers of the counts of bypassed destinations, for [`crate::reach`].

use super::rule_counts::each_pair;
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use netdp_common::layout::{Addr, Pair, Reach, pins};
use std::net::IpAddr;
use std::path::Path;

/// Calls `each` for every network that is counted, with its first address. Returns `false` if the pins are
/// of a version without this map.
///
/// # Errors
/// Returns an error if the map can't be opened or read.
pub(crate) fn for_each_reach(bpffs: &Path, mut each: impl FnMut(IpAddr, &Reach)) -> Result<bool> {
    if !bpffs.join(pins::REACH).exists() {
        return Ok(false);
    }
    let map = bpffs::open_map(bpffs, pins::REACH)?;
    batch::for_each::<Addr, Reach>(&map, |network, reach| each((*network).into(), reach))
        .context("reading the reach map")?;
    Ok(true)
}

/// Calls `each` for every pair of the bypass cache that is in use.
///
/// # Errors
/// Returns an error if the map can't be opened or read.
pub(crate) fn for_each_pair(bpffs: &Path, each: impl FnMut(&Pair)) -> Result<()> {
    if !bpffs.join(pins::BYPASS_CACHE).exists() {
        return Ok(());
    }
    each_pair(&bpffs::open_map(bpffs, pins::BYPASS_CACHE)?, each)
}
