//! Sources of events: the agent's socket, or the ring buffer where no agent runs.

use super::view::View;
use super::{Format, Options, PAUSE};
use crate::datapath;
use crate::events::{
    Dropped, Event, Kind, Lost, LostOfKind, PerKind, Reply, Request, Ring, SOCKET, What, setting,
};
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, bail};
use netdp_common::layout::{EVENT_RATE, event_rate};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time limit of the agent's first line, and of its last ones.
const PATIENCE: Duration = Duration::from_secs(40);

/// Interval at which the ring buffer's reader looks for an agent, and reads what was lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Attempts to get a source while an agent starts or ends.
const ATTEMPTS: u32 = 25;

/// Events that are read at once.
const AT_ONCE: usize = 1024;

/// The next message of a source.
pub(super) enum Incoming {
    Event(Event),
    Lost(Vec<LostOfKind>),
    /// Nothing until the deadline, or a signal came.
    Nothing,
    /// The source has ended; the message says why. Another one may be opened.
    Ended(String),
}

/// A source of events.
pub(super) enum Source {
    Agent(Socket),
    Direct(Box<Direct>),
}

impl Source {
    /// Connects to the agent, or opens the ring buffer where none runs.
    ///
    /// # Errors
    /// Returns an error if there is no datapath, or another process reads its events.
    pub(super) fn open(options: &Options) -> Result<Self> {
        let mut attempt = 0;
        loop {
            let last = attempt == ATTEMPTS;
            match Socket::open(options) {
                Ok(Some(socket)) => return Ok(Self::Agent(socket)),
                Err(err) if last => return Err(err),
                Err(_) => {}
                // A child of an agent that was killed holds its locks until it has executed its program.
                Ok(None) => match Direct::open(options) {
                    Ok(Some(direct)) => return Ok(Self::Direct(Box::new(direct))),
                    Err(err) if last => return Err(err),
                    Ok(None) if last => bail!("an agent is starting; try again once it runs"),
                    Ok(None) | Err(_) => {}
                },
            }
            attempt += 1;
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns the events a second, of each kind and CPU, that are reported at most.
    pub(super) const fn rate(&self) -> u32 {
        match self {
            Self::Agent(socket) => socket.rate,
            Self::Direct(direct) => direct.rate,
        }
    }

    /// Waits for what comes next, until a deadline or a signal.
    ///
    /// # Errors
    /// Returns an error if the source can't be read.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Incoming> {
        match self {
            Self::Agent(socket) => socket.next(deadline),
            Self::Direct(direct) => direct.next(deadline),
        }
    }

    /// Ends the source, after having shown what is still to come.
    ///
    /// # Errors
    /// Returns an error if the source can't be read.
    pub(super) fn end(self, view: &mut View) -> Result<()> {
        match self {
            Self::Agent(socket) => socket.end(view),
            Self::Direct(direct) => direct.end(view),
        }
    }
}

/// Waits until something can be read, a signal comes, or the deadline is over.
fn wait(fd: BorrowedFd<'_>, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, so that it does not return just before the deadline.
    let left = left + Duration::from_millis(1);
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(err) => Err(err).context("waiting for events"),
    }
}

/// A connection to the agent.
pub(super) struct Socket {
    stream: UnixStream,
    /// Bytes that were received, from the first line on that was not taken.
    received: Vec<u8>,
    /// Number of them that were taken.
    taken: usize,
    rate: u32,
}

impl Socket {
    /// Connects; `None` if no agent listens.
    fn open(options: &Options) -> Result<Option<Self>> {
        let path = options.state_dir.join(SOCKET);
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(err)
                if matches!(
                    err.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(err) => {
                return Err(err).with_context(|| format!("connecting to {}", path.display()));
            }
        };
        let mut socket = Self::over(stream)?;
        socket.request(&Request::Listen {
            kinds: options.kinds(),
            rate: options.rate,
        })?;
        match socket.reply(Instant::now() + PATIENCE)? {
            Some(Reply::Listening { rate }) => {
                tell_begin(options, rate, "");
                socket.rate = rate;
                Ok(Some(socket))
            }
            Some(Reply::Error { text }) => bail!("the agent refused: {text}"),
            _ => bail!("the agent does not answer at {}", path.display()),
        }
    }

    fn over(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            received: Vec::new(),
            taken: 0,
            rate: EVENT_RATE,
        })
    }

    fn request(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let sent = self.stream.write_all(line.as_bytes());
        sent.context("asking the agent for events")
    }

    fn next(&mut self, deadline: Instant) -> Result<Incoming> {
        Ok(match self.read(deadline)? {
            Read::Line(Reply::Event(event)) => Incoming::Event(event),
            Read::Line(Reply::Lost(lost)) => Incoming::Lost(lost),
            Read::Line(Reply::Error { text }) => Incoming::Ended(format!("the agent: {text}")),
            Read::Line(_) | Read::Nothing => Incoming::Nothing,
            Read::End => Incoming::Ended("the agent has ended".into()),
        })
    }

    /// Reads a reply; `None` if there is none until the deadline.
    fn reply(&mut self, deadline: Instant) -> Result<Option<Reply>> {
        while Instant::now() < deadline {
            match self.read(deadline)? {
                Read::Line(reply) => return Ok(Some(reply)),
                Read::Nothing => {}
                Read::End => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Reads a line; returns early if a signal comes.
    fn read(&mut self, deadline: Instant) -> Result<Read> {
        if let Some(reply) = self.line()? {
            return Ok(Read::Line(reply));
        }
        wait(self.stream.as_fd(), deadline)?;
        self.received.drain(..self.taken);
        self.taken = 0;
        let mut more = [0; 64 * 1024];
        match self.stream.read(&mut more) {
            Ok(0) => return Ok(Read::End),
            Ok(read) => self.received.extend(more.get(..read).unwrap_or_default()),
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(err) if err.kind() == ErrorKind::ConnectionReset => return Ok(Read::End),
            Err(err) => return Err(err).context("reading the agent's events"),
        }
        Ok(self.line()?.map_or(Read::Nothing, Read::Line))
    }

    /// Takes a complete line.
    fn line(&mut self) -> Result<Option<Reply>> {
        let rest = self.received.get(self.taken..).unwrap_or_default();
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = rest.get(..end).unwrap_or_default();
        let reply = serde_json::from_slice(line)
            .context("the agent has another version: its events can't be read")?;
        self.taken += end + 1;
        Ok(Some(reply))
    }

    fn end(mut self, view: &mut View) -> Result<()> {
        // It may have ended meanwhile.
        let _ = self.stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + PATIENCE;
        while let Some(reply) = self.reply(deadline)? {
            match reply {
                Reply::Event(event) => view.add(event)?,
                Reply::Lost(lost) => view.lost(&lost)?,
                _ => return Ok(()),
            }
        }
        eprintln!("netdp: the agent has not sent all of its last events");
        Ok(())
    }
}

/// The result of reading from the socket.
enum Read {
    Line(Reply),
    Nothing,
    End,
}

/// Asks the agent for something it remembers.
///
/// # Errors
/// Returns an error if no agent runs, or it does not answer.
fn ask(state_dir: &Path, request: &Request) -> Result<Reply> {
    let path = state_dir.join(SOCKET);
    let stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "connecting to the agent, which remembers events, at {}",
            path.display()
        )
    })?;
    let mut socket = Socket::over(stream)?;
    socket.request(request)?;
    let reply = socket.reply(Instant::now() + PATIENCE)?;
    reply.context("the agent does not answer")
}

/// Returns the last refused or dropped packet with the number of an event.
///
/// # Errors
/// Returns an error if no agent runs, or it does not remember any.
pub(crate) fn recall(state_dir: &Path, id: u16) -> Result<Dropped> {
    match ask(state_dir, &Request::Recall { id })? {
        Reply::Recalled(Event {
            what: What::Refused(dropped) | What::Drop(dropped),
            ..
        }) => Ok(dropped),
        Reply::Error { text } => bail!("{text}"),
        _ => bail!("the agent is of another version"),
    }
}

/// Says on standard error what is listened to.
fn tell_begin(options: &Options, rate: u32, without: &str) {
    if options.format == Format::Text {
        let kinds: Vec<_> = options.kinds().iter().map(|kind| kind.name()).collect();
        let kinds = kinds.join(", ");
        eprintln!(
            "netdp: listening to {kinds}, up to {rate} a second of each on each CPU{without}"
        );
    } else {
        eprintln!("netdp: listening{without}");
    }
}

/// The ring buffer, read by this process.
pub(super) struct Direct {
    ring: Ring,
    events: VecDeque<Event>,
    /// Numbers of lost events, as last read.
    lost: PerKind<Lost>,
    looked: Instant,
    rate: u32,
    kinds: Vec<Kind>,
    bpffs: PathBuf,
    state_dir: StateDir,
}

impl Direct {
    /// Opens the ring buffer, and has the programs report; `None` if an agent is starting.
    fn open(options: &Options) -> Result<Option<Self>> {
        // First, for its better message.
        drop(datapath::open(&options.bpffs)?);
        let ring = match Ring::open(&options.bpffs, &options.state_dir)? {
            Ok(ring) => ring,
            Err(locked) => bail!(
                "no agent runs, and process {} reads the programs' events: end that netdp monitor",
                locked.pid
            ),
        };
        let lost = ring.lost()?;
        let kinds = options.kinds();
        // The reports of ends wait for the next agent's log, and no sweep runs.
        let mut reported = kinds.clone();
        reported.retain(|kind| *kind != Kind::End);
        let setting = setting(&reported, options.rate);
        let direct = Self {
            ring,
            events: VecDeque::new(),
            lost,
            looked: Instant::now(),
            rate: event_rate(setting),
            bpffs: options.bpffs.clone(),
            state_dir: StateDir::at(&options.state_dir),
            kinds,
        };
        if !direct.set(setting)? {
            return Ok(None);
        }
        tell_begin(
            options,
            direct.rate,
            "; no agent runs: no end, config, finding and agent",
        );
        Ok(Some(direct))
    }

    /// Has the programs report; returns `false` if an agent runs, which does that. Only one process
    /// at a time writes the settings: whoever holds the agent's lock.
    fn set(&self, setting: u32) -> Result<bool> {
        let Some(_lock) = self.state_dir.lock()? else {
            return Ok(false);
        };
        datapath::open(&self.bpffs)?.set_events(setting)?;
        Ok(true)
    }

    fn next(&mut self, deadline: Instant) -> Result<Incoming> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Incoming::Event(event));
        }
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            if self.state_dir.lock_holder().is_some() {
                return Ok(Incoming::Ended("an agent has started".into()));
            }
            let lost = self.more_lost()?;
            if !lost.is_empty() {
                return Ok(Incoming::Lost(lost));
            }
        }
        wait(self.ring.as_fd(), deadline.min(self.looked + LOOK_EVERY))?;
        self.take()?;
        Ok(self
            .events
            .pop_front()
            .map_or(Incoming::Nothing, Incoming::Event))
    }

    fn take(&mut self) -> Result<usize> {
        let (events, kinds) = (&mut self.events, &self.kinds);
        self.ring.take(AT_ONCE, |event| {
            if kinds.contains(&event.kind()) {
                events.push_back(event);
            }
        })
    }

    /// Returns what was lost since that was read last.
    fn more_lost(&mut self) -> Result<Vec<LostOfKind>> {
        let now = self.ring.lost()?;
        let mut more = PerKind::<Lost>::default();
        for kind in &self.kinds {
            let (now, before) = (&now[*kind], &self.lost[*kind]);
            more[*kind] = Lost {
                limited: now.limited.saturating_sub(before.limited),
                full: now.full.saturating_sub(before.full),
                reader: 0,
            };
        }
        self.lost = now;
        Ok(more.list())
    }

    fn end(mut self, view: &mut View) -> Result<()> {
        self.set(0)?;
        loop {
            let taken = self.take()?;
            for event in std::mem::take(&mut self.events) {
                view.add(event)?;
            }
            if taken < AT_ONCE {
                break;
            }
        }
        view.lost(&self.more_lost()?)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // An agent that has started meanwhile has done that. Where it fails, the programs report
        // to nobody until the next agent starts.
        if let Err(err) = self.set(0) {
            eprintln!("netdp: the programs go on to report events: {err:#}");
        }
    }
}
