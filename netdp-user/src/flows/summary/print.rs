//! The sums as text and JSON.

use super::By;
use super::sums::{Key, Row, Sums};
use crate::datapath::{Destination, protocol_name};
use crate::flows::list::Counts;
use crate::flows::rows::{PodRecord, unknown, write_table};
use crate::flows::{Format, SCHEMA, Timed};
use crate::forecast::PortsPast;
use crate::format::{bytes, grouped};
use crate::time::pretty;
use anyhow::Result;
use netdp_common::layout::proto;
use serde::Serialize;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// All that is printed.
pub(super) struct Summary<'a> {
    pub by: By,
    pub sums: &'a Sums<'a>,
    /// The groups, in order.
    pub rows: Vec<Row>,
    /// The most groups that are shown.
    pub limit: Option<usize>,
    pub counts: Counts,
    /// Set if not all mappings were asked for.
    pub is_filtered: bool,
    /// Time that reading the maps took.
    pub took: Duration,
    /// Ports towards one destination, where all its mappings are known.
    pub ports: Option<u64>,
    /// This look and those before, for forecasts.
    pub past: &'a PortsPast,
    /// Indexes and names of the uplinks.
    pub uplinks: Vec<(u32, String)>,
    pub names: Timed<'a>,
}

/// A group, for programs.
#[derive(Debug, Default, Serialize)]
struct Group<'a> {
    /// On lines of their own only.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_address: Option<IpAddr>,
    /// Ports towards it that mappings may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<u64>,
    /// Seconds until they are all used, if that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    full_in_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<String>,
    mappings: u64,
    established: u64,
    closing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destinations: Option<u64>,
    packets: u64,
    bytes_out: u64,
    bytes_in: u64,
}

/// The whole summary, for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: u32,
    by: &'static str,
    /// Mappings that there are.
    mappings: usize,
    /// Those that pass the filters.
    matching: usize,
    read_milliseconds: u64,
    /// Set if there are more groups than are told apart.
    cut: bool,
    groups: Vec<Group<'a>>,
}

/// Writes a summary.
///
/// # Errors
/// Returns an error if the output can't be written.
pub(super) fn write(summary: &Summary<'_>, format: Format, out: &mut dyn Write) -> Result<()> {
    let shown = summary.limit.unwrap_or(usize::MAX).min(summary.rows.len());
    let rows = summary.rows.get(..shown).unwrap_or_default();
    match format {
        Format::Text => summary.text(rows, out),
        Format::Json => {
            let document = Document {
                schema: SCHEMA,
                by: summary.by(),
                mappings: summary.counts.all,
                matching: summary.counts.matching,
                read_milliseconds: u64::try_from(summary.took.as_millis()).unwrap_or(u64::MAX),
                cut: summary.sums.is_cut,
                groups: rows.iter().map(|row| summary.group(row, None)).collect(),
            };
            writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
            Ok(())
        }
        Format::Jsonl | Format::Csv => {
            for row in rows {
                let group = summary.group(row, Some(SCHEMA));
                writeln!(out, "{}", serde_json::to_string(&group)?)?;
            }
            Ok(())
        }
    }
}

impl Summary<'_> {
    const fn by(&self) -> &'static str {
        match self.by {
            By::Pod => "pod",
            By::Destination => "destination",
            By::Prefix => "prefix",
            By::State => "state",
            By::Uplink => "uplink",
        }
    }

    fn group<'b>(&'b self, row: &'b Row, schema: Option<u32>) -> Group<'b> {
        let sum = &row.sum;
        let others = (!self.sums.is_uncounted).then_some(row.others);
        let mut group = Group {
            schema,
            mappings: sum.mappings,
            established: sum.established,
            closing: sum.closing,
            packets: sum.packets,
            bytes_out: sum.bytes_out,
            bytes_in: sum.bytes_in,
            pods: others,
            ..Group::default()
        };
        match &row.key {
            Key::Pod(key) => {
                group.source = Some(key.0);
                group.pod = self.sums.owner(key).map(PodRecord::new);
                (group.pods, group.destinations) = (None, others);
            }
            Key::Destination(to) => {
                group.protocol = Some(protocol_name(to.protocol));
                group.destination = Some(to.address);
                group.destination_id = Some(to.id);
                group.nat_address = Some(to.seen_as);
                group.ports = self.ports_of(to.protocol);
                group.full_in_seconds = self.full_in(to);
            }
            Key::Prefix(prefix) => group.prefix = Some(prefix.to_string()),
            Key::State(state) => group.state = Some(state),
            Key::Uplink(index) => group.uplink = self.uplink(*index),
        }
        group
    }

    /// Returns how many ports there are towards a destination; `None` for protocols without ports.
    fn ports_of(&self, protocol: u32) -> Option<u64> {
        let has_ports = matches!(
            protocol,
            proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP
        );
        self.ports.filter(|_| has_ports)
    }

    /// Returns in how many seconds the ports towards a destination will be used up, if that can be told.
    fn full_in(&self, to: &Destination) -> Option<u64> {
        self.past.full_in(to, self.ports_of(to.protocol)?)
    }

    /// Returns the name of an uplink, or its number; `None` if the mapping does not tell.
    fn uplink(&self, low_bits: u16) -> Option<String> {
        if low_bits == 0 {
            return None;
        }
        let mut uplinks = self.uplinks.iter();
        let known = uplinks.find(|(index, _)| index & 0xffff == u32::from(low_bits));
        Some(known.map_or_else(|| format!("#{low_bits}"), |(_, name)| name.clone()))
    }

    fn name(&self, address: IpAddr, owner: Option<crate::pods::Owner<'_>>) -> String {
        owner.map_or_else(
            || address.to_string(),
            |owner| self.names.names.describe(owner),
        )
    }

    fn text(&self, rows: &[Row], out: &mut dyn Write) -> Result<()> {
        let count = |number: usize| grouped(number as u64);
        let total = &self.sums.total;
        let matching = if self.is_filtered {
            format!("{} of ", count(self.counts.matching))
        } else {
            String::new()
        };
        let plural = |number: usize, one: &str| {
            let s = if number == 1 { "" } else { "s" };
            format!("{} {one}{s}", count(number))
        };
        writeln!(
            out,
            "{matching}{} of {}, {} out, {} in, read in {:.1} s",
            plural(self.counts.all, "mapping"),
            plural(self.sums.pods(), "pod"),
            bytes(total.bytes_out),
            bytes(total.bytes_in),
            self.took.as_secs_f64(),
        )?;
        if !rows.is_empty() {
            self.table(rows, out)?;
        }
        if rows.len() < self.rows.len() {
            writeln!(out, "{} more", count(self.rows.len() - rows.len()))?;
        }
        if self.sums.is_cut {
            writeln!(out, "more than 65,536 groups: some mappings are in no row")?;
        }
        if let Some(
            row @ Row {
                key: Key::Destination(to),
                ..
            },
        ) = rows.first()
            && let Some((address, owner, share)) = self.sums.biggest(row.number)
        {
            let name = self.name(address, owner);
            let mappings = count(share.mappings as usize);
            let end = SocketAddr::new(to.address, to.id);
            let closing = if share.closing > share.mappings / 2 {
                let closing = count(share.closing as usize);
                format!(": a connection for each request, by its {closing} closing")
            } else {
                String::new()
            };
            let name = crate::terminal::line(&name).into_owned();
            writeln!(out, "biggest pod at {end}: {name} ({mappings}){closing}")?;
        }
        Ok(())
    }

    fn table(&self, rows: &[Row], out: &mut dyn Write) -> Result<()> {
        let numbers = |row: &Row| {
            let sum = &row.sum;
            [
                grouped(sum.mappings),
                grouped(sum.established),
                grouped(sum.closing),
                if self.sums.is_uncounted {
                    unknown()
                } else {
                    grouped(row.others)
                },
                bytes(sum.bytes_out),
                bytes(sum.bytes_in),
            ]
        };
        match self.by {
            By::Destination => {
                let rows = rows.iter().map(|row| {
                    let [to, seen_as, ports, full_in] = self.destination(row);
                    let [a, b, c, d, e, f] = numbers(row);
                    [to, seen_as, ports, full_in, a, b, c, d, e, f]
                });
                let rows: Vec<_> = rows.collect();
                let heads = [
                    "DESTINATION",
                    "SEEN AS",
                    "PORTS",
                    "FULL IN",
                    "MAPPINGS",
                    "ESTABLISHED",
                    "CLOSING",
                    "PODS",
                    "OUT",
                    "IN",
                ];
                write_table(out, heads, &rows)
            }
            By::Pod => {
                let rows = rows.iter().map(|row| {
                    let [a, b, c, d, e, f] = numbers(row);
                    let (name, address) = self.pod(row);
                    [name, address, a, b, c, d, e, f]
                });
                let rows: Vec<_> = rows.collect();
                let heads = [
                    "POD",
                    "ADDRESS",
                    "MAPPINGS",
                    "ESTABLISHED",
                    "CLOSING",
                    "DESTINATIONS",
                    "OUT",
                    "IN",
                ];
                write_table(out, heads, &rows)
            }
            By::Prefix | By::State | By::Uplink => {
                let head = match self.by {
                    By::Prefix => "PREFIX",
                    By::State => "STATE",
                    _ => "UPLINK",
                };
                let rows = rows.iter().map(|row| {
                    let [a, b, c, d, e, f] = numbers(row);
                    [self.label(row), a, b, c, d, e, f]
                });
                let rows: Vec<_> = rows.collect();
                let heads = [
                    head,
                    "MAPPINGS",
                    "ESTABLISHED",
                    "CLOSING",
                    "PODS",
                    "OUT",
                    "IN",
                ];
                write_table(out, heads, &rows)
            }
        }
    }

    fn destination(&self, row: &Row) -> [String; 4] {
        let Key::Destination(to) = &row.key else {
            return [unknown(), unknown(), unknown(), unknown()];
        };
        let end = SocketAddr::new(to.address, to.id);
        let ports = self.ports_of(to.protocol).map_or_else(unknown, |ports| {
            format!("{} of {}", grouped(row.sum.mappings), grouped(ports))
        });
        [
            format!("{} {end}", protocol_name(to.protocol)),
            to.seen_as.to_string(),
            ports,
            self.full_in(to).map_or_else(unknown, pretty),
        ]
    }

    fn pod(&self, row: &Row) -> (String, String) {
        let Key::Pod(key) = &row.key else {
            return (unknown(), unknown());
        };
        let owner = self.sums.owner(key);
        (self.name(key.0, owner), key.0.to_string())
    }

    fn label(&self, row: &Row) -> String {
        match &row.key {
            Key::Prefix(prefix) => prefix.to_string(),
            Key::State(state) => state.clone(),
            Key::Uplink(index) => self.uplink(*index).unwrap_or_else(unknown),
            Key::Pod(_) | Key::Destination(_) => unknown(),
        }
    }
}
