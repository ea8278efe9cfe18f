//! Clocks of the sweep: the datapath's ticks, and the CPU time that the sweep uses.

use crate::datapath::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::flow::TICK_SHIFT;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Returns the datapath's clock, in ticks.
pub fn now(maps: &Maps) -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    let ticks = (nanos >> TICK_SHIFT) & i128::from(u32::MAX);
    Ok(u32::try_from(ticks)?.wrapping_add(maps.settings()?.clock_offset))
}

/// Returns the CPU time of this thread so far.
pub fn cpu_time() -> Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the thread's CPU time")?;
    Ok(Duration::from(time))
}
