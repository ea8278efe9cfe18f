//! `netdp flows`: live mappings, filtered, sorted and added up, and the flows that keep the pod's
//! address.
//!
//! [`filter`] chooses flows, [`list`] orders and [`rows`] prints them, [`summary`] adds them up,
//! [`kept`] lists what is not translated, [`rates`] compares two looks.

mod filter;
mod kept;
mod list;
mod rates;
mod rows;
mod summary;

#[cfg(test)]
mod tests;

use crate::cli::output;
use crate::datapath::{self, Maps};
use crate::forecast::PortsPast;
use crate::pods::{Names, Owner};
use crate::state_dir::StateDir;
use crate::time::now_milliseconds;
use anyhow::Result;
use netdp_common::flow::TICK_SHIFT;
use netdp_common::layout::{Addr, Tuple};
use rates::Rates;
use std::cell::RefCell;
use std::io::{IsTerminal as _, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use filter::{Endpoint, Filter, Idle, PodFilter, parse_protocol};
pub(crate) use list::Sort;
pub(crate) use summary::By;

/// Version of the JSON output.
const SCHEMA: u32 = 1;

/// Format of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// One JSON document.
    Json,
    /// A JSON document on each line, written as mappings are read.
    Jsonl,
    /// Comma-separated values with a header (RFC 4180), written as mappings are read.
    Csv,
}

/// The view that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Mappings.
    List,
    /// Sums of mappings.
    Summary(By),
    /// Flows that keep the pod's address.
    Kept,
}

/// Options of `netdp flows`.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub filter: Filter,
    pub view: View,
    pub sort: Option<Sort>,
    /// The most rows.
    pub limit: Option<usize>,
    /// Time between two looks, if there is more than one.
    pub watch: Option<Duration>,
    pub format: Format,
    /// libcni's cache of results.
    pub cni_dir: PathBuf,
}

/// Names of pods, and the time of the look that they are wanted for.
#[derive(Debug, Clone, Copy)]
struct Timed<'a> {
    names: &'a Names,
    /// The time of the look, in milliseconds since 1970.
    at: u64,
}

impl<'a> Timed<'a> {
    /// Returns the pod that had a tuple's source address so many ticks before the look.
    fn owner(&self, tuple: &Tuple, ago: u32) -> Option<Owner<'a>> {
        self.names.owner(tuple.src.into(), self.time(ago))
    }

    /// Returns the time so many ticks before the look, in milliseconds since 1970.
    fn time(&self, ago: u32) -> u64 {
        let milliseconds = (u64::from(ago) << TICK_SHIFT) / 1_000_000;
        self.at.saturating_sub(milliseconds)
    }
}

/// What is kept of earlier looks.
#[derive(Debug, Default)]
struct Past {
    /// For forecasts.
    ports: PortsPast,
    rates: Rates,
}

/// Inputs of all views.
struct Look<'a> {
    maps: &'a Maps,
    bpffs: &'a Path,
    state_dir: &'a StateDir,
    options: &'a Options,
    names: Timed<'a>,
    /// The looks before.
    past: &'a RefCell<Past>,
}

/// Prints flows. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// Returns an error if the maps do not exist or can't be read, or if there is too much to sort.
pub(crate) fn print(bpffs: &Path, state_dir: &Path, options: &Options) -> Result<()> {
    match watch(bpffs, &StateDir::at(state_dir), options) {
        Err(err) if output::is_closed_pipe(&err) => Ok(()),
        other => other,
    }
}

/// Writes flows as they are now.
///
/// # Errors
/// Returns the errors of [`print()`].
pub(crate) fn write(
    bpffs: &Path,
    state_dir: &StateDir,
    options: &Options,
    out: &mut dyn Write,
) -> Result<()> {
    write_after(&RefCell::default(), bpffs, state_dir, options, out)
}

/// Writes flows as they are now, after other looks.
fn write_after(
    past: &RefCell<Past>,
    bpffs: &Path,
    state_dir: &StateDir,
    options: &Options,
    out: &mut dyn Write,
) -> Result<()> {
    let maps = datapath::open(bpffs)?;
    let look = Look {
        maps: &maps,
        bpffs,
        state_dir,
        options,
        names: Timed {
            names: &Names::load(&options.cni_dir, state_dir),
            at: now_milliseconds(),
        },
        past,
    };
    look.print(out)
}

/// Looks once, or again and again.
fn watch(bpffs: &Path, state_dir: &StateDir, options: &Options) -> Result<()> {
    let clears = options.format == Format::Text && std::io::stdout().is_terminal();
    let past = RefCell::default();
    loop {
        let begin = Instant::now();
        let mut out = output::stream();
        if options.watch.is_some() && clears {
            // To the first column of the first line, and all below erased (ECMA-48 8.3.21, 8.3.39).
            write!(out, "\x1b[H\x1b[J")?;
        }
        write_after(&past, bpffs, state_dir, options, &mut out)?;
        out.flush()?;
        let Some(interval) = options.watch else {
            return Ok(());
        };
        // A walk through very many mappings must not take a CPU.
        std::thread::sleep(interval.max(begin.elapsed() * 10));
        if options.format == Format::Text && !clears {
            writeln!(out)?;
        }
    }
}

impl Look<'_> {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        match self.options.view {
            View::List => list::print(self, out)?,
            View::Summary(by) => summary::print(self, by, out)?,
            View::Kept => kept::print(self, out)?,
        }
        if self.options.format == Format::Text && self.state_dir.lock_holder().is_none() {
            writeln!(
                out,
                "no agent is running: mappings do not end at their timeout"
            )?;
        }
        Ok(())
    }
}

/// Formats an address with its port or ICMP identifier.
fn endpoint(address: Addr, id: u16) -> String {
    SocketAddr::new(IpAddr::from(address), id).to_string()
}

/// Formats a time in milliseconds since 1970 as RFC 3339 in UTC; `None` if that can't represent it.
fn rfc3339(milliseconds: u64) -> Option<String> {
    let milliseconds = i64::try_from(milliseconds).ok()?;
    let time = jiff::Timestamp::from_millisecond(milliseconds).ok()?;
    Some(format!("{time:.3}"))
}
