//! Clocks of the sweep: the datapath's ticks, and the CPU time that the sweep uses.

use crate::datapath::maps::Maps;
use crate::time::ticks;
use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Returns the datapath's clock, in ticks.
pub fn now(maps: &Maps) -> Result<u32> {
    Ok(ticks()?.wrapping_add(maps.settings()?.clock_offset))
}

/// Returns the CPU time of this thread so far.
pub fn cpu_time() -> Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the thread's CPU time")?;
    Ok(Duration::from(time))
}
