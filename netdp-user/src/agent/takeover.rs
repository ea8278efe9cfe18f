//! Takeover from netfilter on a live node, and the way back.
//!
//! Takeover: read connection tracking, attach the programs, read connection tracking once more,
//! remove the chains. Connections that netfilter translates stay with it until they end. The way
//! back is the mirror image. docs/adr/0021 describes the order and the reasons.
//!
//! Reading large tables and running iptables takes longer than the loop may block: both are done in
//! the background.

use super::Agent;
use super::modes::{Ebpf, Iptables, TakeoverDone as Done, TakeoverJob as Job};
use crate::datapath;
use crate::nf_conntrack::Conntrack;
use crate::uplinks::local_addresses;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

impl Agent {
    /// Lets untranslated connections keep their addresses, before programs are attached for the
    /// first time.
    pub(super) async fn pin_untranslated_flows(&mut self) {
        if self.engine.adopted() || self.engine.as_datapath().is_none() {
            return;
        }
        let mut job = self.job();
        job.local = local_addresses(&self.snapshot);
        match spawn_blocking(move || job.pin_untranslated_flows()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(kept)) => log::info!("{kept} untranslated connections stay untranslated"),
            Ok(Err(err)) => log::warn!("{err:#}"),
            Err(err) => log::warn!("keeping untranslated connections: {err}"),
        }
    }

    /// Marks connection tracking: the programs translate packets after it has seen them. Repeated,
    /// since its table may be flushed.
    pub(super) fn mark_conntrack(&mut self) {
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
    pub(super) async fn delete_translated_flows(&mut self) {
        let in_force = (self.engine.as_iptables()).is_some_and(Iptables::is_in_force);
        if !in_force || datapath::is_pinned(&self.options.bpffs) {
            return;
        }
        let mut job = self.job();
        job.local = local_addresses(&self.snapshot);
        match spawn_blocking(move || job.delete_translated_flows()).await {
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
        if !self.foreign.has_scanned() {
            return true;
        }
        let mut job = self.job();
        // Without the chains, packets would leave there with pods' addresses.
        job.stay = [&self.found.leaks[..], &self.guard.faults()[..]].concat();
        // Traffic that IPsec protects must neither be dropped nor leave in clear.
        job.stay.extend_from_slice(self.node.missed_ipsec());
        // Traffic that netfilter translates must not be dropped.
        job.stay.extend(self.foreign.obstacle().cloned());
        let Some(ebpf) = self.engine.as_ebpf_mut() else {
            return false;
        };
        ebpf.takeover.begin(move || Done::Attempt(job.take_over()));
        true
    }

    /// Schedules a retry of the takeover: the obstacles have changed.
    pub(super) fn retry_takeover_soon(&mut self) {
        if let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() {
            takeover.retry_soon();
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
    pub(super) fn on_takeover(&mut self, done: Done) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        match done {
            Done::Attempt(attempt) => {
                takeover.any |= attempt.any;
                self.record_attempt(attempt.failed);
            }
            Done::Failed(why) if takeover.complete => log::error!("{why}"),
            Done::Failed(why) => self.record_attempt(vec![why]),
            Done::Checked { recreated } => self.record_recreated_chains(recreated),
        }
    }

    /// Handles the end of an attempt, with what could not be taken over.
    fn record_attempt(&mut self, failed: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        for what in failed.iter().filter(|it| !takeover.failed.contains(it)) {
            log::error!("taking over {what}; it stays in force beside the datapath; netdp retries");
        }
        if takeover.record_attempt(failed, Instant::now()) {
            self.save_report();
        }
        if self.starting {
            self.starting = false;
            self.update_ready();
        }
        self.scan_foreign();
    }

    /// Checks in the background whether chains that were taken over have been created again.
    pub(super) fn check_recreated_chains(&mut self) {
        let is_over = |it: &Ebpf| it.takeover.complete && it.takeover.any;
        if !self.engine.as_ebpf().is_some_and(is_over) {
            return;
        }
        let job = self.job();
        if let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut()
            && !takeover.is_running()
        {
            takeover.begin(move || job.check_recreated());
        }
    }

    /// Logs chains that were created again; they are not removed again. Packets that they translate
    /// arrive as the node's own traffic.
    fn record_recreated_chains(&mut self, recreated: Vec<String>) {
        let Some(Ebpf { takeover, .. }) = self.engine.as_ebpf_mut() else {
            return;
        };
        if recreated != takeover.recreated {
            for chain in &recreated {
                log::warn!(
                    "{chain} was created again, probably by ip-masq-agent: netfilter translates \
                     new connections until it is removed. Stop that agent and restart netdp"
                );
            }
            takeover.recreated = recreated;
            self.save_report();
        }
    }
}
