//! The limit of messages: whatever repeats quickly, because a peer, a packet or an edit makes it, is
//! logged at most [`BURST`] times at once and then once a second, and what is left out is counted.

use crate::codes::Code;
use log::{Level, Record};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Messages of one kind that are logged at once: more than the warnings of a configuration.
const BURST: u32 = 100;

/// Time after which one more is.
const REFILL: Duration = Duration::from_secs(1);

/// Minimum time between two messages about those left out.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Limit of kinds that are remembered, more than the code has places that log.
const KINDS: usize = 4096;

/// Allowance of one kind of message.
#[derive(Debug)]
struct Bucket {
    left: u32,
    /// Time up to which it has been refilled.
    at: Instant,
}

/// Buckets of all kinds. A kind is the place in the code that logs.
#[derive(Debug)]
pub(super) struct Limit {
    kinds: HashMap<u64, Bucket>,
    hasher: RandomState,
    /// Messages left out since the last message about that.
    left_out: u64,
    told_at: Instant,
}

impl Limit {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            kinds: HashMap::new(),
            hasher: RandomState::new(),
            left_out: 0,
            told_at: now,
        }
    }

    /// Decides whether a message is logged; if so, returns the number of messages left out, which is
    /// to be logged before it where it is not 0. Debugging messages are never left out.
    pub(super) fn admit(&mut self, record: &Record<'_>, now: Instant) -> Option<u64> {
        if record.level() > Level::Info {
            return Some(0);
        }
        let place = (record.target(), record.file(), record.line());
        let kind = self.hasher.hash_one(place);
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            self.kinds.clear();
        }
        let bucket = self.kinds.entry(kind).or_insert(Bucket {
            left: BURST,
            at: now,
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs();
        let refilled = u32::try_from(passed / REFILL.as_secs()).unwrap_or(BURST);
        bucket.left = bucket.left.saturating_add(refilled).min(BURST);
        bucket.at += REFILL * refilled;
        if bucket.left == 0 {
            self.left_out += 1;
            return None;
        }
        bucket.left -= 1;
        if self.left_out == 0 || now.saturating_duration_since(self.told_at) < TOLD_EVERY {
            return Some(0);
        }
        self.told_at = now;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Returns the message about messages that were left out.
pub(super) fn told(left_out: u64) -> String {
    let code = Code::EventsLost;
    format!(
        "{left_out} messages were left out: of one kind, {BURST} are logged at once, then one a second \
         {code}"
    )
}

#[cfg(test)]
mod tests {
    use super::{BURST, Limit};
    use log::{Level, Record};
    use std::time::{Duration, Instant};

    fn admit(limit: &mut Limit, level: Level, line: u32, now: Instant) -> Option<u64> {
        let mut record = Record::builder();
        record.level(level).target("x").line(Some(line));
        limit.admit(&record.build(), now)
    }

    #[test]
    fn what_repeats_quickly_is_counted_instead_of_logged() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let mut logged = 0;
        let mut left_out = 0;
        // A thousand a second for ten seconds.
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            if let Some(before) = admit(&mut limit, Level::Warn, 1, now) {
                logged += 1;
                left_out += before;
            }
        }
        assert_eq!(logged, u64::from(BURST) + 9);
        assert_eq!(logged + left_out + limit.left_out, 10_000);
        // Another kind, which comes later, reports the rest.
        let later = start + Duration::from_secs(12);
        let rest = limit.left_out;
        assert_eq!(admit(&mut limit, Level::Info, 2, later), Some(rest));
        assert_eq!(admit(&mut limit, Level::Info, 2, later), Some(0));
    }

    #[test]
    fn debugging_messages_and_other_kinds_are_not_affected() {
        let now = Instant::now();
        let mut limit = Limit::new(now);
        for _ in 0..BURST {
            assert!(admit(&mut limit, Level::Error, 1, now).is_some());
        }
        assert_eq!(admit(&mut limit, Level::Error, 1, now), None);
        assert!(admit(&mut limit, Level::Error, 2, now).is_some());
        for _ in 0..2 * BURST {
            assert!(admit(&mut limit, Level::Debug, 1, now).is_some());
        }
    }

    #[test]
    fn an_hour_of_silence_refills_no_more_than_a_burst() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert!(admit(&mut limit, Level::Warn, 1, start).is_some());
        let later = start + Duration::from_secs(3600);
        let admitted = (0..1000).filter(|_| admit(&mut limit, Level::Warn, 1, later).is_some());
        assert_eq!(admitted.count(), BURST as usize);
    }
}
