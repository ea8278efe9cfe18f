//! Taking over from netfilter on a live node, and giving back to it.
//!
//! Takeover: first what connection tracking knows, then the programs, then once more what it
//! knows, then the chains go. Connections that netfilter translates stay with it until they end.
//! Giving back is the mirror image. docs/adr/0021 has the order and why.
//!
//! Reading large tables and running iptables takes its time, which the loop has not: it is done
//! beside it.

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

/// How long a takeover that failed rests at first, and at most. Each failure doubles it.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// How far the takeover is, and what is done for it beside the loop.
#[derive(Debug)]
pub(super) struct Takeover {
    running: Option<JoinHandle<Done>>,
    /// There was something to take over.
    any: bool,
    /// All of it is taken over.
    pub(super) complete: bool,
    /// When to try again what has failed, and how long to rest after the next failure.
    again: Option<Instant>,
    rest: Duration,
    /// What stands in the way has changed since the one that runs began.
    changed: bool,
    /// What could not be taken over yet, and why.
    pub(super) failed: Vec<String>,
    /// Chains that were taken over and that somebody has put back.
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

    /// Waits for what was done; for ever where nothing is. Dropping the future loses nothing.
    pub(super) async fn done(&mut self) -> Done {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let done = running.await;
        self.running = None;
        done.unwrap_or_else(|err| Done::Failed(err.to_string()))
    }

    /// Whether it is time to try, or to try again.
    pub(super) fn is_due(&self) -> bool {
        let rested = self.again.is_none_or(|at| Instant::now() >= at);
        !self.complete && !self.is_running() && rested
    }

    /// Has what failed tried again with the next look: what stood in the way has changed.
    pub(super) const fn try_soon(&mut self) {
        self.again = None;
        self.rest = FIRST_REST;
        self.changed = self.is_running();
    }

    /// Has something done beside the loop.
    fn begin(&mut self, job: impl FnOnce() -> Done + Send + 'static) {
        self.again = None;
        self.running = Some(spawn_blocking(job));
    }

    /// Takes note of what could not be taken over, and when to try that again. Whether it is something
    /// else than before.
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

    /// Whether rules are being taken over right now: whoever looks at them sees some that are about
    /// to go.
    pub(super) const fn is_trying(&self) -> bool {
        self.is_running() && !self.complete
    }
}

/// What was done beside the loop.
#[derive(Debug)]
pub(super) enum Done {
    /// A takeover.
    Tried(Tried),
    /// A look after one.
    Watched {
        /// The chains that somebody has put back.
        back: Vec<String>,
    },
    /// Nothing, and why.
    Failed(String),
}

/// What came of a takeover.
#[derive(Debug)]
pub(super) struct Tried {
    /// Whether there was something to take over.
    any: bool,
    /// What could not be, and why.
    failed: Vec<String>,
}

impl Agent {
    /// Before programs are attached for the first time: connections that nobody translates keep
    /// their addresses.
    pub(super) async fn keep_untranslated(&mut self) {
        if self.engine.adopted() || self.engine.as_datapath().is_none() {
            return;
        }
        let mut job = self.job();
        job.local = local_addresses(&self.snapshot);
        match spawn_blocking(move || job.keep_untranslated()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(kept)) => log::info!("{kept} connections that are not translated stay so"),
            Ok(Err(err)) => log::warn!("{err:#}"),
            Err(err) => log::warn!("keeping connections that are not translated: {err}"),
        }
    }

    /// Says in connection tracking that the programs translate after it has seen packets. Again and
    /// again, since somebody may empty its table.
    pub(super) fn mark_tracking(&mut self) {
        if self.engine.as_datapath().is_none() {
            return;
        }
        if let Err(err) = Conntrack::open().and_then(|mut conntrack| conntrack.mark()) {
            log::debug!("connection tracking: {err:#}");
        }
    }

    /// In iptables mode, once the chains are in force: netfilter asks them for the first packet of a
    /// connection only, and what programs have translated that are gone is none of its own to it.
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
                log::info!("{n} flows that netdp's programs translated are the chains' now");
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

    /// With the programs attached: the chains of ip-masq-agent and the rules of k8s-custom-iptables
    /// go, the connections that they translate stay with netfilter. Whether that has begun, or will as
    /// soon as it is known what others' rules there are.
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
        // Without the chains pods' addresses would leave there.
        job.stay = [&self.found.leaks[..], &self.guard.faults()[..]].concat();
        // What IPsec protects is neither to be dropped nor to leave in clear.
        job.stay.extend_from_slice(self.node.missed_ipsec());
        // What netfilter translates is not to be dropped.
        job.stay.extend(self.foreign.in_the_way().cloned());
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return false;
        };
        ebpf.takeover.begin(move || Done::Tried(job.take_over()));
        true
    }

    /// What stood in the way of a takeover has changed.
    pub(super) fn try_takeover_soon(&mut self) {
        if let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() {
            takeover.try_soon();
        }
    }

    /// Tries a takeover if it is time to, or to try again.
    pub(super) fn take_over_if_due(&mut self) {
        let is_due = |it: &Ebpf| it.takeover.is_due();
        if self.engine.as_ebpf().is_some_and(is_due) {
            self.take_over();
        }
    }

    /// What was done beside the loop is done.
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

    /// A takeover has come to an end, with what could not be taken over.
    fn tried(&mut self, failed: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        for what in failed.iter().filter(|it| !takeover.failed.contains(it)) {
            log::error!("taking over {what}; it goes on beside the datapath, and is tried again");
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

    /// Looks, beside the loop, whether somebody has put the chains back that were taken over.
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

    /// Chains that are back are told of once, not fought about. What they translate arrives as the
    /// node's own traffic.
    fn watched(&mut self, back: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        if back != takeover.back {
            for chain in &back {
                log::warn!(
                    "{chain} is back: somebody, ip-masq-agent perhaps, still writes it; new connections are netfilter's until it is gone. Stop that agent and restart this one"
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
