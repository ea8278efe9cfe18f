//! A thread that hears of connections and compares.

use super::judge::{Expected, Judgement, Node, judge};
use super::netfilter::NatTables;
use super::report::{Example, ShadowReport};
use super::routes::Routes;
use crate::conntrack::{Conntrack, Ends, Events, Flow, Heard};
use crate::state_dir::StateDir;
use crate::time::now;
use anyhow::{Context as _, Result};
use netdp_common::tuple::proto;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the thread waits for connections before it looks at other things, and how old the
/// report may be.
const TURN: Duration = Duration::from_millis(200);

/// How long answers of the routing tables count.
const ROUTES_FRESH: Duration = Duration::from_secs(1);

/// How often the whole table is read where the kernel tells of nothing.
const DUMP_EVERY: Duration = Duration::from_secs(5);

/// Answers remembered at most, and connections beyond the last reading.
const REMEMBERED: usize = 65_536;

/// Whether the kernel writes events down: 0 is no.
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// Compares until it is dropped.
#[derive(Debug)]
pub struct Shadow {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What to decide by, if it is not yet taken.
    node: Mutex<Option<Node>>,
    stop: AtomicBool,
}

impl Shadow {
    /// Listens from now on. Nothing is compared before [`set`](Self::set). `chain` is the chain
    /// that netdp would replace.
    ///
    /// # Errors
    /// The kernel has no connection tracking.
    pub fn start(chain: &str, state_dir: StateDir) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let events = Events::open()?;
        let mut conntrack = Conntrack::open()?;
        let before = conntrack.dump().context(
            "reading connection tracking, which shadow mode compares with: is nf_conntrack there?",
        )?;
        let observer = Observer {
            shared: Arc::clone(&shared),
            state_dir,
            events,
            conntrack,
            routes: Routes::open()?,
            tables: NatTables::new(chain),
            node: None,
            known: HashMap::new(),
            known_since: Instant::now(),
            seen: before.iter().map(key).collect(),
            pruned: before.len(),
            caught: HashSet::new(),
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

    /// From now on decides by `node`. Another configuration begins another report.
    pub fn set(&self, node: Node) {
        let mut waiting = self.shared.node.lock();
        *waiting.as_deref_mut().unwrap_or_else(|p| p.get_mut()) = Some(node);
    }
}

impl Drop for Shadow {
    /// Waits until the last report is written.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Key = (u8, Ends);

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
    /// What would become of packets from one address to another; AH apart.
    known: HashMap<(IpAddr, IpAddr, bool), Expected>,
    known_since: Instant,
    /// Connections that were judged, or were there before.
    seen: HashSet<Key>,
    /// How many there were when those that have ended were left out last.
    pruned: usize,
    /// Those judged from a whole reading: an event may still tell of them.
    caught: HashSet<Key>,
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
            let heard = self.events.hear(if last { Duration::ZERO } else { TURN });
            // Before what was heard is compared: it may be newer.
            self.take_node();
            match heard {
                Ok(Heard::Flows(flows)) => flows.iter().for_each(|flow| self.hear(flow)),
                Ok(Heard::Lost) => {
                    self.report.overruns += 1;
                    self.catch_up();
                }
                Err(err) => {
                    log::error!("{err:#}");
                    std::thread::sleep(TURN);
                }
            }
            let full = self.seen.len() > 2 * self.pruned + REMEMBERED;
            if full || (silent && dumped.elapsed() >= DUMP_EVERY) {
                self.catch_up();
                dumped = Instant::now();
            }
            let due = last || written_at.elapsed() >= TURN;
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
        if self.known_since.elapsed() >= ROUTES_FRESH || self.known.len() >= REMEMBERED {
            self.forget();
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
        self.forget();
    }

    fn forget(&mut self) {
        self.known.clear();
        self.routes.forget();
        self.known_since = Instant::now();
    }

    /// An event tells of `flow`.
    fn hear(&mut self, flow: &Flow) {
        let key = key(flow);
        self.seen.insert(key);
        if !self.caught.remove(&key) {
            self.compare(flow);
        }
    }

    /// Compares what is there and was not heard of.
    fn catch_up(&mut self) {
        let flows = match self.conntrack.dump() {
            Ok(flows) => flows,
            Err(err) => {
                log::warn!("{err:#}");
                return;
            }
        };
        self.caught.clear();
        for flow in &flows {
            if !self.seen.contains(&key(flow)) {
                self.caught.insert(key(flow));
                self.compare(flow);
            }
        }
        self.seen = flows.iter().map(key).collect();
        self.pruned = self.seen.len();
    }

    fn compare(&mut self, flow: &Flow) {
        let Some(node) = self.node.as_ref().filter(|_| !flow.is_mark()) else {
            return;
        };
        let (from, to) = (flow.original.source, flow.reply.source);
        let sealed = u32::from(flow.protocol) == proto::AH;
        let expected = self
            .known
            .entry((from, to, sealed))
            .or_insert_with(|| Expected::of(flow, node, &mut self.routes));
        match judge(flow, expected, node, &mut self.tables) {
            Judgement::Agrees(how) => self.report.agree(how),
            Judgement::Differs { netdp, netfilter } => {
                let example = Example::new(flow, expected.source);
                self.report.differ(netdp, netfilter, example);
            }
        }
    }
}
