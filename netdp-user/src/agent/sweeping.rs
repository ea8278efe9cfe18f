//! Mappings end on a thread of their own: with a million of them a sweep takes
//! seconds, in which the agent has other things to do.
//!
//! Between sweeps the agent looks whether so many mappings have been made that the
//! tables may be nearly full, the sooner the less room there was.

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

/// With more mappings than this, what the last sweep counted is good enough.
const COUNTED_ANEW: usize = 50_000;

/// New mappings a second that no node exceeds.
const FASTEST: u64 = 50_000;

/// The tables are looked at no more often.
const SOONEST: Duration = Duration::from_millis(20);

/// What is asked of the thread: the rules, and whether they have changed.
type Job = (SweepRules, bool);

/// What comes back.
struct Done {
    swept: Result<Swept>,
    /// How many mappings live.
    live: usize,
    /// [`Sweeper::full_at`].
    full_at: Option<u64>,
    /// [`Sweeper::rest`].
    rest: Duration,
}

/// The thread that sweeps.
pub(super) struct Sweeping {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    wake: Arc<Notify>,
    /// Becomes true when the rules at work are out of date.
    stop: Arc<AtomicBool>,
    /// Becomes true when the node has got addresses that those do not know.
    grown: Arc<AtomicBool>,
    busy: bool,
    /// The rules have changed since the sweep at work began.
    again: bool,
    live: usize,
    /// How many mappings may have been made until the tables may be nearly full.
    full_at: Option<u64>,
    /// When to look whether they are.
    look_at: Instant,
}

impl Sweeping {
    /// Starts the thread, with the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// The maps can't be opened, or no thread be made.
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
            .context("starting the thread that sweeps")?;
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

    /// Waits until it is time to look whether the tables are nearly full.
    pub(super) async fn wants_look(&self) {
        tokio::time::sleep_until(self.look_at).await;
    }

    /// Waits until a sweep has ended, or may have.
    pub(super) async fn ended(&self) {
        self.wake.notified().await;
    }
}

/// Ends the agent with the thread that panics, as a panic of the loop would: then
/// whoever runs the agent starts it anew, instead of mappings that never end.
struct EndWithAgent;

impl Drop for EndWithAgent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Agent {
    /// Ends mappings whose time has come. `changed`: an address is gone for good, or the
    /// policy has changed. In iptables mode netfilter ends its own.
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
            log::error!("the thread that sweeps has ended, mappings will not: restart the agent");
            return;
        }
        sweeping.busy = true;
    }

    /// A sweep may have ended.
    pub(super) fn sweep_ended(&mut self) {
        let ebpf = self.engine.as_ebpf_mut();
        let done = ebpf.map(|ebpf| ebpf.sweeping.done.try_recv());
        if let Some(Ok(done)) = done {
            self.swept(done);
        }
    }

    /// The sweep at work, if there is one, ends no more mappings: what it goes
    /// by changes.
    pub(super) fn interrupt_sweep(&mut self) {
        if let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut()
            && sweeping.busy
        {
            sweeping.stop.store(true, Ordering::Release);
            sweeping.again = true;
        }
    }

    /// The sweep at work, if there is one, ends no mapping any more because its
    /// address is gone: the node has got another.
    pub(super) fn spare_addresses(&self) {
        if let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf() {
            sweeping.grown.store(true, Ordering::Release);
        }
    }

    /// Sweeps if so many mappings have been made that there may be no room left
    /// before the next sweep.
    pub(super) fn look_for_room(&mut self) {
        let room = self.room();
        let Some(Ebpf { sweeping, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        // Where there may be none, the end of the sweep says when.
        let after = room.map_or(SWEEP_INTERVAL, look_again_after);
        sweeping.look_at = Instant::now() + after;
        if room.is_none() && sweeping.full_at.is_some() {
            self.sweep(false);
        }
    }

    /// How many more mappings may be made; `None` if there may be too many or
    /// nobody knows.
    fn room(&self) -> Option<u64> {
        let ebpf = self.engine.as_ebpf()?;
        let full_at = ebpf.sweeping.full_at?;
        // Whether they can be read is shown by the sweep itself.
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

    /// How many mappings live; those of netfilter are not counted.
    pub(super) fn mappings(&self) -> usize {
        match self.engine.as_ebpf() {
            Some(ebpf) if ebpf.sweeping.live > COUNTED_ANEW => ebpf.sweeping.live,
            Some(ebpf) => ebpf.datapath.maps().flow_count().unwrap_or_default(),
            None => 0,
        }
    }
}

/// For how long there is room if so many more mappings may be made.
fn look_again_after(room: u64) -> Duration {
    Duration::from_millis(room.saturating_mul(1000) / FASTEST).clamp(SOONEST, SWEEP_INTERVAL)
}
