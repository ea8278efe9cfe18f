//! Rows of single mappings: a table, JSON, JSON lines, CSV.

use super::rates::Rates;
use super::{Format, SCHEMA, Timed, endpoint, rfc3339};
use crate::datapath::{Flow, FlowRecord, protocol_name, seconds};
use crate::format::{bytes, grouped};
use crate::pods::Owner;
use crate::terminal;
use crate::time::pretty;
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// The heads of the table's columns.
const COLUMNS: [&str; 13] = [
    "PROTO",
    "POD",
    "DESTINATION",
    "SEEN AS",
    "STATE",
    "AGE",
    "IDLE",
    "OUT",
    "IN",
    "BYTES OUT",
    "BYTES IN",
    "NAME",
    "RATE",
];

/// The head of the last column in CSV, if rates are asked for.
const RATE: &str = "bytes_per_second";

/// The heads of the columns in CSV.
const FIELDS: &str = "protocol,source,source_id,destination,destination_id,nat_address,nat_id,state,\
    age_seconds,idle_seconds,packets_out,packets_in,bytes_out,bytes_in,began_at,namespace,pod,uid,\
    pod_ended_at,pod_disputed";

/// A pod, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PodRecord<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<&'a str>,
    /// The time at which it gave its address up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Set if another pod claims the address for the same time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disputed: bool,
}

impl<'a> PodRecord<'a> {
    pub(super) fn new(owner: Owner<'a>) -> Self {
        Self {
            namespace: &owner.claim.namespace,
            name: &owner.claim.name,
            uid: owner.claim.uid.as_deref(),
            ended_at: owner.claim.until.and_then(rfc3339),
            disputed: !owner.is_sure,
        }
    }
}

/// A mapping, for programs.
#[derive(Debug, Serialize)]
struct Row<'a> {
    /// On lines of their own only.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    #[serde(flatten)]
    record: FlowRecord,
    /// Bytes a second since the last look.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    /// The time at which the mapping began.
    #[serde(skip_serializing_if = "Option::is_none")]
    began_at: Option<String>,
    /// The pod that had the address then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodRecord<'a>>,
}

/// Writes rows one by one.
pub(super) struct RowWriter<'a> {
    format: Format,
    names: Timed<'a>,
    /// If rates are asked for.
    rates: Option<&'a Rates>,
    out: &'a mut dyn Write,
    table: Table<13>,
    rows: usize,
}

impl<'a> RowWriter<'a> {
    pub(super) fn new(
        format: Format,
        names: Timed<'a>,
        rates: Option<&'a Rates>,
        out: &'a mut dyn Write,
    ) -> Self {
        Self {
            format,
            names,
            rates,
            out,
            table: Table::new(COLUMNS),
            rows: 0,
        }
    }

    /// Writes all that is there.
    pub(super) fn print_all(&mut self, flows: &[Flow], heading: &str) -> Result<()> {
        self.begin(heading, flows)?;
        for flow in flows {
            self.row(flow)?;
        }
        self.end()
    }

    /// Writes what comes before the rows. `sample`: those by which columns get their widths.
    pub(super) fn begin(&mut self, heading: &str, sample: &[Flow]) -> Result<()> {
        match self.format {
            Format::Text => {
                for flow in sample {
                    let cells = self.cells(flow);
                    self.table.widen(&cells);
                }
                writeln!(self.out, "{heading}")?;
                if !sample.is_empty() {
                    let mut heads = COLUMNS.map(str::to_owned);
                    if self.rates.is_none() {
                        heads[12].clear();
                    }
                    self.table.write(self.out, &heads)?;
                }
            }
            Format::Json => write!(self.out, "{{\"schema\":{SCHEMA},\"flows\":[")?,
            Format::Jsonl => {}
            Format::Csv if self.rates.is_some() => writeln!(self.out, "{FIELDS},{RATE}")?,
            Format::Csv => writeln!(self.out, "{FIELDS}")?,
        }
        Ok(())
    }

    /// Writes a row.
    pub(super) fn row(&mut self, flow: &Flow) -> Result<()> {
        match self.format {
            Format::Text => {
                let cells = self.cells(flow);
                self.table.write(self.out, &cells)?;
            }
            Format::Json => {
                let comma = if self.rows == 0 { "" } else { "," };
                let json = serde_json::to_string(&self.record(flow, None))?;
                write!(self.out, "{comma}\n{json}")?;
            }
            Format::Jsonl => {
                let json = serde_json::to_string(&self.record(flow, Some(SCHEMA)))?;
                writeln!(self.out, "{json}")?;
            }
            Format::Csv => self.csv(flow)?,
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes what comes after the rows.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.format == Format::Json {
            writeln!(self.out, "\n]}}")?;
        }
        Ok(())
    }

    /// Writes a line for people.
    pub(super) fn note(&mut self, line: &str) -> Result<()> {
        if self.format == Format::Text {
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }

    fn record(&self, flow: &Flow, schema: Option<u32>) -> Row<'a> {
        Row {
            schema,
            record: flow.record(),
            bytes_per_second: self.rate(flow),
            began_at: rfc3339(self.names.time(flow.age)),
            pod: self.owner(flow).map(PodRecord::new),
        }
    }

    fn rate(&self, flow: &Flow) -> Option<u64> {
        self.rates.and_then(|rates| rates.of(flow))
    }

    fn owner(&self, flow: &Flow) -> Option<Owner<'a>> {
        self.names.owner(&flow.tuple, flow.age)
    }

    fn cells(&self, flow: &Flow) -> [String; 13] {
        let tuple = &flow.tuple;
        let name = self
            .owner(flow)
            .map(|owner| self.names.names.describe(owner));
        let amount = |bytes_of: Option<u64>| bytes_of.map_or_else(unknown, bytes);
        let rate = match self.rates {
            Some(_) => {
                let rate = self.rate(flow);
                rate.map_or_else(unknown, |rate| format!("{}/s", bytes(rate)))
            }
            None => String::new(),
        };
        [
            protocol_name(tuple.proto),
            endpoint(tuple.src, tuple.src_id),
            endpoint(tuple.dst, tuple.dst_id),
            endpoint(flow.nat_address, flow.nat_id),
            flow.state_name(),
            pretty(seconds(flow.age)),
            pretty(seconds(flow.idle)),
            grouped(flow.packets_out),
            grouped(flow.packets_in),
            amount(flow.bytes_out),
            amount(flow.bytes_in),
            name.unwrap_or_else(unknown),
            rate,
        ]
    }

    fn csv(&mut self, flow: &Flow) -> Result<()> {
        let row = self.record(flow, None);
        let record = &row.record;
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let pod = row.pod.as_ref();
        let cells = [
            record.protocol.clone(),
            record.source.to_string(),
            record.source_id.to_string(),
            record.destination.to_string(),
            record.destination_id.to_string(),
            record.nat_address.to_string(),
            record.nat_id.to_string(),
            record.state.clone(),
            record.age_seconds.to_string(),
            record.idle_seconds.to_string(),
            record.packets_out.to_string(),
            record.packets_in.to_string(),
            number(record.bytes_out).unwrap_or_default(),
            number(record.bytes_in).unwrap_or_default(),
            row.began_at.clone().unwrap_or_default(),
            pod.map(|pod| pod.namespace.to_owned()).unwrap_or_default(),
            pod.map(|pod| pod.name.to_owned()).unwrap_or_default(),
            pod.and_then(|pod| pod.uid.map(str::to_owned))
                .unwrap_or_default(),
            pod.and_then(|pod| pod.ended_at.clone()).unwrap_or_default(),
            pod.map(|pod| pod.disputed.to_string()).unwrap_or_default(),
        ];
        let mut cells = cells.to_vec();
        if self.rates.is_some() {
            cells.push(number(row.bytes_per_second).unwrap_or_default());
        }
        // None of these has a comma, a quote or the end of a line: names of pods are checked when
        // they are read.
        writeln!(self.out, "{}", cells.join(","))?;
        Ok(())
    }
}

/// Returns the sign for something unknown in text.
pub(super) fn unknown() -> String {
    "-".to_owned()
}

/// A table whose rows need not be known at once: a cell that is wider than the column's sample moves
/// the rest of its row.
pub(super) struct Table<const N: usize> {
    widths: [usize; N],
}

impl<const N: usize> Table<N> {
    pub(super) fn new(heads: [&str; N]) -> Self {
        Self {
            widths: heads.map(|head| head.chars().count()),
        }
    }

    /// Makes room for a row.
    pub(super) fn widen(&mut self, cells: &[String; N]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(terminal::line(cell).chars().count());
        }
    }

    /// Writes a row.
    pub(super) fn write(&self, out: &mut dyn Write, cells: &[String; N]) -> Result<()> {
        let mut line = String::new();
        for (width, cell) in self.widths.iter().zip(cells) {
            let cell = terminal::line(cell);
            line += &format!(" {cell:width$} ");
        }
        writeln!(out, "{}", line.trim_end())?;
        Ok(())
    }
}

/// Writes a table of which all rows are there.
pub(super) fn write_table<const N: usize>(
    out: &mut dyn Write,
    heads: [&str; N],
    rows: &[[String; N]],
) -> Result<()> {
    let mut table = Table::new(heads);
    for row in rows {
        table.widen(row);
    }
    table.write(out, &heads.map(str::to_owned))?;
    for row in rows {
        table.write(out, row)?;
    }
    Ok(())
}
