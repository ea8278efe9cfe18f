//! The last hour of the counters, in memory: a sample each ten seconds.

use crate::datapath::Maps;
use anyhow::Result;
use netdp_common::layout::{Counters, DropReason, Drops, Traffic};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// Samples that are kept: an hour, of some 200 bytes each.
const KEPT: usize = 360;

/// Counters at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    at: Instant,
    masqueraded: Traffic,
    bypassed: Traffic,
    created: u64,
    drops: Drops,
    mappings: u64,
}

impl Sample {
    /// Reads the counters.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(super) fn take(maps: &Maps) -> Result<Self> {
        let counters = maps.counters()?;
        Ok(Self::new(
            Instant::now(),
            &counters,
            maps.mappings_by_shares()?,
        ))
    }

    const fn new(at: Instant, counters: &Counters, mappings: u64) -> Self {
        Self {
            at,
            masqueraded: counters.egress_masqueraded,
            bypassed: counters.egress_bypassed,
            created: counters.mappings_created,
            drops: counters.drops,
            mappings,
        }
    }

    fn dropped(&self) -> u64 {
        let all = DropReason::ALL.iter();
        all.map(|reason| self.drops.get(*reason)).sum()
    }
}

/// The quantity that a line of the past shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Series {
    Masqueraded,
    MasqueradedBytes,
    Bypassed,
    BypassedBytes,
    New,
    Dropped,
    Mappings,
}

impl Series {
    /// Returns the value between two samples: a rate per second, or the state at the later one.
    fn value(self, before: &Sample, now: &Sample) -> f64 {
        let count = |of: fn(&Sample) -> u64| {
            let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
            float(of(now).saturating_sub(of(before))) / seconds
        };
        match self {
            Self::Masqueraded => count(|it| it.masqueraded.packets),
            Self::MasqueradedBytes => count(|it| it.masqueraded.bytes),
            Self::Bypassed => count(|it| it.bypassed.packets),
            Self::BypassedBytes => count(|it| it.bypassed.bytes),
            Self::New => count(|it| it.created),
            Self::Dropped => count(Sample::dropped),
            Self::Mappings => float(now.mappings),
        }
    }
}

/// The samples, the oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Past(VecDeque<Sample>);

impl Past {
    /// Adds a sample, and forgets the oldest at the limit.
    pub(super) fn add(&mut self, sample: Sample) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Returns how far it reaches.
    pub(super) fn span(&self) -> Duration {
        let ends = self.0.front().zip(self.0.back());
        ends.map_or(Duration::ZERO, |(first, last)| {
            last.at.duration_since(first.at)
        })
    }

    /// Returns the values of a series, the oldest first.
    pub(super) fn values(&self, series: Series) -> Vec<f64> {
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        pairs
            .map(|(before, now)| series.value(before, now))
            .collect()
    }

    /// Returns the reasons for which packets were dropped, with how many, most first.
    pub(super) fn drops(&self) -> Vec<(DropReason, u64)> {
        let Some((first, last)) = self.0.front().zip(self.0.back()) else {
            return Vec::new();
        };
        let mut drops: Vec<_> = (DropReason::ALL.iter())
            .map(|&reason| {
                let count = last.drops.get(reason);
                (reason, count.saturating_sub(first.drops.get(reason)))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        drops.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        drops
    }
}

/// Returns a number for calculations, exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) const fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Counters, DropReason, INTERVAL, KEPT, Past, Sample, Series, Traffic};
    use std::time::Instant;

    /// Returns a past of `samples` with 100 packets of 100 bytes a second, and a drop a second.
    pub(in crate::page) fn past(samples: u32) -> Past {
        let begin = Instant::now();
        let mut past = Past::default();
        for n in 0..samples {
            let seconds = u64::from(n) * INTERVAL.as_secs();
            let mut counters = Counters {
                egress_masqueraded: Traffic {
                    packets: 100 * seconds,
                    bytes: 10_000 * seconds,
                },
                mappings_created: seconds / 2,
                ..Counters::default()
            };
            *counters.drops.get_mut(DropReason::TcpNoFlow) = seconds;
            let at = begin + INTERVAL * n;
            past.add(Sample::new(at, &counters, 40 + u64::from(n)));
        }
        past
    }

    #[test]
    fn rates_are_differences_by_time() {
        let past = past(4);
        assert_eq!(past.values(Series::Masqueraded), [100.0; 3]);
        assert_eq!(past.values(Series::MasqueradedBytes), [10_000.0; 3]);
        assert_eq!(past.values(Series::New), [0.5; 3]);
        assert_eq!(past.values(Series::Mappings), [41.0, 42.0, 43.0]);
        assert_eq!(past.drops(), [(DropReason::TcpNoFlow, 30)]);
        assert_eq!(past.span(), INTERVAL * 3);
    }

    #[test]
    fn an_hour_is_kept_in_a_hundred_kilobytes() {
        let past = past(1_000);
        assert_eq!(past.span().as_secs(), 3_590);
        assert!(KEPT * size_of::<Sample>() < 100_000);
        let (one, none) = (super::tests::past(1), Past::default());
        for past in [one, none] {
            assert!(past.values(Series::Dropped).is_empty() && past.drops().is_empty());
        }
    }
}
