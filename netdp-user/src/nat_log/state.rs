//! The state of the log for the next agent: one small file, whatever the number of mappings.

use crate::state_dir::StateDir;
use anyhow::Result;
use netdp_common::flow::TICK_SHIFT;
use serde::{Deserialize, Serialize};

/// The state's name in the state directory.
pub(crate) const FILE: &str = "nat-log.json";

/// Milliseconds by which clocks may differ before times are computed anew.
const STEP: u64 = 500;

/// A moment by both clocks, by which ticks are converted to times: the same as long as neither clock is
/// set, so that a record that is written again has the same times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// The moment, in ticks.
    ticks: u32,
    /// The moment, in milliseconds since 1970.
    time: u64,
}

impl Clock {
    /// Returns the conversion for a moment.
    pub(crate) const fn at(ticks: u32, time: u64) -> Self {
        Self { ticks, time }
    }

    /// Converts ticks to milliseconds since 1970.
    pub(crate) fn time(&self, ticks: u32) -> u64 {
        let since = i64::from(ticks.wrapping_sub(self.ticks).cast_signed());
        let milliseconds = (since << TICK_SHIFT).div_euclid(1_000_000);
        self.time.saturating_add_signed(milliseconds)
    }

    /// Returns this conversion where it still holds at a moment, else that of the moment.
    pub(crate) fn or_at(self, ticks: u32, time: u64) -> Self {
        if self.time(ticks).abs_diff(time) <= STEP {
            self
        } else {
            Self::at(ticks, time)
        }
    }
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Version of this format.
    pub schema: u32,
    /// The destination of the log, as `--nat-log` names it.
    pub target: String,
    /// The kernel's `boot_id`.
    pub boot: String,
    /// The kernel's id of the mappings' map.
    pub maps: u32,
    /// Conversion of ticks to times.
    pub clock: Clock,
    /// Time before which every mapping that began is in the log, in ticks.
    pub since: Option<u32>,
    /// Time before which every end is in the log, in milliseconds since 1970.
    pub complete: u64,
    /// Number of the next record.
    pub next: u64,
    /// Reports of programs that were lost by then.
    pub lost: u64,
    /// True if the agent that wrote it has written all that it knew.
    pub is_clean: bool,
    /// True if an agent without a log has run since.
    #[serde(default)]
    pub was_off: bool,
    /// Time before which the collector has read all that there was to tell, in milliseconds since 1970, if it
    /// has not read all that was sent.
    #[serde(default)]
    pub unread_since: Option<u64>,
}

impl Saved {
    /// Version of the format.
    pub(crate) const SCHEMA: u32 = 1;

    /// Reads what an agent has saved last; `None` if there is nothing that can be understood.
    pub(crate) fn read(state_dir: &StateDir) -> Option<Self> {
        let saved = state_dir.read_json::<Self>(FILE).ok();
        saved.filter(|saved| saved.schema == Self::SCHEMA)
    }

    /// Saves it for the next agent.
    ///
    /// # Errors
    /// Returns an error if the file can't be written.
    pub(crate) fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_compact_json(FILE, self)
    }

    /// Returns the time from which on records may be missing if no more were written, in milliseconds
    /// since 1970.
    pub(crate) fn known_until(&self) -> u64 {
        let written = self.written_until();
        self.unread_since
            .map_or(written, |unread| unread.min(written))
    }

    /// Returns the time up to which all is written, in milliseconds since 1970: begins only as far as the
    /// last pass.
    pub(crate) fn written_until(&self) -> u64 {
        let begins = self.since.map_or(0, |since| self.clock.time(since));
        // Before the first pass nothing was known.
        if begins == 0 {
            return self.complete;
        }
        begins.min(self.complete)
    }
}

/// Records that an agent without a log runs.
pub(crate) fn note_off(state_dir: &StateDir) {
    if let Some(mut saved) = Saved::read(state_dir)
        && !saved.was_off
    {
        saved.was_off = true;
        if let Err(err) = saved.save(state_dir) {
            log::warn!("{err:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn times_are_the_same_until_a_clock_is_set() {
        let clock = Clock::at(u32::MAX - 1, 1_000_000);
        // 15 ticks are 1,006 ms.
        let later = clock.time(13);
        assert_eq!(later, 1_001_006);
        assert_eq!(clock.time(u32::MAX - 16), 998_993);
        assert_eq!(clock.or_at(13, later + 400), clock);
        assert_eq!(clock.or_at(13, later + 4_000).time(13), later + 4_000);
    }
}
