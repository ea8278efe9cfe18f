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
            "the node's iptables-legacy programs do not share this pod's xtables lock: writes may \
             fail now and then, and are retried. Add {}: {}",
            pod::BELOW,
            pod::LOCK_VOLUME
        );
    }
    Ok(Engine::Iptables(Iptables {
        adopted: chains.adopted(),
        planned: chains.planned(),
        chains: Arc::new(Mutex::new(chains)),
        reports: Vec::new(),
        writing: None,
        next: None,
        rollback: RollbackState::None,
    }))
}

/// The chains, and their background tasks.
pub(in crate::agent) struct Iptables {
    adopted: bool,
    /// Chains that are to be written.
    planned: Vec<ChainReport>,
    /// Locked by background tasks that write; never by the loop.
    chains: Arc<Mutex<Chains>>,
    /// Reports of the last write.
    reports: Vec<ChainReport>,
    writing: Option<JoinHandle<Written>>,
    /// Configuration to write after the current write.
    next: Option<Config>,
    rollback: RollbackState,
}

/// State of a rollback from programs of an earlier agent.
enum RollbackState {
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

    /// Returns the chains that are to be written, before any rule is.
    pub(in crate::agent) fn planned(&self) -> &[ChainReport] {
        &self.planned
    }

    pub(in crate::agent) fn reports(&self) -> &[ChainReport] {
        &self.reports
    }

    /// Records the current state of the chains.
    pub(in crate::agent) fn set_reports(&mut self, reports: Vec<ChainReport>) {
        self.reports = reports;
    }

    /// Reports whether every chain is in force. Without a report none is known to be.
    pub(in crate::agent) fn is_in_force(&self) -> bool {
        !self.reports.is_empty() && self.reports.iter().all(|chain| chain.error.is_none())
    }

    /// Reports whether chains are being written, or are about to be.
    pub(in crate::agent) const fn is_writing(&self) -> bool {
        self.writing.is_some() || self.next.is_some()
    }

    /// Writes the chains for `config`: at once, or after the current write. Nothing is written while
    /// the programs may be detached: after a failed write nothing would translate.
    pub(in crate::agent) fn write(&mut self, config: &Config) {
        if self.writing.is_some() || matches!(self.rollback, RollbackState::Checking(_)) {
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
    pub(in crate::agent) fn begin_rollback(
        &mut self,
        bpffs: &Path,
        config: &Config,
        grace: Duration,
    ) -> Result<Vec<ChainReport>> {
        let (rollback, reports) = Rollback::begin(bpffs, &mut lock(&self.chains), config, grace)?;
        self.rollback = RollbackState::Waiting(Box::new(rollback));
        Ok(reports)
    }

    /// Detaches the programs of an earlier agent once nothing needs them any more. They are needed
    /// as long as netfilter does not masquerade.
    pub(in crate::agent) fn finish_rollback(&mut self) {
        if !self.may_finish_rollback() {
            return;
        }
        self.rollback = match std::mem::replace(&mut self.rollback, RollbackState::None) {
            RollbackState::Waiting(rollback) => {
                RollbackState::Checking(spawn_blocking(move || {
                    let finished = rollback.finish();
                    (rollback, finished.map(|removed| removed.is_some()))
                }))
            }
            other => other,
        };
    }

    /// Reports whether netfilter masquerades, and no write is pending.
    fn may_finish_rollback(&self) -> bool {
        self.is_in_force() && !self.is_writing()
    }

    /// Marks all chains as failed after a write that did not finish: their state is unknown.
    fn mark_failed(&mut self, why: &str) {
        for chain in &mut self.reports {
            chain.error = Some(format!("writing the chain: {why}"));
        }
    }

    /// Starts the pending write, if there is one.
    fn write_next(&mut self) {
        if let Some(config) = self.next.take() {
            self.write(&config);
        }
    }

    /// Waits for background tasks before the agent ends. Running programs have been killed by then.
    pub(in crate::agent) async fn await_tasks(&mut self) {
        self.next = None;
        if let Some(writing) = self.writing.take() {
            drop(writing.await);
        }
        if let RollbackState::Checking(checking) = &mut self.rollback {
            drop(checking.await);
            self.rollback = RollbackState::None;
        }
    }

    /// Waits for a background task; forever if there is none. Cancel-safe.
    pub(in crate::agent) async fn next(&mut self) -> Event {
        tokio::select! {
            written = done(self.writing.as_mut()) => {
                self.writing = None;
                if let Err(err) = &written {
                    self.mark_failed(&err.to_string());
                }
                self.write_next();
                written.map_or_else(Event::Failed, Event::Written)
            }
            checked = checked(&mut self.rollback) => {
                let mut event = Event::Checked;
                self.rollback = match checked {
                    Ok((_, Ok(true))) => {
                        log::info!("the eBPF datapath is removed; netfilter translates");
                        RollbackState::None
                    }
                    Ok((rollback, finished)) => {
                        if let Err(err) = finished {
                            log::error!("{err:#}");
                        }
                        RollbackState::Waiting(rollback)
                    }
                    Err(err) => {
                        event = Event::Failed(err);
                        RollbackState::None
                    }
                };
                self.write_next();
                event
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

async fn checked(rollback: &mut RollbackState) -> Result<(Box<Rollback>, Result<bool>), JoinError> {
    match rollback {
        RollbackState::Checking(task) => task.await,
        RollbackState::None | RollbackState::Waiting(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::report::tests::chain;
    use super::{Arc, Chains, Event, Iptables, Mutex, RollbackState, spawn_blocking};
    use crate::config::{self, Config};

    /// Chains of no family, that are in force.
    fn iptables() -> Iptables {
        Iptables {
            adopted: false,
            planned: Vec::new(),
            chains: Arc::new(Mutex::new(Chains::empty())),
            reports: vec![chain(None)],
            writing: None,
            next: None,
            rollback: RollbackState::None,
        }
    }

    fn config() -> Config {
        config::defaults(&config::Options::default())
    }

    #[tokio::test]
    async fn programs_stay_while_a_chain_is_written_or_is_to_be() {
        let mut iptables = iptables();
        assert!(iptables.may_finish_rollback());
        iptables.write(&config());
        assert!(!iptables.may_finish_rollback());
        iptables.write(&config());
        assert!(matches!(iptables.next().await, Event::Written(_)));
        assert!(
            !iptables.may_finish_rollback(),
            "the second writing has begun"
        );
        assert!(matches!(iptables.next().await, Event::Written(_)));
        assert!(iptables.may_finish_rollback());
        iptables.set_reports(vec![chain(None), chain(Some("locked"))]);
        assert!(!iptables.may_finish_rollback());
    }

    #[tokio::test]
    async fn chains_are_not_in_force_after_a_writing_that_came_to_no_end() {
        let mut iptables = iptables();
        assert!(iptables.is_in_force());
        iptables.writing = Some(spawn_blocking(|| panic!("as it was to")));
        assert!(matches!(iptables.next().await, Event::Failed(_)));
        assert!(!iptables.is_in_force());
        assert!(
            !iptables.is_writing(),
            "it is tried again with the next tick"
        );
        iptables.set_reports(Vec::new());
        assert!(!iptables.is_in_force(), "nothing was written yet");
    }

    #[tokio::test]
    async fn nothing_is_written_while_programs_may_be_taken_off() {
        let mut iptables = iptables();
        let checking = tokio::spawn(std::future::pending());
        let end = checking.abort_handle();
        iptables.rollback = RollbackState::Checking(checking);
        iptables.write(&config());
        assert!(iptables.writing.is_none());
        assert!(iptables.is_writing());
        end.abort();
        assert!(matches!(iptables.next().await, Event::Failed(_)));
        assert!(matches!(iptables.next().await, Event::Written(_)));
        assert!(!iptables.is_writing());
    }
}
