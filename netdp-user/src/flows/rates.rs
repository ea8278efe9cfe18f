//! Bytes a second of mappings, from one look to the next (`--sort rate`).

use crate::datapath::Flow;
use netdp_common::flow::TICK_SHIFT;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// The bytes of mappings at the last look, and at this one.
///
/// A mapping is known by a hash of its tuple: of a million, two have the same one in one of 10^7 looks.
#[derive(Debug, Default)]
pub(super) struct Rates {
    key: RandomState,
    /// The begin of the last look.
    last: Option<Instant>,
    before: HashMap<u64, u64>,
    now: RefCell<HashMap<u64, u64>>,
    /// Time from the last look to this one; zero at the first one.
    span: Duration,
}

impl Rates {
    /// Begins a look. Mappings that were not [`seen`](Self::see) at the last one are forgotten.
    pub(super) fn begin(&mut self, at: Instant) {
        self.span = self
            .last
            .map_or(Duration::ZERO, |last| at.duration_since(last));
        self.last = Some(at);
        self.before = self.now.take();
    }

    /// Reports whether this is the first look, at which no rate is known.
    pub(super) const fn is_first(&self) -> bool {
        self.span.is_zero()
    }

    /// Notes a mapping for the next look.
    pub(super) fn see(&self, flow: &Flow) {
        let key = self.key.hash_one(flow.tuple);
        self.now.borrow_mut().insert(key, flow.bytes());
    }

    /// Returns the bytes a second of a mapping since the last look, of both directions; of one that began since then,
    /// those since its begin, over the same time. `None` if it is not known what it had then.
    pub(super) fn of(&self, flow: &Flow) -> Option<u64> {
        if self.is_first() {
            return None;
        }
        let before = self.before.get(&self.key.hash_one(flow.tuple));
        let age = Duration::from_nanos(u64::from(flow.age) << TICK_SHIFT);
        let bytes = match before {
            // An earlier mapping may have had the tuple.
            Some(before) if *before <= flow.bytes() => flow.bytes() - before,
            _ if age <= self.span => flow.bytes(),
            _ => return None,
        };
        let milliseconds = self.span.as_millis().max(1);
        u64::try_from(u128::from(bytes) * 1000 / milliseconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Rates;
    use crate::datapath::Flow;
    use crate::flows::tests::flow;
    use std::time::{Duration, Instant};

    #[test]
    fn a_rate_is_that_since_the_last_look() {
        let old = |id, bytes| flow(2, id, bytes);
        let new = |id, bytes| Flow {
            age: 10,
            ..flow(2, id, bytes)
        };
        let mut rates = Rates::default();
        let begin = Instant::now();
        rates.begin(begin);
        for flow in [old(1, 1_000), old(2, 5_000), old(3, 9_000)] {
            rates.see(&flow);
            assert_eq!(rates.of(&flow), None, "there is no earlier look");
        }
        rates.begin(begin + Duration::from_secs(4));
        assert_eq!(rates.of(&old(1, 9_000)), Some(2_000));
        assert_eq!(rates.of(&old(2, 5_000)), Some(0));
        // Another mapping has the tuple now.
        assert_eq!(rates.of(&new(3, 400)), Some(100));
        assert_eq!(rates.of(&new(4, 400)), Some(100));
        // It was there and did not pass the filters.
        assert_eq!(rates.of(&old(5, 400)), None);
        rates.see(&old(1, 9_000));
        rates.begin(begin + Duration::from_secs(5));
        assert_eq!(rates.of(&old(1, 9_500)), Some(500));
        assert_eq!(rates.of(&old(2, 6_000)), None, "not seen at the last look");
    }
}
