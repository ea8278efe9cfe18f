//! Findings of `--mode shadow`, and `netdp shadow report`.

use crate::cli::output::{table, write_out};
use crate::datapath::protocol_name;
use crate::nf_conntrack::Flow;
use crate::state_dir::StateDir;
use crate::time::{now, pretty};
use anyhow::{Context as _, Result};
use netdp_common::layout::proto;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Limit of separate kinds of differences; further ones are only counted.
const MAX_KINDS: usize = 100;

/// Limit of example connections for each.
const EXAMPLES: usize = 5;

/// Findings since the configuration came into force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShadowReport {
    /// Hash of the configuration that netdp would follow.
    pub config: String,
    /// Start of the comparison, in seconds since 1970.
    pub since: u64,
    /// Number of new connections that were compared.
    pub flows: u64,
    /// Number of those with the same result.
    pub agreeing: u64,
    /// Number of those with different results.
    pub differing: u64,
    /// Number of times that events were lost. Connections still alive afterwards were compared
    /// then; connections that had ended were not.
    pub overruns: u64,
    /// Number of agreeing connections, by kind of agreement.
    pub alike: BTreeMap<String, u64>,
    /// The differences, in the order in which they were found.
    pub differences: Vec<Difference>,
}

/// Connections with different results for the same reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Difference {
    /// netdp's decision, with the prefix.
    pub netdp: String,
    /// netfilter's decision, with the rule.
    pub netfilter: String,
    /// Number of such connections.
    pub flows: u64,
    /// Some of these connections.
    pub examples: Vec<Example>,
}

/// A connection with different results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Example {
    /// IP protocol number, as in the IPv4 header.
    pub protocol: u8,
    /// Source of the initiator, before translation.
    pub source: SocketAddr,
    /// Destination after any destination NAT. For ICMP, the port is the identifier.
    pub destination: SocketAddr,
    /// Source address beyond the node as translated by netfilter.
    pub netfilter: IpAddr,
    /// Source address beyond the node with netdp; `None` if it would drop the packets.
    pub netdp: Option<IpAddr>,
}

impl Example {
    pub(super) fn new(flow: &Flow, netdp: Option<IpAddr>) -> Self {
        let (original, reply) = (&flow.original, &flow.reply);
        // An ICMP identifier is translated like a port, but is the same at both ends.
        let destination_id = match flow.protocol.into() {
            proto::ICMP | proto::ICMPV6 => original.destination_id,
            _ => reply.source_id,
        };
        Self {
            protocol: flow.protocol,
            source: SocketAddr::new(original.source, original.source_id),
            destination: SocketAddr::new(reply.source, destination_id),
            netfilter: reply.destination,
            netdp,
        }
    }
}

/// File name in the state directory.
const FILE: &str = "shadow.json";

impl ShadowReport {
    /// Writes the report for `netdp shadow report`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FILE, self)
    }

    pub(super) fn record_agreement(&mut self, how: &str) {
        self.flows += 1;
        self.agreeing += 1;
        match self.alike.get_mut(how) {
            Some(count) => *count += 1,
            None => drop(self.alike.insert(how.into(), 1)),
        }
    }

    pub(super) fn record_difference(&mut self, netdp: String, netfilter: String, example: Example) {
        self.flows += 1;
        self.differing += 1;
        let known = self
            .differences
            .iter()
            .position(|d| d.netdp == netdp && d.netfilter == netfilter);
        let full = self.differences.len() >= MAX_KINDS;
        let place = match known {
            Some(place) => place,
            None if full => return,
            None => {
                self.differences.push(Difference {
                    netdp,
                    netfilter,
                    ..Difference::default()
                });
                self.differences.len() - 1
            }
        };
        if let Some(difference) = self.differences.get_mut(place) {
            difference.flows += 1;
            if difference.examples.len() < EXAMPLES {
                difference.examples.push(example);
            }
        }
    }

    /// Returns the summary for scripts.
    #[must_use]
    pub(crate) const fn summary(&self) -> Summary {
        match (self.flows, self.differing) {
            (0, _) => Summary::Unknown,
            (_, 0) => Summary::Alike,
            _ => Summary::Different,
        }
    }

    fn text(&self) -> Result<String> {
        let mut out = String::new();
        let age = pretty(now().saturating_sub(self.since));
        writeln!(out, "config     {}, compared for {age}", self.config)?;
        writeln!(
            out,
            "flows      {} seen, {} agree, {} differ",
            self.flows, self.agreeing, self.differing
        )?;
        if self.overruns > 0 {
            writeln!(
                out,
                "overruns   {}: short connections of those moments were not seen",
                self.overruns
            )?;
        }
        if !self.alike.is_empty() {
            let mut alike = table(&["AGREE", "FLOWS"]);
            for (how, count) in &self.alike {
                alike.add_row([how.clone(), count.to_string()]);
            }
            writeln!(out, "\n{alike}")?;
        }
        for difference in &self.differences {
            writeln!(out, "\ndiffer     {} flows", difference.flows)?;
            writeln!(out, "netdp      would {}", difference.netdp)?;
            writeln!(out, "netfilter  {}", difference.netfilter)?;
            let mut examples = table(&["PROTO", "SOURCE", "DESTINATION", "NETFILTER", "NETDP"]);
            for example in &difference.examples {
                examples.add_row([
                    protocol_name(example.protocol.into()),
                    example.source.to_string(),
                    example.destination.to_string(),
                    example.netfilter.to_string(),
                    example
                        .netdp
                        .map_or_else(|| "dropped".into(), |ip| ip.to_string()),
                ]);
            }
            writeln!(out, "{examples}")?;
        }
        let listed: u64 = self.differences.iter().map(|d| d.flows).sum();
        if let more @ 1.. = self.differing.saturating_sub(listed) {
            writeln!(out, "\n{more} more flows differ in other ways")?;
        }
        Ok(out)
    }
}

/// Summary of the report in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Summary {
    /// All connections have the same result.
    Alike,
    /// Some connections have different results.
    Different,
    /// No connection was seen.
    Unknown,
}

/// Prints the report of the agent with this state directory.
///
/// # Errors
/// Returns an error if there is no report, or the output cannot be written.
pub(crate) fn print(state_dir: &Path, json: bool) -> Result<Summary> {
    let report = StateDir::at(state_dir)
        .read_json::<ShadowReport>(FILE)
        .context("no netdp run --mode shadow has written a report here")?;
    let text = if json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.text()?
    };
    write_out(&text, json)?;
    Ok(report.summary())
}
