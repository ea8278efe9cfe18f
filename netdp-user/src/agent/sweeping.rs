//! Mappings end on a thread of their own: with a million of them a sweep takes
//! seconds, in which the agent has other things to do.

use super::{Agent, DRAIN_IDLE};
use crate::datapath::{OnReload, SweepRules, Sweeper, Swept};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::Notify;

/// How long the agent waits for a sweep before it goes on without it: those of
/// small tables take no longer, and what comes after finds them done.
const PATIENCE: Duration = Duration::from_millis(50);

/// With more mappings than this, what the last sweep counted is good enough.
const COUNTED_ANEW: usize = 50_000;

/// What is asked of the thread: the rules, and whether they have changed.
type Job = (SweepRules, bool);

/// What comes back: what was done, and how many mappings live.
type Done = (Result<Swept>, usize);

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
                    if answers.send((swept, sweeper.live())).is_err() {
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
        })
    }

    /// Waits until a sweep has ended, or may have.
    pub(super) async fn ended(sweeping: Option<&Self>) {
        match sweeping {
            Some(sweeping) => sweeping.wake.notified().await,
            None => std::future::pending().await,
        }
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
    /// Ends mappings whose time has come. `changed`: an address was lost, or the
    /// policy has changed. In iptables mode netfilter ends its own.
    pub(super) fn sweep(&mut self, changed: bool) {
        let rules = self.sweep_rules();
        let Some(sweeping) = &mut self.sweeping else {
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
        if let Ok(done) = sweeping.done.recv_timeout(PATIENCE) {
            self.swept(done);
        }
    }

    /// A sweep may have ended.
    pub(super) fn sweep_ended(&mut self) {
        let done = self.sweeping.as_ref().map(|s| s.done.try_recv());
        if let Some(Ok(done)) = done {
            self.swept(done);
        }
    }

    /// The sweep at work, if there is one, ends no more mappings: what it goes
    /// by changes.
    pub(super) fn interrupt_sweep(&mut self) {
        if let Some(sweeping) = &mut self.sweeping
            && sweeping.busy
        {
            sweeping.stop.store(true, Ordering::Release);
            sweeping.again = true;
        }
    }

    /// The sweep at work, if there is one, ends no mapping any more because its
    /// address is gone: the node has got another.
    pub(super) fn spare_addresses(&self) {
        if let Some(sweeping) = &self.sweeping {
            sweeping.grown.store(true, Ordering::Release);
        }
    }

    fn swept(&mut self, (swept, live): Done) {
        let Some(sweeping) = &mut self.sweeping else {
            return;
        };
        sweeping.busy = false;
        sweeping.live = live;
        let again = std::mem::take(&mut sweeping.again);
        let settled = swept.and_then(|swept| {
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
            local: self.applied.local.clone(),
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
    pub(super) fn mappings(&mut self) -> usize {
        match (&self.sweeping, self.engine.as_datapath()) {
            (Some(sweeping), _) if sweeping.live > COUNTED_ANEW => sweeping.live,
            (_, Some(datapath)) => datapath.maps().flow_count().unwrap_or_default(),
            (_, None) => 0,
        }
    }
}
