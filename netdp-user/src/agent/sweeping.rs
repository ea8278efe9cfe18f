//! The sweeper runs on its own thread: a sweep of a million mappings takes seconds, in which the
//! agent has other things to do.
//!
//! Between sweeps the agent checks whether so many mappings have been created that the tables may
//! be nearly full; the less room there was, the sooner.

use super::modes::Ebpf;
use super::{Agent, DRAIN_IDLE, SWEEP_INTERVAL};
use crate::datapath::{OnReload, SweepRules, Sweeper, Swept};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Number of live mappings above which the count of the last sweep is accurate enough.
const COUNTED_ANEW: usize = 50_000;

/// Upper bound of the rate of new mappings on any node, per second.
const FASTEST: u64 = 50_000;

/// Minimum interval between checks of the tables.
const SOONEST: Duration = Duration::from_millis(20);

/// Request to the thread: the rules, and whether they have changed.
type Job = (SweepRules, bool);

/// Result of a sweep.
struct Done {
    swept: Result<Swept>,
    /// Number of live mappings.
    live: usize,
    /// Count of created mappings from [`Sweeper::full_at`].
    full_at: Option<u64>,
    /// Pause before the next check, from [`Sweeper::rest`].
    rest: Duration,
}

/// Handle of the sweeper thread.
pub(super) struct Sweeping {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    wake: Arc<Notify>,
    /// Set when the rules of the current sweep are out of date.
    stop: Arc<AtomicBool>,
    /// Set when the node has gained addresses that those rules lack.
    grown: Arc<AtomicBool>,
    busy: bool,
    /// Set if the rules have changed since the current sweep began.
    again: bool,
    live: usize,
    /// Count of created mappings at which the tables may be nearly full.
    full_at: Option<u64>,
    /// Time of the next check of the tables.
    look_at: Instant,
}

impl Sweeping {
    /// Starts the thread, with the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if the maps cannot be opened, or the thread cannot be started.
    pub(super) fn start(bpffs: &Path) -> Result<Self> {
        let mut sweeper = Sweeper::open(bpffs)?;
        let (jobs, asked) = channel::<Job>();
        let (answers, done) = channel();
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        std::thread::Builder::new()
            .name("netdp-sweep".into())
            .spawn(move || {
                let _end = EndWithAgent;
                while let Ok((rules, changed)) = asked.recv() {
                    let swept = if changed {
                        sweeper.changed(&rules)
                    } else {
                        sweeper.some(&rules)
                    };
                    let done = Done {
                        full_at: sweeper.full_at().filter(|_| swept.is_ok()),
                        swept,
                        live: sweeper.live(),
                        rest: sweeper.rest(),
                    };
                    if answers.send(done).is_err() {
                        return;
                    }
                    waker.notify_one();
                }
            })
            .context("starting the sweeper thread")?;
        Ok(Self {
            jobs,
            done,
            wake,
            stop: Arc::default(),
            grown: Arc::default(),
            busy: false,
            again: false,
            live: 0,
            full_at: None,
            look_at: Instant::now() + SWEEP_INTERVAL,
        })
    }

    /// Waits until the next check of the tables is due.
    pub(super) async fn wants_look(&self) {
        tokio::time::sleep_until(self.look_at).await;
    }

    /// Waits until a sweep has ended, or may have.
    pub(super) async fn ended(&self) {
        self.wake.notified().await;
    }
}

/// Aborts the agent if the thread panics, as a panic of the loop would: the supervisor then
/// restarts the agent, and mappings do not stay forever.
struct EndWithAgent;

impl Drop for EndWithAgent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Agent {
    /// Starts a sweep, which ends expired mappings. `changed`: an address is gone for good, or the
    /// policy has changed. In iptables mode netfilter expires its own connections.
    pub(super) fn sweep(&mut self, changed: bool) {
        let rules = self.sweep_rules();
        let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        if sweeping.busy {
            sweeping.again |= changed;
            return;
        }
        sweeping.stop = Arc::clone(&rules.stop);
        sweeping.grown = Arc::clone(&rules.grown);
        if sweeping.jobs.send((rules, changed)).is_err() {
            log::error!("the sweeper thread exited: mappings no longer expire; restart the agent");
            return;
        }
        sweeping.busy = true;
    }

    /// Handles the result of a sweep, if there is one.
    pub(super) fn sweep_ended(&mut self) {
        let ebpf = self.engine.as_ebpf_mut();
        let done = ebpf.map(|ebpf| ebpf.sweeping.done.try_recv());
        if let Some(Ok(done)) = done {
            self.swept(done);
        }
    }

    /// Stops the current sweep, if there is one: its rules are about to change.
    pub(super) fn interrupt_sweep(&mut self) {
        if let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut()
            && sweeping.busy
        {
            sweeping.stop.store(true, Ordering::Release);
            sweeping.again = true;
        }
    }

    /// Keeps the current sweep, if there is one, from ending mappings because their address is
    /// gone: the node has gained another one.
    pub(super) fn spare_addresses(&self) {
        if let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf() {
            sweeping.grown.store(true, Ordering::Release);
        }
    }

    /// Starts a sweep if the mappings created may leave no room before the next regular one.
    pub(super) fn look_for_room(&mut self) {
        let room = self.room();
        let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        // If there may be no room, the end of the sweep sets the time.
        let after = room.map_or(SWEEP_INTERVAL, look_again_after);
        sweeping.look_at = Instant::now() + after;
        if room.is_none() && sweeping.full_at.is_some() {
            self.sweep(false);
        }
    }

    /// Returns how many more mappings may be created before a sweep is due; `None` if that limit is
    /// exceeded or unknown.
    fn room(&self) -> Option<u64> {
        let ebpf = self.engine.as_ebpf()?;
        let full_at = ebpf.sweeping.full_at?;
        // The sweep itself reports unreadable counters.
        let counters = ebpf.datapath.maps().counters().ok()?;
        full_at.checked_sub(counters.mappings_created)
    }

    fn swept(&mut self, done: Done) {
        let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        sweeping.busy = false;
        sweeping.live = done.live;
        sweeping.full_at = done.full_at;
        sweeping.look_at = Instant::now() + done.rest.max(SOONEST);
        let again = std::mem::take(&mut sweeping.again);
        let settled = done.swept.and_then(|swept| {
            log::debug!("{swept:?}");
            match self.engine.as_datapath() {
                Some(datapath) => datapath.settle(&swept),
                None => Ok(()),
            }
        });
        if let Err(err) = settled {
            log::warn!("sweeping the mappings: {err:#}");
        }
        if again {
            self.sweep(true);
        }
    }

    fn sweep_rules(&self) -> SweepRules {
        SweepRules {
            timeouts: self.options.timeouts,
            local: self.resting.with(&self.applied.local),
            retire: match self.options.setup.on_reload {
                OnReload::Sticky => None,
                OnReload::Cutover => Some(Duration::ZERO),
                OnReload::Drain => Some(DRAIN_IDLE),
            },
            stop: Arc::default(),
            grown: Arc::default(),
        }
    }

    /// Returns the number of live mappings, without netfilter's connections.
    pub(super) fn mappings(&self) -> usize {
        match self.engine.as_ebpf() {
            Some(ebpf) if ebpf.sweeping.live > COUNTED_ANEW => ebpf.sweeping.live,
            Some(ebpf) => ebpf.datapath.maps().flow_count().unwrap_or_default(),
            None => 0,
        }
    }
}

/// Returns the time for which `room` more mappings suffice.
fn look_again_after(room: u64) -> Duration {
    Duration::from_millis(room.saturating_mul(1000) / FASTEST).clamp(SOONEST, SWEEP_INTERVAL)
}
