//! The bounded queue between those who tell the log and the thread that writes it.

use super::counters::{Cause, Counters};
use crate::datapath::{EndedMapping, Identity};
use crate::time::now_milliseconds as now;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most events that wait or are being written: 17 MiB.
const CAPACITY: usize = 131_072;

/// A mapping with the number that its records have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbered<T> {
    /// The number.
    pub number: u64,
    /// The mapping.
    pub of: T,
}

/// Something to be written.
#[derive(Debug)]
pub(super) enum Event {
    Begin(Numbered<Identity>),
    /// It lives at a time, in ticks.
    Alive(Numbered<Identity>, u32),
    End(Numbered<EndedMapping>),
    /// A policy with this hash is in force since a time, in milliseconds since 1970.
    Policy(String, u64),
}

/// A time in which records are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// The number of records, if it is known.
    pub n: Option<u64>,
    /// Begin, in milliseconds since 1970.
    pub from: u64,
    /// End, in milliseconds since 1970.
    pub until: u64,
    /// The reason.
    pub why: &'static str,
}

/// The events that are written next.
pub(super) struct Batch {
    /// In their order.
    pub events: Vec<Event>,
    /// Gaps before them.
    pub gaps: Vec<Gap>,
    /// Time, in ticks, before which every mapping that began is in these events, or in earlier ones.
    pub since: Option<u32>,
    /// Time, in milliseconds since 1970, before which all that ended is in these events, or in
    /// earlier ones.
    pub complete: u64,
    /// True if nothing follows.
    pub is_last: bool,
}

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    /// Events that have been taken, and are not written yet.
    writing: usize,
    gaps: Vec<Gap>,
    since: Option<u32>,
    /// Threads that are removing mappings, and the time since which one of them does.
    removing: (u32, u64),
    is_closing: bool,
    /// The reason why nothing can be written at the moment.
    blocked: Option<Cause>,
}

impl Inner {
    fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.events.len() + self.writing)
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    pub counters: Arc<Counters>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that panicked with the lock ended the agent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events, all of them or none. Reports whether there was room.
    pub fn push(&self, events: impl ExactSizeIterator<Item = Event>) -> bool {
        let mut inner = self.lock();
        let fits = events.len() <= inner.room();
        if fits {
            inner.events.extend(events);
            // Few are written with the next look.
            if inner.events.len() > CAPACITY / 16 {
                self.wake.notify_one();
            }
        }
        fits
    }

    /// Records the loss of an end, of a mapping that is missing from a time on.
    pub fn lose(&self, from: u64, until: u64) {
        let mut inner = self.lock();
        let cause = inner.blocked.unwrap_or(Cause::Queue);
        self.counters.lose(cause, 1);
        let why = cause.name();
        match inner.gaps.last_mut() {
            Some(gap) if gap.why == why => {
                gap.n = gap.n.map(|n| n + 1);
                gap.from = gap.from.min(from);
                gap.until = gap.until.max(until);
            }
            _ => inner.gaps.push(Gap {
                n: Some(1),
                from,
                until,
                why,
            }),
        }
    }

    /// Records another loss.
    pub fn add_gap(&self, gap: Gap) {
        self.lock().gaps.push(gap);
    }

    /// Records that every mapping that began before a time, in ticks, has been added.
    pub fn passed(&self, since: u32) {
        self.lock().since = Some(since);
    }

    /// Records that mappings are about to be removed; to be followed by [`Self::removed`].
    pub fn removing(&self) {
        let mut inner = self.lock();
        if inner.removing.0 == 0 {
            inner.removing.1 = now();
        }
        inner.removing.0 += 1;
    }

    /// Records that they have been, and that their ends have been added.
    pub fn removed(&self) {
        let mut inner = self.lock();
        inner.removing.0 = inner.removing.0.saturating_sub(1);
    }

    /// Waits until there is something to write, or some time has passed, and takes what there is.
    pub fn take(&self, most: Duration) -> Batch {
        let mut inner = self.lock();
        if !inner.is_closing {
            let waited = self.wake.wait_timeout(inner, most);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let events = std::mem::take(&mut inner.events);
        inner.writing = events.len();
        let complete = match inner.removing {
            (0, _) => now(),
            (_, since) => since,
        };
        Batch {
            events,
            gaps: std::mem::take(&mut inner.gaps),
            since: inner.since.take(),
            complete,
            is_last: inner.is_closing,
        }
    }

    /// Records that so many of the taken events have been written.
    pub fn written(&self, events: usize) {
        let mut inner = self.lock();
        inner.writing = inner.writing.saturating_sub(events);
    }

    /// Sets the reason why nothing can be written.
    pub fn set_blocked(&self, cause: Option<Cause>) {
        self.lock().blocked = cause;
    }

    /// Waits, at most so long, for the end.
    pub fn wait_for_end(&self, most: Duration) -> bool {
        let inner = self.lock();
        if inner.is_closing {
            return true;
        }
        let waited = self.wake.wait_timeout(inner, most);
        let inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        inner.is_closing
    }

    /// Ends the writing thread once it has written all.
    pub fn close(&self) {
        self.lock().is_closing = true;
        self.wake.notify_one();
    }

    /// Sets the age of the oldest event that waits, for the metrics.
    pub fn set_lag(&self, lag: Duration) {
        let milliseconds = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.counters.lag_ms.store(milliseconds, Ordering::Relaxed);
    }
}
