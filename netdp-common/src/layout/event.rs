//! Events: what the programs report while somebody listens, and the counts that belong to it.
//!
//! [`super::Settings::events`] holds the kinds that somebody listens to, a bit each, and the rate up
//! to which each CPU reports each kind. A record begins with its kind and is written to the ring
//! buffer `events`; `event_counts` has what each CPU has seen, reported, and left out.

use super::{Addr, Tuple};

/// Bit of [`super::Settings::events`]: a mapping has begun ([`BeginEvent`]).
pub const EVENTS_BEGIN: u32 = 1;

/// Bit of [`super::Settings::events`]: a new flow was refused ([`DropEvent`]).
pub const EVENTS_REFUSED: u32 = 2;

/// Bit of [`super::Settings::events`]: a packet was dropped for another reason ([`DropEvent`]).
pub const EVENTS_DROP: u32 = 4;

/// Bit of [`super::Settings::events`]: a program has ended a mapping ([`super::Ended`], in the ring buffer
/// `ended`). The rate does not apply to these.
pub const EVENTS_END: u32 = 8;

/// The number of kinds that the programs report in the ring buffer `events`.
pub const EVENT_KINDS: u32 = 3;

/// [`BeginEvent::kind`], and its index in `event_counts`.
pub const EVENT_BEGIN: u32 = 0;

/// [`DropEvent::kind`] of a refusal, and its index in `event_counts`.
pub const EVENT_REFUSED: u32 = 1;

/// [`DropEvent::kind`] of any other drop, and its index in `event_counts`.
pub const EVENT_DROP: u32 = 2;

/// Position of the rate in [`super::Settings::events`].
const RATE_SHIFT: u32 = 8;

/// The rate where none is set, in events a second of each kind and CPU.
pub const EVENT_RATE: u32 = 1000;

/// The highest rate that can be set.
pub const EVENT_RATE_MAX: u32 = u32::MAX >> RATE_SHIFT;

/// Bytes of a dropped packet that are reported.
pub const CAPTURED: usize = 128;

/// [`DropEvent::direction`]: the packet was leaving.
pub const EVENT_OUT: u32 = 0;

/// [`DropEvent::direction`]: the packet was arriving.
pub const EVENT_IN: u32 = 1;

/// Returns the value of [`super::Settings::events`] for kinds (`EVENTS_*`) and a rate, in events a
/// second; 0 for [`EVENT_RATE`]. A rate above [`EVENT_RATE_MAX`] counts as that.
#[must_use]
pub const fn events_setting(kinds: u32, rate: u32) -> u32 {
    let rate = if rate > EVENT_RATE_MAX {
        EVENT_RATE_MAX
    } else {
        rate
    };
    kinds | rate << RATE_SHIFT
}

/// Returns the rate in a value of [`super::Settings::events`].
#[inline(always)]
#[must_use]
pub const fn event_rate(setting: u32) -> u32 {
    match setting >> RATE_SHIFT {
        0 => EVENT_RATE,
        rate => rate,
    }
}

/// A mapping has begun.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginEvent {
    /// [`EVENT_BEGIN`].
    pub kind: u32,
    /// The index of the uplink.
    pub ifindex: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The original tuple.
    pub tuple: Tuple,
    /// The source address on the wire.
    pub addr: Addr,
    /// The source's L4 id on the wire.
    pub id: u32,
    /// The index in `rule_hits` of the rule under which it began.
    pub rule: u32,
}

/// A packet was dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// [`EVENT_REFUSED`] or [`EVENT_DROP`].
    pub kind: u32,
    /// The index of the interface.
    pub ifindex: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The [`super::DropReason`], as a number.
    pub reason: u32,
    /// [`EVENT_OUT`] or [`EVENT_IN`].
    pub direction: u32,
    /// The length of the packet, in bytes.
    pub length: u32,
    /// Number of its bytes that are in `packet`.
    pub captured: u32,
    /// The length of its link header, in bytes: 14 or 0.
    pub l2_len: u32,
    /// Padding, always zero.
    pub pad: u32,
    /// The first bytes of the packet, from its link header on.
    pub packet: [u8; CAPTURED],
}

/// Millionths of a token, of which an event needs one whole.
const TOKEN: u64 = 1_000_000;

/// Millionths of a token that a tick of 2^26 ns gives at one event a second.
const PER_TICK: u64 = 67_109;

/// Ticks after which a bucket is full at any rate: the burst takes two seconds.
const FULL_AFTER: u32 = 30;

/// The events of a kind on one CPU since the map was made, and the bucket that limits them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCount {
    /// Events that happened while somebody listened to the kind.
    pub seen: u64,
    /// Those that were not reported because there were too many.
    pub limited: u64,
    /// Those that were not reported because the ring buffer was full.
    pub full: u64,
    /// The content of the bucket, in millionths of a token.
    pub tokens: u64,
    /// The tick at which the bucket was filled last.
    pub filled_at: u32,
    /// Padding, always zero.
    pub pad: u32,
}

impl EventCount {
    /// Counts an event at the tick `now`, and reports whether it may be reported at `rate` events a
    /// second. The bucket holds what two seconds give.
    #[inline(always)]
    pub fn admit(&mut self, now: u32, rate: u32) -> bool {
        self.seen += 1;
        let elapsed = now.wrapping_sub(self.filled_at);
        if elapsed != 0 {
            let most = rate as u64 * 2 * TOKEN;
            let more = elapsed as u64 * rate as u64 * PER_TICK;
            self.tokens = if elapsed >= FULL_AFTER || self.tokens + more > most {
                most
            } else {
                self.tokens + more
            };
            self.filled_at = now;
        }
        if self.tokens < TOKEN {
            self.limited += 1;
            return false;
        }
        self.tokens -= TOKEN;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{EVENT_RATE, EVENT_RATE_MAX, EventCount, event_rate, events_setting};

    #[test]
    fn a_setting_has_kinds_and_a_rate() {
        assert_eq!(events_setting(5, 0), 5);
        assert_eq!(event_rate(events_setting(5, 0)), EVENT_RATE);
        assert_eq!(event_rate(events_setting(7, 20)), 20);
        assert_eq!(events_setting(7, 20) & 0xff, 7);
        assert_eq!(event_rate(events_setting(1, u32::MAX)), EVENT_RATE_MAX);
    }

    /// Returns how many of `n` events at each of these ticks may be reported.
    fn admitted(count: &mut EventCount, ticks: impl IntoIterator<Item = u32>, n: u32) -> u64 {
        let before = count.seen - count.limited;
        for tick in ticks {
            for _ in 0..n {
                count.admit(tick, EVENT_RATE);
            }
        }
        count.seen - count.limited - before
    }

    #[test]
    fn a_burst_of_two_seconds_is_reported_and_then_the_rate() {
        let mut count = EventCount::default();
        assert_eq!(admitted(&mut count, [100], 5000), 2000);
        assert_eq!(count.limited, 3000);
        // 149 ticks are 9.9993 s.
        let later = admitted(&mut count, 101..250, 1000);
        assert!((9_990..=10_000).contains(&later), "{later}");
        assert_eq!(count.seen, 5000 + 149_000);
        // After a pause the bucket is full, and holds no more than a burst.
        assert_eq!(admitted(&mut count, [10_000], 5000), 2000);
    }

    #[test]
    fn a_low_rate_is_kept_although_a_tick_gives_less_than_one_event() {
        let mut count = EventCount::default();
        let reported = (100..249).filter(|tick| count.admit(*tick, 1)).count();
        // The burst of two, then one a second.
        assert_eq!(reported, 11);
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut count = EventCount::default();
        assert_eq!(admitted(&mut count, [u32::MAX], 5000), 2000);
        let later = admitted(&mut count, [0], 5000);
        assert!((66..=68).contains(&later), "{later}");
    }
}
