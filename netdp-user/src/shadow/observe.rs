//! Thread that receives connections and compares the decisions about them.

use super::compare::{Comparison, Expected, Node, compare};
use super::netfilter::NatTables;
use super::reach::Attempts;
use super::report::{Example, ShadowReport};
use super::routes::Routes;
use crate::config::RuleAction;
use crate::nf_conntrack::{Conntrack, EventBatch, Events, Flow, NfTuple};
use crate::state_dir::StateDir;
use crate::time::now;
use anyhow::{Context as _, Result};
use netdp_common::layout::proto;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time limit for waiting for connections before other work is done, and age limit of the report.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Time for which results of route lookups remain valid.
const ROUTE_LIFETIME: Duration = Duration::from_secs(1);

/// Interval between dumps of the whole table if the kernel sends no events.
const DUMP_EVERY: Duration = Duration::from_secs(5);

/// Limit of cached decisions, and of connections beyond the last dump.
const CACHE_LIMIT: usize = 65_536;

/// Setting of the kernel's connection tracking events: 0 disables them.
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// Comparison that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Shadow {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// New inputs of the decision, until the thread takes them.
    node: Mutex<Option<Node>>,
    stop: AtomicBool,
}

impl Shadow {
    /// Subscribes to connections. Nothing is compared before [`set`](Self::set). `chain` is the
    /// chain that netdp would replace.
    ///
    /// # Errors
    /// Returns an error if the kernel has no connection tracking.
    pub(crate) fn start(chain: &str, state_dir: StateDir) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let events = Events::open()?;
        let mut conntrack = Conntrack::open()?;
        let before = conntrack.dump().context(
            "reading connection tracking, which shadow mode compares with: is nf_conntrack loaded?",
        )?;
        let observer = Observer {
            shared: Arc::clone(&shared),
            state_dir: state_dir.clone(),
            events,
            conntrack,
            routes: Routes::open()?,
            tables: NatTables::new(chain),
            node: None,
            cache: HashMap::new(),
            cached_since: Instant::now(),
            seen: before.iter().map(key).collect(),
            pruned: before.len(),
            early: HashSet::new(),
            attempts: Attempts::after(&state_dir),
            report: ShadowReport::default(),
        };
        let thread = std::thread::Builder::new()
            .name("netdp-shadow".into())
            .spawn(move || observer.run())
            .context("starting a thread for shadow mode")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Decides by `node` from now on. Another configuration starts a new report.
    pub(crate) fn set(&self, node: Node) {
        let mut waiting = self.shared.node.lock();
        *waiting.as_deref_mut().unwrap_or_else(|p| p.get_mut()) = Some(node);
    }
}

impl Drop for Shadow {
    /// Waits until the last report has been written.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection: its protocol and original tuple.
pub(super) type Key = (u8, NfTuple);

fn key(flow: &Flow) -> Key {
    (flow.protocol, flow.original)
}

struct Observer {
    shared: Arc<Shared>,
    state_dir: StateDir,
    events: Events,
    conntrack: Conntrack,
    routes: Routes,
    tables: NatTables,
    node: Option<Node>,
    /// Cached decisions by source, destination and whether the packets are AH.
    cache: HashMap<(IpAddr, IpAddr, bool), Expected>,
    cached_since: Instant,
    /// Connections that were compared or existed before.
    seen: HashSet<Key>,
    /// Number of connections when ended ones were last pruned.
    pruned: usize,
    /// Connections compared from a dump: an event about them may still arrive.
    early: HashSet<Key>,
    /// Connections to bypassed networks.
    attempts: Attempts,
    report: ShadowReport,
}

impl Observer {
    fn run(mut self) {
        let mut written = ShadowReport::default();
        let mut written_at = Instant::now();
        let mut dumped = Instant::now();
        let silent = std::fs::read_to_string(EVENTS).is_ok_and(|text| text.trim() == "0");
        if silent {
            log::warn!(
                "{EVENTS} is 0: connections that live for less than {DUMP_EVERY:?} are not seen"
            );
        }
        loop {
            let last = self.shared.stop.load(Ordering::Relaxed);
            let batch = self
                .events
                .receive(if last { Duration::ZERO } else { POLL_INTERVAL });
            // Before received connections are compared: the configuration may be newer.
            self.take_node();
            match batch {
                Ok(EventBatch::Flows(flows)) => {
                    flows.iter().for_each(|flow| self.handle_event(flow));
                }
                Ok(EventBatch::Overrun) => {
                    self.report.overruns += 1;
                    self.compare_dump();
                }
                Err(err) => {
                    log::error!("{err:#}");
                    std::thread::sleep(POLL_INTERVAL);
                }
            }
            let full = self.seen.len() > 2 * self.pruned + CACHE_LIMIT;
            if full || (silent && dumped.elapsed() >= DUMP_EVERY) {
                self.compare_dump();
                dumped = Instant::now();
            }
            if self.attempts.is_due(Instant::now()) {
                self.settle_attempts();
            }
            let due = last || written_at.elapsed() >= POLL_INTERVAL;
            if due && self.node.is_some() && self.report != written {
                if let Err(err) = self.report.save(&self.state_dir) {
                    log::warn!("{err:#}");
                }
                written.clone_from(&self.report);
                written_at = Instant::now();
            }
            if last {
                return;
            }
        }
    }

    fn take_node(&mut self) {
        if self.cached_since.elapsed() >= ROUTE_LIFETIME || self.cache.len() >= CACHE_LIMIT {
            self.clear_cache();
        }
        let mut waiting = self
            .shared
            .node
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(node) = waiting.take() else {
            return;
        };
        drop(waiting);
        let hash = node.config.hash();
        if self.report.config != hash {
            self.report = ShadowReport {
                config: hash,
                since: now(),
                ..ShadowReport::default()
            };
        }
        self.node = Some(node);
        self.clear_cache();
    }

    fn clear_cache(&mut self) {
        self.cache.clear();
        self.routes.clear_cache();
        self.cached_since = Instant::now();
    }

    /// Handles an event about `flow`.
    fn handle_event(&mut self, flow: &Flow) {
        let key = key(flow);
        self.seen.insert(key);
        if !self.early.remove(&key) {
            self.compare(flow);
        }
    }

    /// Compares live connections about which no event was received.
    fn compare_dump(&mut self) {
        let flows = match self.conntrack.dump() {
            Ok(flows) => flows,
            Err(err) => {
                log::warn!("{err:#}");
                return;
            }
        };
        self.early.clear();
        for flow in &flows {
            if !self.seen.contains(&key(flow)) {
                self.early.insert(key(flow));
                self.compare(flow);
            }
        }
        self.seen = flows.iter().map(key).collect();
        self.pruned = self.seen.len();
    }

    /// Counts the connections to bypassed networks whose result is known by now.
    fn settle_attempts(&mut self) {
        let settled = self.conntrack.dump().and_then(|flows| {
            let flows = flows.iter().map(|flow| (key(flow), flow));
            self.attempts.settle(flows, Instant::now(), now());
            self.attempts.save(&self.state_dir)
        });
        if let Err(err) = settled {
            log::warn!("counting answers: {err:#}");
        }
    }

    fn compare(&mut self, flow: &Flow) {
        let Some(node) = self.node.as_ref().filter(|_| !flow.is_mark()) else {
            return;
        };
        let (from, to) = (flow.original.source, flow.reply.source);
        let is_ah = u32::from(flow.protocol) == proto::AH;
        let expected = self
            .cache
            .entry((from, to, is_ah))
            .or_insert_with(|| Expected::of(flow, node, &mut self.routes));
        let is_tcp = u32::from(flow.protocol) == proto::TCP && !flow.picked_up;
        if is_tcp
            && expected.leaves
            && !flow.is_masqueraded()
            && node.config.decide(to).action == RuleAction::Bypass
        {
            let own = node.local.contains(&from);
            self.attempts.begin(key(flow), to, own, Instant::now());
        }
        match compare(flow, expected, node, &mut self.tables) {
            Comparison::Agrees(how) => self.report.record_agreement(how),
            Comparison::Differs { netdp, netfilter } => {
                let example = Example::new(flow, expected.source);
                self.report.record_difference(netdp, netfilter, example);
            }
        }
    }
}
