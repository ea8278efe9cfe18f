//! Time in the forms for people and files.

use anyhow::{Context as _, Result};
use netdp_common::flow::TICK_SHIFT;
use nix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// Formats seconds in the two most significant units.
pub(crate) fn pretty(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Returns the programs' clock without its offset, in ticks: at most a jiffy late, as theirs is.
///
/// # Errors
/// Returns an error if the clock can't be read.
pub(crate) fn ticks() -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    let time = time.context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    Ok(u32::try_from((nanos >> TICK_SHIFT) & i128::from(u32::MAX))?)
}

/// Returns the current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    now_milliseconds() / 1000
}

/// Returns the current time in milliseconds since 1970.
pub(crate) fn now_milliseconds() -> u64 {
    milliseconds(SystemTime::now())
}

/// Converts a time to milliseconds since 1970; 0 if it is before.
pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
