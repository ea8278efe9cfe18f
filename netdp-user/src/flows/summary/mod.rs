//! Mappings added up by pod, destination, prefix, state or uplink.

mod print;
mod sums;

#[cfg(test)]
mod tests;

use super::filter::Policy;
use super::list::{Sort, each};
use super::{Format, Look};
use crate::datapath::Destination;
use crate::report::Report;
use anyhow::{Result, bail, ensure};
use print::{Summary, write};
use std::io::Write;
use std::time::Instant;
use sums::{Key, Row, Sums};

/// Destinations, the first of the order, whose ports are forecast.
const FORECAST: usize = 1000;

/// Property by which mappings are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// The pod that had the source address when the mapping began.
    Pod,
    /// Protocol, address and port of the destination, and the address that it sees.
    Destination,
    /// The prefix of the rule that decides about the destination.
    Prefix,
    /// The mapping's state.
    State,
    /// The interface by which the pod's packets leave.
    Uplink,
}

/// Prints the sums of the mappings that pass the filters.
///
/// # Errors
/// Returns an error if a map can't be read, the output can't be written, or an option makes no sense
/// here.
pub(super) fn print(look: &Look<'_>, by: By, out: &mut dyn Write) -> Result<()> {
    let options = look.options;
    ensure!(
        options.format != Format::Csv,
        "--summary has no CSV; give -o jsonl"
    );
    if let Some(Sort::Age | Sort::Idle | Sort::Rate) = options.sort {
        bail!("--summary sorts by mappings, or with --sort by bytes or packets");
    }
    let begin = Instant::now();
    let policy = match by {
        By::Prefix => Some(Policy::read(look.maps)?),
        _ => None,
    };
    let mut sums = Sums::new(by);
    let counts = each(look, |flow| {
        let owner = look.names.owner(&flow.tuple, flow.age);
        sums.add(flow, owner, policy.as_ref());
        Ok(())
    })?;
    let filter = &options.filter;
    let is_whole = filter.pod.is_none() && filter.states.is_empty() && filter.idle.is_none();
    let ports = match by {
        // A part of a destination's mappings would look like free ports.
        By::Destination if is_whole => Some(look.maps.ports_of_destination()?),
        _ => None,
    };
    let uplinks = match by {
        By::Uplink => Report::read(look.state_dir).map_or_else(|_| Vec::new(), |it| it.uplinks),
        _ => Vec::new(),
    };
    let names: Vec<_> = uplinks
        .into_iter()
        .map(|uplink| (uplink.ifindex, uplink.name))
        .collect();
    let rows = sums.rows(options.sort);
    let past = &mut look.past.borrow_mut().ports;
    if ports.is_some() {
        let used = rows.iter().take(FORECAST).filter_map(Row::used);
        past.add_used(begin, used);
    }
    let summary = Summary {
        by,
        sums: &sums,
        rows,
        limit: options.limit,
        counts,
        is_filtered: !filter.is_empty(),
        took: begin.elapsed(),
        ports,
        past,
        uplinks: names,
        names: look.names,
    };
    write(&summary, options.format, out)
}

impl Row {
    /// Returns the destination, and how many mappings are towards it.
    const fn used(&self) -> Option<(Destination, u64)> {
        match self.key {
            Key::Destination(to) => Some((to, self.sum.mappings)),
            _ => None,
        }
    }
}

impl Key {
    /// Returns what a flow is added up under.
    fn of(
        by: By,
        flow: &crate::datapath::Flow,
        pod: sums::PodKey,
        policy: Option<&Policy>,
    ) -> Self {
        match by {
            By::Pod => Self::Pod(pod),
            By::Destination => Self::Destination(sums::destination(flow)),
            By::Prefix => {
                let destination = flow.tuple.dst.into();
                let prefix = policy.map(|policy| policy.deciding(destination));
                Self::Prefix(prefix.unwrap_or_else(|| destination.into()))
            }
            By::State => Self::State(flow.state_name()),
            By::Uplink => Self::Uplink(flow.uplink),
        }
    }
}
