//! `netdp monitor`: shows events as they happen.

mod capture;
mod line;
mod names;
mod recent;
mod source;
mod totals;
mod view;

pub(crate) use line::Line;
pub(crate) use recent::{Sources, recent};
pub(crate) use source::recall;

use crate::cli::output;
use crate::events::Kind;
use crate::flows::{Endpoint, PodFilter};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};
use source::{Incoming, Source};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use view::View;

/// Pause before the agent is looked for again that has just started, or ended.
const PAUSE: Duration = Duration::from_millis(200);

/// Format of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// A JSON object on each line.
    Jsonl,
}

/// File or stream to which dropped packets are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Standard output, in place of the lines.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// Options of `netdp monitor`.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub bpffs: PathBuf,
    pub state_dir: PathBuf,
    /// libcni's cache of results.
    pub cni_dir: PathBuf,
    pub pod: Option<PodFilter>,
    pub to: Option<Endpoint>,
    /// The wanted kinds; all if there are none.
    pub kinds: Vec<Kind>,
    /// Events a second of each kind and CPU that the programs are to report at most; 0 for the usual
    /// rate.
    pub rate: u32,
    /// Number of lines after which to end.
    pub count: Option<u64>,
    pub pcap: Option<Destination>,
    pub format: Format,
}

impl Options {
    /// Returns the wanted kinds.
    fn kinds(&self) -> Vec<Kind> {
        if self.kinds.is_empty() {
            return Kind::ALL.to_vec();
        }
        self.kinds.clone()
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            bpffs: &self.bpffs,
            state_dir: &self.state_dir,
            cni_dir: &self.cni_dir,
        }
    }
}

/// Shows events until a signal ends it, `count` lines are shown, or nobody reads the output any more.
///
/// # Errors
/// Returns an error if there is no datapath, or another process reads its events.
pub(crate) fn run(options: &Options) -> Result<()> {
    match show(options) {
        Err(err) if output::is_closed_pipe(&err) => Ok(()),
        other => other,
    }
}

fn show(options: &Options) -> Result<()> {
    let has_packets = |kind: &Kind| matches!(kind, Kind::Drop | Kind::Refused);
    ensure!(
        options.pcap.is_none() || options.kinds().iter().any(has_packets),
        "--pcap writes dropped packets: add drop or refused to --kind"
    );
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("registering a signal")?;
    }
    let mut view = View::new(options)?;
    let mut source = Source::open(options)?;
    view.set_rate(source.rate());
    loop {
        match source.next(view.deadline())? {
            Incoming::Event(event) => view.add(event)?,
            Incoming::Lost(lost) => view.lost(&lost)?,
            Incoming::Nothing => {}
            Incoming::Ended(note) => {
                view.flush()?;
                drop(source);
                eprintln!("netdp: {note}");
                std::thread::sleep(PAUSE);
                source = Source::open(options)?;
                view.set_rate(source.rate());
            }
        }
        view.flush_if_due()?;
        if view.is_done() || ended.load(Ordering::Relaxed) {
            break;
        }
    }
    source.end(&mut view)?;
    view.end()
}
