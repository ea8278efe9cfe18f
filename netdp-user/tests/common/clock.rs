//! The datapath's clock, which a test can advance.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use netdp_common::flow::ticks;
use netdp_common::layout::{Settings, pins};
use std::time::Duration;
use testbed::Agent;

/// Advances the clock for packets and sweeps.
pub fn advance(agent: &Agent, by: Duration) -> Result<()> {
    let path = agent.bpffs().join(pins::SETTINGS);
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let mut map: Array<_, Settings> = Map::Array(map).try_into()?;
    let mut settings = map.get(&0, 0)?;
    let by = u32::try_from(ticks(by.as_secs()))?;
    settings.clock_offset = settings.clock_offset.wrapping_add(by);
    map.set(0, settings, 0)?;
    Ok(())
}
