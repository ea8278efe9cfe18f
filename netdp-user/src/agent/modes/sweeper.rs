//! The sweeper's thread: a sweep of a million mappings takes seconds, in which the agent has other
//! things to do.

use super::super::SWEEP_INTERVAL;
use crate::datapath::{NumberedPolicy, SharedLog, SweepRules, SweepStats, Sweeper};
use crate::metrics::SweepRecorder;
use crate::policy::Keeper;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Minimum interval between checks of the tables.
const SHORTEST_CHECK: Duration = Duration::from_millis(20);

/// Upper bound of the rate of new mappings on any node, per second.
const MAX_RATE: u64 = 50_000;

/// Time limit of the end of a sweep that was stopped.
const FINISH: Duration = Duration::from_secs(3);

/// Cause of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Cause {
    /// The timer, or tables that may be nearly full.
    Due,
    /// An address is gone for good, or the policy has changed.
    Change,
}

/// Request to the thread.
struct Request {
    rules: SweepRules,
    cause: Cause,
    /// The policy in force; `None` if it could not be read.
    policy: Option<NumberedPolicy>,
    /// Recorder of the metrics, with the first request after it was set.
    recorder: Option<SweepRecorder>,
}

/// Result of a sweep.
struct Outcome {
    stats: Result<SweepStats>,
    /// Number of live mappings.
    live: usize,
    /// Count of created mappings from [`Sweeper::pressure_at`].
    pressure_at: Option<u64>,
    /// Pause before the next check, from [`Sweeper::cooldown`].
    cooldown: Duration,
}

/// Handle of the sweeper's thread.
pub(in crate::agent) struct SweeperThread {
    requests: Sender<Request>,
    outcomes: Receiver<Outcome>,
    ended: Arc<Notify>,
    /// Set when the rules of the current sweep are out of date.
    stop: Arc<AtomicBool>,
    /// Set when the node has gained addresses that those rules lack.
    local_addrs_stale: Arc<AtomicBool>,
    busy: bool,
    /// Set if the rules have changed since the current sweep began.
    again: bool,
    live: usize,
    /// Count of created mappings at which the tables may be nearly full.
    pressure_at: Option<u64>,
    /// Time of the next check of the tables.
    check_at: Instant,
    /// Recorder of the metrics, until the thread has it.
    recorder: Option<SweepRecorder>,
}

impl SweeperThread {
    /// Starts the thread, with the maps pinned below `bpffs` and the ledger of prefixes' counts in
    /// `state_dir`. `adopted`: the maps are those of an earlier agent. `log`: told of mappings.
    ///
    /// # Errors
    /// Returns an error if the maps cannot be opened, or the thread cannot be started.
    pub(super) fn start(
        bpffs: &Path,
        state_dir: &Path,
        adopted: bool,
        log: SharedLog,
    ) -> Result<Self> {
        let mut sweeper = Sweeper::open(bpffs)?;
        sweeper.tell(log);
        let mut keeper = Keeper::new(state_dir, sweeper.maps(), adopted)?;
        let (requests, received) = channel::<Request>();
        let (sent, outcomes) = channel();
        let ended = Arc::new(Notify::new());
        let notify = Arc::clone(&ended);
        std::thread::Builder::new()
            .name("netdp-sweep".into())
            .spawn(move || {
                let _abort = AbortOnPanic;
                let mut counting = None;
                while let Ok(request) = received.recv() {
                    let Request {
                        rules,
                        cause,
                        policy,
                        recorder,
                    } = request;
                    if let Some(recorder) = recorder {
                        match sweeper.count() {
                            Ok(()) => counting = Some(recorder),
                            Err(err) => log::warn!("counting for metrics: {err:#}"),
                        }
                    }
                    let kept = policy.map_or(Ok(()), |it| keeper.keep(sweeper.maps(), &it));
                    if let Err(err) = kept {
                        log::warn!("counts of prefixes: {err:#}");
                    }
                    let begun = std::time::Instant::now();
                    let outcome = run(&mut sweeper, &rules, cause);
                    if let (Some(recorder), Ok(stats)) = (&mut counting, &outcome.stats) {
                        recorder.record(&mut sweeper, stats, begun);
                    }
                    if sent.send(outcome).is_err() {
                        return;
                    }
                    notify.notify_one();
                }
            })
            .context("starting the sweeper thread")?;
        Ok(Self {
            requests,
            outcomes,
            ended,
            stop: Arc::default(),
            local_addrs_stale: Arc::default(),
            busy: false,
            again: false,
            live: 0,
            pressure_at: None,
            check_at: Instant::now() + SWEEP_INTERVAL,
            recorder: None,
        })
    }

    /// Has the thread count for metrics, from the next sweep on.
    pub(in crate::agent) fn record_for(&mut self, recorder: SweepRecorder) {
        self.recorder = Some(recorder);
    }

    /// Waits until the next check of the tables is due. Cancel-safe.
    pub(super) async fn check_due(&self) {
        tokio::time::sleep_until(self.check_at).await;
    }

    /// Waits until a sweep has ended, or may have. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Requests a sweep; after the current one, if there is one and `cause` is a change.
    ///
    /// # Errors
    /// Returns an error if the thread has ended.
    pub(in crate::agent) fn request(
        &mut self,
        rules: SweepRules,
        cause: Cause,
        policy: Option<NumberedPolicy>,
    ) -> Result<()> {
        if self.busy {
            self.again |= cause == Cause::Change;
            return Ok(());
        }
        self.stop = Arc::clone(&rules.stop);
        self.local_addrs_stale = Arc::clone(&rules.local_addrs_stale);
        let request = Request {
            rules,
            cause,
            policy,
            recorder: self.recorder.take(),
        };
        if self.requests.send(request).is_err() {
            bail!("the sweeper thread exited: mappings no longer expire; restart the agent");
        }
        self.busy = true;
        Ok(())
    }

    /// Stops the current sweep, if there is one, and waits for its end. Returns `false` if that takes too
    /// long.
    pub(super) fn finish(&mut self) -> bool {
        if self.busy {
            self.interrupt();
            self.busy = self.outcomes.recv_timeout(FINISH).is_err();
        }
        !self.busy
    }

    /// Stops the current sweep, if there is one: its rules are about to change.
    pub(in crate::agent) fn interrupt(&mut self) {
        if self.busy {
            self.stop.store(true, Ordering::Release);
            self.again = true;
        }
    }

    /// Keeps the current sweep, if there is one, from ending mappings because their address is
    /// gone: the node has gained another one.
    pub(in crate::agent) fn suspend_address_expiry(&self) {
        self.local_addrs_stale.store(true, Ordering::Release);
    }

    /// Takes the result of a sweep, if there is one, and whether the rules have changed since it
    /// began.
    pub(in crate::agent) fn take_result(&mut self) -> Option<(Result<SweepStats>, bool)> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.busy = false;
        self.live = outcome.live;
        self.pressure_at = outcome.pressure_at;
        self.check_at = Instant::now() + outcome.cooldown.max(SHORTEST_CHECK);
        Some((outcome.stats, std::mem::take(&mut self.again)))
    }

    /// Schedules the next check of the tables, `created` mappings having been created so far (`None`
    /// if that is unknown). Returns whether a sweep is due.
    pub(in crate::agent) fn schedule_check(&mut self, created: Option<u64>) -> bool {
        let remaining = self
            .pressure_at
            .zip(created)
            .and_then(|(at, created)| at.checked_sub(created));
        // If the tables may be nearly full, the end of the sweep sets the time.
        let after = remaining.map_or(SWEEP_INTERVAL, time_for);
        self.check_at = Instant::now() + after;
        remaining.is_none() && self.pressure_at.is_some()
    }

    /// Returns the number of live mappings, as of the last sweep.
    pub(in crate::agent) const fn live(&self) -> usize {
        self.live
    }
}

fn run(sweeper: &mut Sweeper, rules: &SweepRules, cause: Cause) -> Outcome {
    let stats = match cause {
        Cause::Due => sweeper.run_due(rules),
        Cause::Change => sweeper.run_after_change(rules),
    };
    Outcome {
        pressure_at: sweeper.pressure_at().filter(|_| stats.is_ok()),
        stats,
        live: sweeper.live(),
        cooldown: sweeper.cooldown(),
    }
}

/// Returns the time for which `remaining` more mappings suffice.
fn time_for(remaining: u64) -> Duration {
    let millis = remaining.saturating_mul(1000) / MAX_RATE;
    Duration::from_millis(millis).clamp(SHORTEST_CHECK, SWEEP_INTERVAL)
}

/// Aborts the agent if the thread panics, as a panic of the loop would: the supervisor then
/// restarts the agent, and mappings do not stay forever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SHORTEST_CHECK, SWEEP_INTERVAL, time_for};
    use std::time::Duration;

    #[test]
    fn the_tables_are_checked_the_sooner_the_fewer_places_are_free() {
        assert_eq!(time_for(0), SHORTEST_CHECK);
        assert_eq!(time_for(50_000), Duration::from_secs(1));
        assert_eq!(time_for(u64::MAX), SWEEP_INTERVAL);
    }
}
