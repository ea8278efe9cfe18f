//! Progress of a takeover, and its background task.

mod job;

use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

pub(in crate::agent) use job::{Done, Job};

/// Initial and longest pause after a failed takeover. Each failure doubles it.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Progress of a takeover, and its background task.
#[derive(Debug)]
pub(in crate::agent) struct Takeover {
    running: Option<JoinHandle<Done>>,
    /// Set if there was something to take over.
    pub(in crate::agent) any: bool,
    /// All of it is taken over.
    pub(in crate::agent) complete: bool,
    /// Time to try again what has failed, and the rest after the next failure.
    again: Option<Instant>,
    rest: Duration,
    /// Set if the obstacles have changed since the current attempt began.
    changed: bool,
    /// Rules that could not be taken over yet, and why.
    pub(in crate::agent) failed: Vec<String>,
    /// Chains that were taken over and then created again.
    pub(in crate::agent) recreated: Vec<String>,
}

impl Takeover {
    pub(in crate::agent) const fn new() -> Self {
        Self {
            failed: Vec::new(),
            recreated: Vec::new(),
            running: None,
            any: false,
            complete: false,
            again: None,
            rest: FIRST_REST,
            changed: false,
        }
    }

    /// Waits for the background task; forever if there is none. Cancel-safe.
    pub(in crate::agent) async fn done(&mut self) -> Done {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let done = running.await;
        self.running = None;
        done.unwrap_or_else(|err| Done::Failed(err.to_string()))
    }

    /// Reports whether an attempt or a retry is due.
    pub(in crate::agent) fn is_due(&self) -> bool {
        let rested = self.again.is_none_or(|at| Instant::now() >= at);
        !self.complete && !self.is_running() && rested
    }

    /// Schedules a retry for the next opportunity: the obstacles have changed.
    pub(in crate::agent) const fn retry_soon(&mut self) {
        self.again = None;
        self.rest = FIRST_REST;
        self.changed = self.is_running();
    }

    /// Starts a background task.
    pub(in crate::agent) fn begin(&mut self, job: impl FnOnce() -> Done + Send + 'static) {
        self.again = None;
        self.running = Some(spawn_blocking(job));
    }

    /// Records what could not be taken over, and schedules the retry. Returns whether the failures
    /// differ from those before.
    pub(in crate::agent) fn record_attempt(&mut self, failed: Vec<String>, now: Instant) -> bool {
        self.complete = failed.is_empty();
        if self.complete {
            self.rest = FIRST_REST;
        } else {
            let changed = std::mem::take(&mut self.changed);
            self.again = (!changed).then(|| now + self.rest);
            self.rest = (self.rest * 2).min(LONGEST_REST);
        }
        let is_news = failed != self.failed;
        self.failed = failed;
        is_news
    }

    pub(in crate::agent) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Reports whether a takeover is under way: a scan then sees rules that are about to be
    /// removed.
    pub(in crate::agent) const fn is_trying(&self) -> bool {
        self.is_running() && !self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST_REST, LONGEST_REST, Takeover};
    use tokio::time::Instant;

    fn failed() -> Vec<String> {
        vec!["chain X: locked".into()]
    }

    #[test]
    fn each_failure_rests_for_twice_as_long_up_to_a_limit() {
        let mut takeover = Takeover::new();
        assert!(takeover.is_due());
        let now = Instant::now();
        assert!(takeover.record_attempt(failed(), now));
        assert_eq!(takeover.again, Some(now + FIRST_REST));
        assert!(!takeover.is_due());
        assert!(
            !takeover.record_attempt(failed(), now),
            "it is the same failure"
        );
        assert_eq!(takeover.again, Some(now + FIRST_REST * 2));
        for _ in 0..10 {
            takeover.record_attempt(failed(), now);
        }
        assert_eq!(takeover.again, Some(now + LONGEST_REST));
        takeover.retry_soon();
        assert!(takeover.is_due());
        takeover.record_attempt(failed(), now);
        assert_eq!(takeover.again, Some(now + FIRST_REST));
    }

    #[test]
    fn what_is_complete_is_not_due() {
        let mut takeover = Takeover::new();
        takeover.record_attempt(failed(), Instant::now());
        assert!(takeover.record_attempt(Vec::new(), Instant::now()));
        assert!(takeover.complete && !takeover.is_due());
        assert!(takeover.failed.is_empty());
    }

    #[test]
    fn what_has_changed_meanwhile_is_tried_again_at_once() {
        let mut takeover = Takeover::new();
        takeover.changed = true;
        takeover.record_attempt(failed(), Instant::now());
        assert!(takeover.is_due());
        assert!(!takeover.changed);
    }
}
