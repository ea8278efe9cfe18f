//! Takeover from netfilter on a live node, and the way back.
//!
//! Takeover: read connection tracking, attach the programs, read connection tracking once more,
//! remove the chains. Connections that netfilter translates stay with it until they end. The way
//! back is the mirror image. docs/adr/0021 describes the order and the reasons.
//!
//! Reading large tables and running iptables takes longer than the loop may block: both are done in
//! the background.

mod job;

use super::Agent;
use super::modes::{Ebpf, Iptables};
use crate::conntrack::Conntrack;
use crate::datapath;
use crate::uplinks::local_addresses;
use job::Job;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

/// Initial and longest pause after a failed takeover. Each failure doubles it.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Progress of the takeover, and its background task.
#[derive(Debug)]
pub(super) struct Takeover {
    running: Option<JoinHandle<Done>>,
    /// Set if there was something to take over.
    any: bool,
    /// All of it is taken over.
    pub(super) complete: bool,
    /// When to try again what has failed, and how long to rest after the next failure.
    again: Option<Instant>,
    rest: Duration,
    /// Set if the obstacles have changed since the current attempt began.
    changed: bool,
    /// Rules that could not be taken over yet, and why.
    pub(super) failed: Vec<String>,
    /// Chains that were taken over and then created again.
    pub(super) back: Vec<String>,
}

impl Takeover {
    pub(super) const fn new() -> Self {
        Self {
            failed: Vec::new(),
            back: Vec::new(),
            running: None,
            any: false,
            complete: false,
            again: None,
            rest: FIRST_REST,
            changed: false,
        }
    }

    /// Waits for the background task; forever if there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Done {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let done = running.await;
        self.running = None;
        done.unwrap_or_else(|err| Done::Failed(err.to_string()))
    }

    /// Reports whether an attempt or a retry is due.
    pub(super) fn is_due(&self) -> bool {
        let rested = self.again.is_none_or(|at| Instant::now() >= at);
        !self.complete && !self.is_running() && rested
    }

    /// Schedules a retry for the next opportunity: the obstacles have changed.
    pub(super) const fn try_soon(&mut self) {
        self.again = None;
        self.rest = FIRST_REST;
        self.changed = self.is_running();
    }

    /// Starts a background task.
    fn begin(&mut self, job: impl FnOnce() -> Done + Send + 'static) {
        self.again = None;
        self.running = Some(spawn_blocking(job));
    }

    /// Records what could not be taken over, and schedules the retry. Returns whether the failures
    /// differ from those before.
    fn tried(&mut self, failed: Vec<String>, now: Instant) -> bool {
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

    const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Reports whether a takeover is under way: a scan then sees rules that are about to be
    /// removed.
    pub(super) const fn is_trying(&self) -> bool {
        self.is_running() && !self.complete
    }
}

/// Result of a background task.
#[derive(Debug)]
pub(super) enum Done {
    /// An attempt of a takeover.
    Tried(Tried),
    /// A check after a takeover.
    Watched {
        /// The chains that were created again.
        back: Vec<String>,
    },
    /// The task failed, with the reason.
    Failed(String),
}

/// Result of an attempt of a takeover.
#[derive(Debug)]
pub(super) struct Tried {
    /// Set if there was something to take over.
    any: bool,
    /// Failures, with their reasons.
    failed: Vec<String>,
}

impl Agent {
    /// Lets untranslated connections keep their addresses, before programs are attached for the
    /// first time.
    pub(super) async fn keep_untranslated(&mut self) {
        if self.engine.adopted() || self.engine.as_datapath().is_none() {
            return;
        }
        let mut job = self.job();
        job.local = local_addresses(&self.snapshot);
        match spawn_blocking(move || job.keep_untranslated()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(kept)) => log::info!("{kept} untranslated connections stay untranslated"),
            Ok(Err(err)) => log::warn!("{err:#}"),
            Err(err) => log::warn!("keeping untranslated connections: {err}"),
        }
    }

    /// Marks connection tracking: the programs translate packets after it has seen them. Repeated,
    /// since its table may be flushed.
    pub(super) fn mark_tracking(&mut self) {
        if self.engine.as_datapath().is_none() {
            return;
        }
        if let Err(err) = Conntrack::open().and_then(|mut conntrack| conntrack.mark()) {
            log::debug!("connection tracking: {err:#}");
        }
    }

    /// Deletes the conntrack entries of flows that removed programs translated, in iptables mode
    /// once the chains are in force: netfilter evaluates them only for the first packet of a
    /// connection, and has no translation for these flows.
    pub(super) async fn forget_translated(&mut self) {
        let in_force = (self.engine.as_iptables()).is_some_and(Iptables::is_in_force);
        if !in_force || datapath::is_pinned(&self.options.bpffs) {
            return;
        }
        let mut job = self.job();
        job.local = local_addresses(&self.snapshot);
        match spawn_blocking(move || job.forget_translated()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(n)) => {
                log::info!("{n} flows of netdp's programs are now translated by the chains");
            }
            Ok(Err(err)) => log::warn!("{err:#}"),
            Err(err) => log::warn!("connection tracking: {err}"),
        }
    }

    fn job(&self) -> Job {
        Job {
            bpffs: self.options.bpffs.clone(),
            config: self.config.clone(),
            local: self.applied.local.clone(),
            chain: self.options.chains.name.clone(),
            stay: Vec::new(),
        }
    }

    /// Removes the chains of ip-masq-agent and the rules of k8s-custom-iptables once the programs
    /// are attached; connections that these translate stay with netfilter. Returns whether this has
    /// begun, or will as soon as the third-party rules are known.
    pub(super) fn take_over(&mut self) -> bool {
        let in_force = self.applied.policy.is_some() && !self.attached.is_empty();
        let Some(ebpf) = self.engine.as_ebpf() else {
            return false;
        };
        let takeover = &ebpf.takeover;
        if !self.options.takeover || !in_force || takeover.complete || takeover.is_running() {
            return false;
        }
        if !self.foreign.has_looked() {
            return true;
        }
        let mut job = self.job();
        // Without the chains, packets would leave there with pods' addresses.
        job.stay = [&self.found.leaks[..], &self.guard.faults()[..]].concat();
        // Traffic that IPsec protects must neither be dropped nor leave in clear.
        job.stay.extend_from_slice(self.node.missed_ipsec());
        // Traffic that netfilter translates must not be dropped.
        job.stay.extend(self.foreign.in_the_way().cloned());
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return false;
        };
        ebpf.takeover.begin(move || Done::Tried(job.take_over()));
        true
    }

    /// Schedules a retry of the takeover: the obstacles have changed.
    pub(super) fn try_takeover_soon(&mut self) {
        if let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() {
            takeover.try_soon();
        }
    }

    /// Starts a takeover if an attempt or a retry is due.
    pub(super) fn take_over_if_due(&mut self) {
        let is_due = |it: &Ebpf| it.takeover.is_due();
        if self.engine.as_ebpf().is_some_and(is_due) {
            self.take_over();
        }
    }

    /// Handles the result of a background task.
    pub(super) fn took_over(&mut self, done: Done) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        match done {
            Done::Tried(tried) => {
                takeover.any |= tried.any;
                self.tried(tried.failed);
            }
            Done::Failed(why) if takeover.complete => log::error!("{why}"),
            Done::Failed(why) => self.tried(vec![why]),
            Done::Watched { back } => self.watched(back),
        }
    }

    /// Handles the end of an attempt, with what could not be taken over.
    fn tried(&mut self, failed: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        for what in failed.iter().filter(|it| !takeover.failed.contains(it)) {
            log::error!("taking over {what}; it stays in force beside the datapath; netdp retries");
        }
        if takeover.tried(failed, Instant::now()) {
            self.save_report();
        }
        if self.starting {
            self.starting = false;
            self.update_ready();
        }
        self.ask_foreign();
    }

    /// Checks in the background whether chains that were taken over have been created again.
    pub(super) fn watch_chains(&mut self) {
        let is_over = |it: &Ebpf| it.takeover.complete && it.takeover.any;
        if !self.engine.as_ebpf().is_some_and(is_over) {
            return;
        }
        let job = self.job();
        if let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut()
            && !takeover.is_running()
        {
            takeover.begin(move || job.watch());
        }
    }

    /// Logs chains that were created again; they are not removed again. Packets that they translate
    /// arrive as the node's own traffic.
    fn watched(&mut self, back: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        if back != takeover.back {
            for chain in &back {
                log::warn!(
                    "{chain} was created again, probably by ip-masq-agent: netfilter translates \
                     new connections until it is removed. Stop that agent and restart netdp"
                );
            }
            takeover.back = back;
            self.save_report();
        }
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
        assert!(takeover.tried(failed(), now));
        assert_eq!(takeover.again, Some(now + FIRST_REST));
        assert!(!takeover.is_due());
        assert!(!takeover.tried(failed(), now), "it is the same failure");
        assert_eq!(takeover.again, Some(now + FIRST_REST * 2));
        for _ in 0..10 {
            takeover.tried(failed(), now);
        }
        assert_eq!(takeover.again, Some(now + LONGEST_REST));
        takeover.try_soon();
        assert!(takeover.is_due());
        takeover.tried(failed(), now);
        assert_eq!(takeover.again, Some(now + FIRST_REST));
    }

    #[test]
    fn what_is_complete_is_not_due() {
        let mut takeover = Takeover::new();
        takeover.tried(failed(), Instant::now());
        assert!(takeover.tried(Vec::new(), Instant::now()));
        assert!(takeover.complete && !takeover.is_due());
        assert!(takeover.failed.is_empty());
    }

    #[test]
    fn what_has_changed_meanwhile_is_tried_again_at_once() {
        let mut takeover = Takeover::new();
        takeover.changed = true;
        takeover.tried(failed(), Instant::now());
        assert!(takeover.is_due());
        assert!(!takeover.changed);
    }
}
