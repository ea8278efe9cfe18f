//! Time in ticks of 2^26 ns (67.1 ms) of `CLOCK_MONOTONIC`, as `u32`: it wraps after 9 years, all
//! comparisons are wrapping, and it takes four bytes of a map value.

/// The right shift that converts nanoseconds to ticks.
pub const TICK_SHIFT: u32 = 26;

/// Converts seconds to ticks, rounded up.
#[must_use]
pub const fn ticks(seconds: u64) -> u64 {
    (seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT)
}

/// Converts seconds to ticks, as [`ticks`], for times of days at most.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "9 years fit")]
pub const fn ticks32(seconds: u64) -> u32 {
    ticks(seconds) as u32
}

/// Returns the ticks that are left until `timeout` seconds have passed since the later of the two
/// moments; 0 if they have passed.
#[must_use]
pub const fn left(now: u32, original_seen: u32, reply_seen: u32, timeout: u64) -> u64 {
    ticks(timeout).saturating_sub(idle(now, original_seen, reply_seen) as u64)
}

/// Returns the ticks since the later of the two moments. A moment after `now` (another CPU was a
/// tick ahead) counts as now.
#[must_use]
pub const fn idle(now: u32, original_seen: u32, reply_seen: u32) -> u32 {
    let (original, reply) = (age(now, original_seen), age(now, reply_seen));
    if reply < original { reply } else { original }
}

/// Returns the ticks from `then` to `now`; 0 if `then` lies ahead.
#[must_use]
pub const fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::{age, left, ticks};

    #[test]
    fn expiry_is_exact_and_survives_the_wrap() {
        let expired = |now, original, reply, timeout| left(now, original, reply, timeout) == 0;
        let limit = u32::try_from(ticks(60)).unwrap();
        for base in [0, 1_000, u32::MAX - 10, u32::MAX] {
            let at = base.wrapping_add(limit);
            assert!(expired(at, base, base, 60));
            assert!(!expired(at.wrapping_sub(1), base, base, 60));
            assert!(!expired(at, base, at, 60), "the later direction counts");
            assert!(!expired(at, at, base, 60), "the later direction counts");
            assert!(!expired(
                base,
                base.wrapping_add(1),
                base.wrapping_add(1),
                60
            ));
        }
        assert_eq!(left(limit - 7, 0, 0, 60), 7);
        assert_eq!(age(5, 7), 0);
    }
}
