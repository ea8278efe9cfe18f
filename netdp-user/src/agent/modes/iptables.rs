//! iptables mode: netfilter translates, by the chains that ip-masq-agent would write.
//!
//! The iptables programs are slow, and wait for the xtables lock for seconds. They run in the
//! background, one write at a time; each result is an event.

use super::super::RunOptions;
use super::Engine;
use crate::config::Config;
use crate::iptables::{Backend, ChainReport, Chains};
use crate::pod;
use crate::rollback::Rollback;
use anyhow::Result;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

pub(super) fn start(options: &RunOptions) -> Result<Engine> {
    for flag in &options.ebpf_only {
        log::warn!("{flag} has no effect in iptables mode");
    }
    let chains = Chains::new(&options.chains)?;
    if chains.backend() == Backend::Legacy && pod::has_lock_of_its_own() {
        log::warn!(
            "the node's programs of iptables-legacy do not see the lock of this pod's: writing may \
             fail now and then, and is tried again. To be added, {}: {}",
            pod::BELOW,
            pod::LOCK_VOLUME
        );
    }
    Ok(Engine::Iptables(Iptables {
        adopted: chains.adopted(),
        chains: Arc::new(Mutex::new(chains)),
        reports: Vec::new(),
        writing: None,
        next: None,
        rollback: Retreat::None,
    }))
}

/// The chains, and their background tasks.
pub(in crate::agent) struct Iptables {
    adopted: bool,
    /// Locked by background tasks that write; never by the loop.
    chains: Arc<Mutex<Chains>>,
    /// Reports of the last write.
    reports: Vec<ChainReport>,
    writing: Option<JoinHandle<Written>>,
    /// Configuration to write after the current write.
    next: Option<Config>,
    rollback: Retreat,
}

/// State of a rollback from programs of an earlier agent.
enum Retreat {
    /// No such programs, or none any more.
    None,
    /// They remain for mappings that netfilter did not accept.
    Waiting(Box<Rollback>),
    /// A background task checks whether they are still needed.
    Checking(JoinHandle<(Box<Rollback>, Result<bool>)>),
}

/// Result of a write.
pub(in crate::agent) struct Written {
    /// A report for each family.
    pub reports: Vec<ChainReport>,
    /// Duration of the write.
    pub took: Duration,
}

/// Result of a background task.
pub(in crate::agent) enum Event {
    /// The chains were written, or writing them failed.
    Written(Written),
    /// The check whether programs of an earlier agent are still needed has ended.
    Checked,
    /// The task panicked or was cancelled.
    Failed(JoinError),
}

fn lock(chains: &Mutex<Chains>) -> MutexGuard<'_, Chains> {
    chains.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Iptables {
    /// Reports whether a chain existed at the start.
    pub(in crate::agent) const fn adopted(&self) -> bool {
        self.adopted
    }

    pub(in crate::agent) fn reports(&self) -> &[ChainReport] {
        &self.reports
    }

    /// Records the current state of the chains.
    pub(in crate::agent) fn set_reports(&mut self, reports: Vec<ChainReport>) {
        self.reports = reports;
    }

    /// Reports whether all chains are in the desired state.
    pub(in crate::agent) fn is_in_force(&self) -> bool {
        self.reports.iter().all(|chain| chain.error.is_none())
    }

    /// Reports whether chains are being written.
    pub(in crate::agent) const fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Writes the chains for `config` in the background: at once, or after the current write.
    pub(in crate::agent) fn write(&mut self, config: &Config) {
        if self.writing.is_some() {
            self.next = Some(config.clone());
            return;
        }
        let (chains, config) = (Arc::clone(&self.chains), config.clone());
        self.writing = Some(spawn_blocking(move || {
            let start = Instant::now();
            let reports = lock(&chains).apply(&config);
            let took = start.elapsed();
            Written { reports, took }
        }));
    }

    /// At the start: hands the mappings of an earlier agent's programs over to netfilter, and
    /// writes the chains. Not in the background: an agent that ends must not leave the programs
    /// with half their ports.
    ///
    /// # Errors
    /// Returns an error if the chains cannot be prepared, or the maps cannot be read. The programs
    /// then go on as before.
    pub(in crate::agent) fn give_back(
        &mut self,
        bpffs: &Path,
        config: &Config,
        grace: Duration,
    ) -> Result<Vec<ChainReport>> {
        let (rollback, reports) = Rollback::begin(bpffs, &mut lock(&self.chains), config, grace)?;
        self.rollback = Retreat::Waiting(Box::new(rollback));
        Ok(reports)
    }

    /// Detaches the programs of an earlier agent once nothing needs them any more. They are needed
    /// as long as netfilter does not masquerade.
    pub(in crate::agent) fn finish_rollback(&mut self) {
        if !self.is_in_force() {
            return;
        }
        self.rollback = match std::mem::replace(&mut self.rollback, Retreat::None) {
            Retreat::Waiting(rollback) => Retreat::Checking(spawn_blocking(move || {
                let finished = rollback.finish();
                (rollback, finished.map(|removed| removed.is_some()))
            })),
            other => other,
        };
    }

    /// Waits for background tasks before the agent ends. Running programs have been killed by then.
    pub(in crate::agent) async fn settle(&mut self) {
        self.next = None;
        if let Some(writing) = self.writing.take() {
            drop(writing.await);
        }
        if let Retreat::Checking(checking) = &mut self.rollback {
            drop(checking.await);
            self.rollback = Retreat::None;
        }
    }

    /// Waits for a background task; forever if there is none. Cancel-safe.
    pub(in crate::agent) async fn next(&mut self) -> Event {
        tokio::select! {
            written = done(self.writing.as_mut()) => {
                self.writing = None;
                if let Some(config) = self.next.take() {
                    self.write(&config);
                }
                written.map_or_else(Event::Failed, Event::Written)
            }
            checked = checked(&mut self.rollback) => {
                match checked {
                    Ok((_, Ok(true))) => {
                        log::info!("the eBPF datapath is gone; netfilter translates");
                        self.rollback = Retreat::None;
                    }
                    Ok((rollback, finished)) => {
                        if let Err(err) = finished {
                            log::error!("{err:#}");
                        }
                        self.rollback = Retreat::Waiting(rollback);
                    }
                    Err(err) => {
                        self.rollback = Retreat::None;
                        return Event::Failed(err);
                    }
                }
                Event::Checked
            }
        }
    }
}

/// Waits for a task; forever if there is none.
async fn done<T>(task: Option<&mut JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn checked(rollback: &mut Retreat) -> Result<(Box<Rollback>, Result<bool>), JoinError> {
    match rollback {
        Retreat::Checking(task) => task.await,
        Retreat::None | Retreat::Waiting(_) => std::future::pending().await,
    }
}
