//! netdp's clock and tables, accessed through the pinned maps.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::flow::ticks;
use netdp_common::layout::{Addr, Mapping, Settings, Tuple, pins};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use testbed::wait_for;

fn pinned(bpffs: &Path, name: &str) -> Result<MapData> {
    let path = bpffs.join(name);
    MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
}

/// Advances the clock of the datapath and the sweep.
pub fn advance(bpffs: &Path, by: Duration) -> Result<()> {
    let mut map: Array<_, Settings> = Map::Array(pinned(bpffs, pins::SETTINGS)?).try_into()?;
    let mut settings = map.get(&0, 0)?;
    let by = u32::try_from(ticks(by.as_secs()))?;
    settings.clock_offset = settings.clock_offset.wrapping_add(by);
    map.set(0, settings, 0)?;
    Ok(())
}

/// Waits until the sweep, which runs every few seconds, has left this many mappings.
pub fn wait_for_mappings(bpffs: &Path, count: usize) -> Result<()> {
    let map: HashMap<_, Tuple, Mapping> = Map::HashMap(pinned(bpffs, pins::SNAT)?).try_into()?;
    let what = format!("{count} mappings");
    wait_for(Duration::from_secs(60), &what, || {
        map.keys().count() == count
    })
}

/// Waits until the address is, or is no longer, among those that the datapath considers the node's.
pub fn wait_for_address(bpffs: &Path, addr: IpAddr, there: bool, patience: Duration) -> Result<()> {
    let map: HashMap<_, Addr, u32> = Map::HashMap(pinned(bpffs, pins::LOCAL_ADDRS)?).try_into()?;
    let what = format!("the agent to take note of {addr}");
    wait_for(patience, &what, || {
        map.get(&Addr::from(addr), 0).is_ok() == there
    })
}
