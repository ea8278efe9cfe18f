//! The agent's side: the thread that passes events on, and those who tell it about some.

use super::hub::{self, Hub};
use super::listener::Commands;
use super::recent::now;
use super::{Event, EventCounters, Kind, Recent, SOCKET, What};
use crate::datapath::lock;
use crate::ends::SharedEnds;
use crate::nat_log::Notices;
use anyhow::{Context as _, Result};
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{mpsc, watch};

/// The agent's events that may wait for the thread.
const WAITING: usize = 16_384;

/// The running thread. It ends with the process.
pub(crate) struct Service {
    sender: Sender,
    /// `Settings::events` as it is to be.
    wanted: watch::Receiver<u32>,
    /// `Settings::events` as it is.
    applied: watch::Sender<u32>,
}

impl Service {
    /// Starts the thread, with the maps pinned below `bpffs`, and its socket in `state_dir`. What is passed on
    /// is kept in `recent`, too. `ends` tells it of mappings that end; `notices` are told of refusals.
    ///
    /// # Errors
    /// Returns an error if the socket can't be made, or the system allows no thread.
    pub(crate) fn start(
        bpffs: &Path,
        state_dir: &Path,
        recent: &Recent,
        ends: &SharedEnds,
        notices: Option<Notices>,
    ) -> Result<Self> {
        let listener = listen(state_dir)?;
        let (events, received) = mpsc::channel(WAITING);
        let (wanted_sender, wanted) = watch::channel(0);
        let (applied, applied_receiver) = watch::channel(0);
        let sender = Sender {
            events,
            kinds: Arc::default(),
            counters: Arc::new(EventCounters::open(bpffs)?),
        };
        let (commands, given) = mpsc::channel(16);
        lock(ends).tell_events(sender.clone());
        let hub = Hub::new(
            (bpffs, state_dir),
            (&sender, received),
            recent,
            Arc::clone(ends),
            notices,
            wanted_sender,
        );
        let commands = Commands::new(commands, applied_receiver);
        std::thread::Builder::new()
            .name("netdp-events".into())
            .spawn(move || {
                if let Err(err) = hub::run(hub, listener, given, commands) {
                    log::error!("events are not passed on any more, nor are notices of refusals to collectors: {err:#}");
                }
            })
            .context("starting the thread for events")?;
        Ok(Self {
            sender,
            wanted,
            applied,
        })
    }

    /// Returns where to tell of events.
    pub(crate) const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Waits until another value of `Settings::events` is wanted, and returns it. Never returns once
    /// the thread has ended. Cancel-safe.
    pub(crate) async fn wanted(&mut self) -> u32 {
        if self.wanted.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.wanted.borrow_and_update()
    }

    /// Records that `Settings::events` has this value.
    pub(crate) fn set_applied(&self, setting: u32) {
        self.applied.send_replace(setting);
    }
}

/// Makes the socket, in the place of what an earlier agent has left.
fn listen(state_dir: &Path) -> Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    let made = || {
        match fs::remove_file(&path) {
            Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        // Nobody else can enter the directory.
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    made().with_context(|| format!("making the socket {}", path.display()))
}

/// The agent's end of the queue of events. Never waits.
#[derive(Clone)]
pub(crate) struct Sender {
    events: mpsc::Sender<Event>,
    /// The kinds that somebody listens to.
    kinds: Arc<AtomicU32>,
    counters: Arc<EventCounters>,
}

impl Sender {
    /// Reports whether somebody listens to a kind.
    pub(crate) fn is_wanted(&self, kind: Kind) -> bool {
        self.kinds.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Returns the counters.
    pub(crate) const fn counters(&self) -> &Arc<EventCounters> {
        &self.counters
    }

    /// Sets the kinds that somebody listens to.
    pub(super) fn set_kinds(&self, kinds: impl IntoIterator<Item = Kind>) {
        let bits = kinds.into_iter().fold(0, |bits, kind| bits | kind.bit());
        self.kinds.store(bits, Ordering::Relaxed);
    }

    /// Tells of an event, now.
    pub(crate) fn send(&self, what: What) {
        let event = Event { time: now(), what };
        let kind = event.kind();
        if !self.is_wanted(kind) {
            return;
        }
        self.counters.add_seen(kind, 1);
        if self.events.try_send(event).is_err() {
            self.counters.add_full(kind, 1);
        }
    }

    /// Counts events of a kind that are lost because a buffer was full, if somebody listens to it.
    pub(crate) fn lost(&self, kind: Kind, n: u64) {
        if self.is_wanted(kind) {
            self.counters.add_seen(kind, n);
            self.counters.add_full(kind, n);
        }
    }
}
