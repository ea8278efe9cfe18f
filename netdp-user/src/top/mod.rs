//! `netdp top`: a live screen of the datapath.
//!
//! [`sampler`] reads the maps at intervals, [`view`] turns two samples into rates, rows and forecasts,
//! [`screen`] draws them, and [`keys`] holds what the user has chosen.

mod keys;
pub(crate) mod numbers;
mod run_time;
mod sampler;
mod screen;
mod view;

#[cfg(test)]
mod tests;

use anyhow::{Context as _, Result, bail, ensure};
use crossterm::event::{self, Event, KeyEventKind};
use keys::Keys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::backend::TestBackend;
use ratatui::{DefaultTerminal, Terminal};
use sampler::{Request, Sampler};
use signal_hook::consts::SIGTERM;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};
use view::View;

pub(crate) use view::Sort;

/// Time for which the screen waits for a key before it looks for a new sample.
const POLL: Duration = Duration::from_millis(100);

/// Time that crossterm may take to read what was typed; without any it reads nothing.
const PARSE: Duration = Duration::from_millis(1);

/// Size of the frame of `--once`, in columns and rows, where the terminal does not tell.
const FRAME: (u16, u16) = (80, 24);

/// Options of `netdp top`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Time between two samples.
    pub interval: Duration,
    /// The column by which rows are sorted at first.
    pub sort: Sort,
    /// The tab that is open at first, from 0.
    pub tab: usize,
}

/// Directories that `netdp top` reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths<'a> {
    /// Directory of the pinned maps.
    pub bpffs: &'a Path,
    /// State directory of the agent.
    pub state_dir: &'a Path,
    /// libcni's cache of results.
    pub cni_dir: &'a Path,
}

impl Paths<'_> {
    fn sampler(&self) -> Result<Sampler> {
        Sampler::open(self.bpffs, self.state_dir, self.cni_dir)
    }
}

/// Prints one frame, after two samples.
///
/// # Errors
/// Returns an error if the maps do not exist or cannot be read.
pub(crate) fn once(paths: &Paths<'_>, options: &Options) -> Result<String> {
    let mut sampler = paths.sampler()?;
    let (mut view, mut keys) = (View::default(), Keys::new(options));
    view.add(sampler.sample(&view.request(&keys))?);
    std::thread::sleep(options.interval);
    view.add(sampler.sample(&view.request(&keys))?);
    let (columns, rows) = crossterm::terminal::size().unwrap_or(FRAME);
    let size = (columns.max(40), rows.max(15));
    frame(&view, &mut keys, size)
}

/// Draws one frame as text, without blanks at the ends of lines.
fn frame(view: &View, keys: &mut Keys, (columns, rows): (u16, u16)) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows))?;
    terminal.draw(|frame| screen::draw(frame, view, keys))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for row in 0..rows {
        let cells = (0..columns).filter_map(|column| buffer.cell((column, row)));
        let line: String = cells.map(ratatui::buffer::Cell::symbol).collect();
        text += line.trim_end();
        text += "\n";
    }
    Ok(format!("{}\n", text.trim_end()))
}

/// Runs the screen until the user ends it, and leaves the terminal as it was.
///
/// # Errors
/// Returns an error if the maps do not exist or cannot be read, or if standard output is no terminal.
pub(crate) fn run(paths: &Paths<'_>, options: &Options) -> Result<()> {
    let sampler = paths.sampler()?;
    let ended = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&ended)).context("registering a signal")?;
    let (ask, asked) = channel();
    let (tell, told) = channel();
    let reader = std::thread::Builder::new()
        .name("netdp-top".into())
        .spawn(move || answer(sampler, &asked, &tell))
        .context("starting a thread")?;
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    ensure!(
        is_terminal,
        "netdp top needs a terminal; `netdp top --once` prints one frame wherever its output goes"
    );
    let mut terminal = ratatui::try_init().context("setting the terminal up")?;
    let mut screen = Screen {
        keys: Keys::new(options),
        view: View::default(),
        ask,
        told,
        options,
    };
    let shown = screen.show(&mut terminal, &ended);
    ratatui::restore();
    drop(screen);
    // It may be in the middle of a walk, whose result nobody needs any more.
    drop(reader);
    shown
}

/// Takes a sample for each request, until nobody asks any more.
fn answer(mut sampler: Sampler, asked: &Receiver<Request>, tell: &Sender<Result<sampler::Sample>>) {
    while let Ok(request) = asked.recv() {
        if tell.send(sampler.sample(&request)).is_err() {
            return;
        }
    }
}

/// The screen, and the thread that takes samples.
struct Screen<'a> {
    keys: Keys,
    view: View,
    ask: Sender<Request>,
    told: Receiver<Result<sampler::Sample>>,
    options: &'a Options,
}

impl Screen<'_> {
    fn show(&mut self, terminal: &mut DefaultTerminal, ended: &AtomicBool) -> Result<()> {
        let mut due = Some(Instant::now());
        loop {
            if due.is_some_and(|due| due <= Instant::now()) && !self.keys.is_paused() {
                due = None;
                let request = self.view.request(&self.keys);
                self.ask.send(request).context("the reading thread ended")?;
            }
            match self.told.try_recv() {
                Ok(sample) => {
                    let sample = sample?;
                    // A walk through very many mappings takes a while: it must not take a CPU.
                    let pause = self.options.interval.max(sample.took * 10);
                    due = Some(Instant::now() + pause);
                    self.view.add(sample);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => bail!("the reading thread ended"),
            }
            terminal.draw(|frame| screen::draw(frame, &self.view, &mut self.keys))?;
            match wait_for_input()? {
                Input::Some => self.read_keys()?,
                Input::None => {}
                Input::Ended => return Ok(()),
            }
            if self.keys.is_over() || ended.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Handles the keys that were pressed.
    fn read_keys(&mut self) -> Result<()> {
        while event::poll(PARSE).context("reading the keyboard")? {
            if let Event::Key(key) = event::read().context("reading the keyboard")?
                && key.kind != KeyEventKind::Release
            {
                self.keys.press(key);
            }
        }
        Ok(())
    }
}

/// Result of a wait for input.
enum Input {
    None,
    Some,
    /// The terminal is gone.
    Ended,
}

/// Waits for at most [`POLL`]. Not left to crossterm, which reads a terminal that is gone for ever.
fn wait_for_input() -> Result<Input> {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(POLL).context("the time to wait for a key")?;
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        // A changed size of the window.
        Err(Errno::EINTR) => return Ok(Input::None),
        Err(err) => return Err(err).context("waiting for a key"),
    }
    let found = fds.iter().filter_map(PollFd::revents).next();
    let found = found.unwrap_or(PollFlags::empty());
    Ok(
        if found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            Input::Ended
        } else if found.contains(PollFlags::POLLIN) {
            Input::Some
        } else {
            Input::None
        },
    )
}
