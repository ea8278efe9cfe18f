//! Times in one byte, which say for a whole port whether a lookup of its flows can find anything.

use super::clock::ticks32;
use super::timeouts::INBOUND_SECONDS;

/// The right shift that converts ticks to the unit of stamps: 73 minutes.
const STAMP_SHIFT: u32 = 16;

/// The number of different stamps. They repeat after 13 days.
const STAMPS: u32 = u8::MAX as u32;

/// The age from which on a stamp says that no flow is left: the longest limit of a recorded flow,
/// in the unit of stamps, rounded up at both ends.
const STAMP_LIFE: u32 = (ticks32(INBOUND_SECONDS) >> STAMP_SHIFT) + 2;

const _: () = assert!(STAMP_LIFE + 1 < STAMPS);

/// Returns the stamp of a moment, for [`NodeFlowPorts`](crate::layout::NodeFlowPorts); never 0.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "at most 255")]
pub const fn stamp(now: u32) -> u8 {
    ((now >> STAMP_SHIFT) % STAMPS + 1) as u8
}

/// Reports whether a flow recorded at the time of `then` may still be alive. A stamp that lies ahead
/// by one, of another CPU whose clock is a moment ahead, is fresh.
#[inline(always)]
#[must_use]
pub const fn is_stamp_fresh(then: u8, now: u32) -> bool {
    // One more, for the stamp ahead.
    then != 0 && (stamp(now) as u32 + 1 + STAMPS - then as u32) % STAMPS <= STAMP_LIFE
}

#[cfg(test)]
mod tests {
    use super::{STAMP_SHIFT, is_stamp_fresh, stamp};
    use crate::flow::{INBOUND_SECONDS, ticks32};

    #[test]
    fn a_stamp_of_a_cpu_that_is_ahead_is_fresh() {
        for unit in [1, 254, 255, 256, 60_000] {
            let boundary = unit << STAMP_SHIFT;
            assert!(is_stamp_fresh(stamp(boundary), boundary - 1), "{unit}");
            assert!(is_stamp_fresh(stamp(boundary - 1), boundary), "{unit}");
        }
        assert!(!is_stamp_fresh(0, 0), "never stamped");
    }

    #[test]
    fn a_stamp_ends_after_the_longest_life() {
        let longest = ticks32(INBOUND_SECONDS);
        let then = stamp(12_345);
        assert!(is_stamp_fresh(then, 12_345 + longest));
        assert!(!is_stamp_fresh(then, 12_345 + longest + (3 << STAMP_SHIFT)));
    }
}
