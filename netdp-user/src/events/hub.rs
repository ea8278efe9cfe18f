//! The thread that reads all events and passes them on to listeners.

use super::listener::{self, Command, Commands, Given};
use super::memory::Memory;
use super::service::Sender;
use super::{Event, Kind, Lost, PerKind, Recent, Reply, Ring, What, fills_ring, setting};
use crate::datapath::lock;
use crate::ends::SharedEnds;
use crate::nat_log::Notices;
use anyhow::{Context as _, Result};
use netdp_common::layout::EVENT_RATE;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};

/// Lines that may wait for a listener: some 4 MB if all of them are drops.
const WAITING: usize = 8192;

/// The most listeners at once.
const MOST_LISTENERS: usize = 32;

/// Records that are read before listeners get their turn.
const AT_ONCE: usize = 1024;

/// Rounds that empty a full ring buffer, of some 13,000 begins.
const ROUNDS: usize = 16;

/// Interval at which the programs' counts of what they left out are read.
const ACCOUNT_EVERY: Duration = Duration::from_millis(500);

/// Interval at which programs' reports of ends are taken: their ring buffer has room for some 6,200.
const ENDS_EVERY: Duration = Duration::from_millis(100);

/// Numbers of events that were lost for a listener since it was told last.
pub(super) type LostShare = Arc<Mutex<PerKind<Lost>>>;

struct Listener {
    number: u64,
    kinds: Vec<Kind>,
    rate: u32,
    lines: mpsc::Sender<Arc<str>>,
    lost: LostShare,
}

/// The state of the thread.
pub(super) struct Hub {
    bpffs: PathBuf,
    state_dir: PathBuf,
    /// Open while somebody listens to what is in it.
    ring: Option<AsyncFd<Ring>>,
    /// Numbers of events that were lost before they came here, as last read.
    lost: PerKind<Lost>,
    listeners: Vec<Listener>,
    next: u64,
    memory: Memory,
    recent: Recent,
    ends: SharedEnds,
    /// The collector that is told of refusals, if there is one.
    notices: Option<Notices>,
    sender: Sender,
    /// The events that are told by it.
    events: mpsc::Receiver<Event>,
    wanted: watch::Sender<u32>,
}

/// Runs the thread until the agent ends.
///
/// # Errors
/// Returns an error if the runtime can't be started, or the ring buffer can't be read.
pub(super) fn run(
    mut hub: Hub,
    socket: UnixListener,
    mut commands: mpsc::Receiver<Command>,
    given: Commands,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    LocalSet::new().block_on(&runtime, async move {
        let socket = tokio::net::UnixListener::from_std(socket)?;
        tokio::task::spawn_local(listener::accept(socket, given));
        let mut account = interval(ACCOUNT_EVERY);
        account.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends = interval(ENDS_EVERY);
        ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        hub.update_wanted();
        loop {
            tokio::select! {
                taken = take(&mut hub.ring) => {
                    hub.pass_on_all(taken?);
                    hub.count_tests();
                    tokio::task::yield_now().await;
                }
                Some(event) = hub.events.recv() => hub.pass_on(event),
                command = commands.recv() => match command {
                    Some(command) => hub.handle(command),
                    None => return Ok(()),
                },
                _ = account.tick(), if hub.is_heard() => hub.account()?,
                // Whoever tells of many ends takes the reports, too.
                _ = ends.tick(), if hub.sender.is_wanted(Kind::End) => {
                    if let Ok(mut ends) = hub.ends.try_lock() {
                        ends.take();
                    }
                }
            }
        }
    })
}

/// Waits for events in the ring buffer, and takes some. Cancel-safe: nothing is awaited once any are
/// taken.
async fn take(ring: &mut Option<AsyncFd<Ring>>) -> Result<Vec<Event>> {
    let Some(ring) = ring else {
        return std::future::pending().await;
    };
    let mut ready = ring
        .readable_mut()
        .await
        .context("waiting for the programs' events")?;
    let mut events = Vec::new();
    let taken = ready.get_inner_mut().take(AT_ONCE, |it| events.push(it))?;
    if taken < AT_ONCE {
        ready.clear_ready();
    }
    Ok(events)
}

impl Hub {
    pub(super) fn new(
        (bpffs, state_dir): (&Path, &Path),
        (sender, events): (&Sender, mpsc::Receiver<Event>),
        recent: &Recent,
        ends: SharedEnds,
        notices: Option<Notices>,
        wanted: watch::Sender<u32>,
    ) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
            state_dir: state_dir.to_owned(),
            ring: None,
            lost: PerKind::default(),
            listeners: Vec::new(),
            next: 0,
            memory: Memory::default(),
            recent: recent.clone(),
            ends,
            notices,
            sender: sender.clone(),
            events,
            wanted,
        }
    }

    /// Reports whether anyone listens.
    fn is_heard(&self) -> bool {
        self.notices.is_some() || !self.listeners.is_empty()
    }

    fn pass_on_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.pass_on(event);
        }
    }

    /// Passes an event on to those who listen to its kind.
    fn pass_on(&mut self, mut event: Event) {
        self.memory.remember(&mut event);
        self.recent.passed_on(&event);
        if let (Some(notices), What::Refused(dropped)) = (&mut self.notices, &event.what) {
            notices.refused(event.time, dropped);
        }
        let kind = event.kind();
        let mut line: Option<Arc<str>> = None;
        for listener in &self.listeners {
            if !listener.kinds.contains(&kind) {
                continue;
            }
            let line = line.get_or_insert_with(|| Reply::Event(event.clone()).line().into());
            if listener.lines.try_send(Arc::clone(line)).is_err() {
                locked(&listener.lost)[kind].reader += 1;
                self.sender.counters().add_reader(kind);
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Listen { kinds, rate, reply } => {
                // A listener that is gone meanwhile leaves by itself.
                let _ = reply.send(self.listen(kinds, rate));
            }
            Command::Settle { reply } => {
                let settled = self.settle();
                if let Err(err) = settled {
                    log::warn!("reading the programs' events: {err:#}");
                }
                let _ = reply.send(());
            }
            Command::Leave { number } => {
                self.listeners.retain(|listener| listener.number != number);
                self.update_wanted();
            }
            Command::Recall { id, reply } => {
                let _ = reply.send(self.memory.recall(id).cloned());
            }
        }
    }

    /// Adds a listener. Whatever happens from here on is passed on to it, or is counted as lost.
    fn listen(&mut self, kinds: Vec<Kind>, rate: u32) -> Result<Given, String> {
        if self.listeners.len() >= MOST_LISTENERS {
            return Err(format!("{MOST_LISTENERS} listen already"));
        }
        let setting = setting(&kinds, rate);
        let opened = match fills_ring(setting) {
            true => self.open(),
            false => Ok(()),
        };
        opened
            .and_then(|()| self.settle())
            .map_err(|err| format!("{err:#}"))?;
        let (lines, received) = mpsc::channel(WAITING);
        let lost = LostShare::default();
        self.next += 1;
        self.listeners.push(Listener {
            number: self.next,
            kinds,
            rate,
            lines,
            lost: Arc::clone(&lost),
        });
        self.update_wanted();
        Ok(Given {
            number: self.next,
            lines: received,
            lost,
            setting,
        })
    }

    fn open(&mut self) -> Result<()> {
        if self.ring.is_some() {
            return Ok(());
        }
        let opened = Ring::open(&self.bpffs, &self.state_dir)?;
        let ring = opened.map_err(|locked| {
            anyhow::anyhow!("process {} reads the programs' events", locked.pid)
        })?;
        // SAFETY: the ring buffer owns its descriptor, and returns the same one for as long as it
        // lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|err| anyhow::anyhow!("watching the programs' events: {err}"))?;
        self.ring = Some(ring);
        self.count_tests();
        Ok(())
    }

    /// Closes the ring buffer, to which nobody listens.
    fn close(&mut self) {
        if let Some(ring) = &mut self.ring
            && let Err(err) = ring.get_mut().discard()
        {
            log::debug!("discarding the programs' events: {err:#}");
        }
        self.count_tests();
        self.ring = None;
    }

    /// Passes on what is in the ring buffers and the queue, and accounts for what is not.
    fn settle(&mut self) -> Result<()> {
        // A flood may fill it as quickly as it is read: what is left then belongs to the loop.
        for _ in 0..ROUNDS {
            let mut events = Vec::new();
            if let Some(ring) = &mut self.ring {
                ring.get_mut().take(AT_ONCE, |it| events.push(it))?;
            }
            let taken = events.len();
            self.pass_on_all(events);
            if taken < AT_ONCE {
                break;
            }
        }
        self.count_tests();
        if self.sender.is_wanted(Kind::End) {
            lock(&self.ends).take();
        }
        while let Ok(event) = self.events.try_recv() {
            self.pass_on(event);
        }
        self.account()
    }

    /// Takes events of the self-check out of the counts.
    fn count_tests(&mut self) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        let tests = ring.get_mut().take_tests();
        for kind in Kind::ALL {
            self.sender.counters().add_tests(kind, tests[kind]);
        }
    }

    /// Tells listeners what was lost before it came here.
    fn account(&mut self) -> Result<()> {
        let counters = Arc::clone(self.sender.counters());
        if self.ring.is_none()
            && fills_ring(*self.wanted.borrow())
            && let Err(err) = self.open()
        {
            // A netdp monitor that ran without an agent may have it for a moment.
            log::debug!("listening to refusals: {err:#}");
        }
        for kind in Kind::ALL {
            let (_, now) = counters.of(kind)?;
            let before = std::mem::replace(&mut self.lost[kind], now);
            let more = Lost {
                limited: now.limited.saturating_sub(before.limited),
                full: now.full.saturating_sub(before.full),
                reader: 0,
            };
            if more.is_none() {
                continue;
            }
            for listener in &self.listeners {
                if listener.kinds.contains(&kind) {
                    locked(&listener.lost)[kind].add(&more);
                }
            }
        }
        Ok(())
    }

    /// Has the programs and the agent report what is listened to.
    fn update_wanted(&mut self) {
        let listeners = &self.listeners;
        let refused = self.notices.iter().map(|_| Kind::Refused);
        let wanted = listeners.iter().flat_map(|it| &it.kinds).copied();
        let kinds: Vec<_> = wanted.chain(refused).collect();
        // The usual rate is one, too: a lower one must not take events from those who want it.
        let rates = listeners.iter().map(|listener| listener.rate);
        let setting = setting(&kinds, most_of(rates, self.notices.is_some()));
        if kinds.contains(&Kind::End) && !self.sender.is_wanted(Kind::End) {
            // Older reports belong to the log, or to nobody.
            lock(&self.ends).take();
        }
        self.recent.set_heard(&kinds);
        self.sender.set_kinds(kinds);
        if !fills_ring(setting) {
            self.close();
        }
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != setting;
            *wanted = setting;
            differs
        });
    }
}

/// Returns the rate that is enough for listeners of these rates, of which 0 is the usual one, and for notices;
/// 0 if nobody listens.
fn most_of(rates: impl Iterator<Item = u32>, with_notices: bool) -> u32 {
    let of_notices = with_notices.then_some(0);
    let usual = |rate| if rate == 0 { EVENT_RATE } else { rate };
    rates.chain(of_notices).map(usual).max().unwrap_or(0)
}

/// Returns what was lost for a listener.
pub(super) fn locked(lost: &LostShare) -> std::sync::MutexGuard<'_, PerKind<Lost>> {
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::most_of;
    use netdp_common::layout::EVENT_RATE;

    #[test]
    fn a_low_rate_takes_no_events_from_others() {
        let most = |rates: &[u32], with_notices| most_of(rates.iter().copied(), with_notices);
        assert_eq!(most(&[], false), 0);
        assert_eq!(most(&[1], false), 1);
        assert_eq!(most(&[1, 0], false), EVENT_RATE);
        assert_eq!(most(&[1], true), EVENT_RATE);
        assert_eq!(most(&[EVENT_RATE + 1], true), EVENT_RATE + 1);
    }
}
