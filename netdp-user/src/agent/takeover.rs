//! Taking over from netfilter on a live node, and giving back to it.
//!
//! Takeover: first what connection tracking knows, then the programs, then once more what it
//! knows, then the chains go. Connections that netfilter translates stay with it until they end.
//! Giving back is the mirror image. docs/adr/0021 has the order and why.
//!
//! Reading large tables and running iptables takes its time, which the loop has not: it is done
//! beside it.

use super::Agent;
use super::modes::Iptables;
use crate::config::{Action, Config};
use crate::conntrack::{Conntrack, Flow};
use crate::datapath::{self, Maps};
use crate::iptables::{self, KEEP_CHAIN};
use crate::uplinks::local_addresses;
use anyhow::Result;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
    complete: bool,
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

/// What takes rules over, and what it has to know.
struct Job {
    bpffs: PathBuf,
    config: Config,
    local: BTreeSet<IpAddr>,
    chain: String,
    /// Why chains have to stay, if so.
    stay: Vec<String>,
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
        if !in_force || is_pinned(&self.options.bpffs) {
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
        if !self.options.takeover || self.engine.as_datapath().is_none() || !in_force {
            return false;
        }
        if self.takeover.complete || self.takeover.is_running() {
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
        self.takeover.again = None;
        self.takeover.running = Some(spawn_blocking(move || Done::Tried(job.take_over())));
        true
    }

    /// What was done beside the loop is done.
    pub(super) fn took_over(&mut self, done: Done) {
        match done {
            Done::Tried(tried) => {
                self.takeover.any |= tried.any;
                self.tried(tried.failed);
            }
            Done::Failed(why) if self.takeover.complete => log::error!("{why}"),
            Done::Failed(why) => self.tried(vec![why]),
            Done::Watched { back } => self.watched(back),
        }
    }

    /// A takeover has come to an end, with what could not be taken over.
    fn tried(&mut self, failed: Vec<String>) {
        for what in failed
            .iter()
            .filter(|it| !self.takeover.failed.contains(it))
        {
            log::error!("taking over {what}; it goes on beside the datapath, and is tried again");
        }
        self.takeover.complete = failed.is_empty();
        if failed.is_empty() {
            self.takeover.rest = FIRST_REST;
        } else {
            let changed = std::mem::take(&mut self.takeover.changed);
            self.takeover.again = (!changed).then(|| Instant::now() + self.takeover.rest);
            self.takeover.rest = (self.takeover.rest * 2).min(LONGEST_REST);
        }
        if failed != self.takeover.failed {
            self.takeover.failed = failed;
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
        if !(self.takeover.complete && self.takeover.any) || self.takeover.is_running() {
            return;
        }
        let job = self.job();
        self.takeover.running = Some(spawn_blocking(move || job.watch()));
    }

    /// Chains that are back are told of once, not fought about. What they translate arrives as the
    /// node's own traffic.
    fn watched(&mut self, back: Vec<String>) {
        if back != self.takeover.back {
            for chain in &back {
                log::warn!(
                    "{chain} is back: somebody, ip-masq-agent perhaps, still writes it; new connections are netfilter's until it is gone. Stop that agent and restart this one"
                );
            }
            self.takeover.back = back;
            self.save_report();
        }
    }
}

impl Job {
    /// How many connections keep their addresses that nobody translates.
    fn keep_untranslated(&self) -> Result<usize> {
        let Some(flows) = tracked() else {
            return Ok(0);
        };
        // Programs have translated here, and are gone without a word of which flows that were. What
        // may be of those must not leave with the pod's address.
        let marked = flows.iter().any(Flow::is_mark);
        let answered = flows.iter().filter(|flow| flow.answered);
        let ends = answered.flat_map(|flow| {
            let ends = datapath::untranslated(flow, &self.local).into_iter();
            ends.filter(move |ends| !(marked && datapath::may_be_translated(flow, ends)))
                .map(|ends| (flow.protocol, ends))
        });
        let kept: Vec<_> = ends
            .filter(|(_, ends)| self.config.decide(ends.destination).action != Action::Bypass)
            .collect();
        let mut maps = Maps::open(&self.bpffs)?;
        maps.keep_addresses(&kept)?;
        maps.count_inbound()?;
        Ok(kept.len())
    }

    /// How many flows tracking has forgotten that programs may have translated.
    fn forget_translated(&self) -> Result<usize> {
        if !datapath::is_marked() {
            return Ok(0);
        }
        datapath::forget(&self.local, |flow, ends| {
            datapath::may_be_translated(flow, ends)
                && self.config.decide(ends.destination).action != Action::Bypass
        })
    }

    fn take_over(&self) -> Tried {
        let masqueraded = |prefix: &str| {
            let net = prefix.parse::<IpNet>();
            let net = net.or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
            net.is_ok_and(|net| self.config.masquerades(net))
        };
        let (found, mut failed) = iptables::find(&self.chain, masqueraded);
        let (kept, _) = iptables::find(KEEP_CHAIN, |_| false);
        let any = !kept.is_empty() || !found.is_empty();
        if !self.stay.is_empty() && !found.is_empty() {
            let why = self.stay.join("; ");
            failed.extend(found.iter().map(|found| format!("{found}: {why}")));
            return Tried { any, failed };
        }
        let keep = self.reserve_translated() > 0;
        for found in found {
            match found.remove(keep) {
                Ok(()) => log::info!("taken over: {found}"),
                Err(err) => failed.push(format!("{found}: {err:#}")),
            }
        }
        // What began between the first look and the rules' end.
        self.reserve_translated();
        Tried { any, failed }
    }

    /// The connections that netfilter translates to an address of the node.
    fn translated(&self) -> Option<Vec<Flow>> {
        let mut flows = tracked()?;
        flows.retain(|flow| flow.is_masqueraded() && self.local.contains(&flow.reply.destination));
        Some(flows)
    }

    /// How many those are; all of them are reserved.
    fn reserve_translated(&self) -> usize {
        let translated = self.translated().unwrap_or_default();
        if translated.is_empty() {
            return 0;
        }
        match Maps::open(&self.bpffs).and_then(|mut maps| maps.reserve(&translated)) {
            Ok(0) => {}
            Ok(reserved) => {
                log::info!("{reserved} connections that netfilter translates stay with it");
            }
            Err(err) => log::warn!("{err:#}"),
        }
        translated.len()
    }

    /// Which chains are back; the one that keeps tracking alive goes once it is not needed.
    fn watch(&self) -> Done {
        self.release_tracking();
        let (back, _) = iptables::find(&self.chain, |_| false);
        Done::Watched {
            back: back.iter().map(ToString::to_string).collect(),
        }
    }

    /// Once netfilter translates nothing any more, connections need not be tracked for us.
    fn release_tracking(&self) {
        let (kept, _) = iptables::find(KEEP_CHAIN, |_| false);
        if kept.is_empty() || self.translated().is_none_or(|flows| !flows.is_empty()) {
            return;
        }
        for chain in kept {
            match chain.remove(false) {
                Ok(()) => {
                    log::info!("the last connection of netfilter's has ended: {chain} is gone");
                }
                Err(err) => log::warn!("{err:#}"),
            }
        }
    }
}

/// What connection tracking knows; `None` where there is none.
fn tracked() -> Option<Vec<Flow>> {
    match Conntrack::open().and_then(|mut conntrack| conntrack.dump()) {
        Ok(flows) => Some(flows),
        Err(err) => {
            log::debug!("connection tracking: {err:#}");
            None
        }
    }
}

/// Whether a datapath is pinned there.
pub(super) fn is_pinned(bpffs: &Path) -> bool {
    bpffs.join(netdp_common::abi::pins::SETTINGS).exists()
}
