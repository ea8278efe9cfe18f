//! Flows that keep the pod's address, and why.

use super::filter::Selector;
use super::rows::{PodRecord, unknown, write_table};
use super::{Format, Look, SCHEMA, Timed, endpoint};
use crate::datapath::{Kept, KeptReason, KeptState, protocol_name, seconds};
use crate::format::grouped;
use crate::time::pretty;
use anyhow::{Result, ensure};
use serde::Serialize;
use std::io::Write;
use std::net::IpAddr;

/// The heads of the table's columns.
const COLUMNS: [&str; 7] = [
    "PROTO",
    "POD",
    "PEER",
    "STATE",
    "IDLE",
    "KEEPS ITS ADDRESS",
    "NAME",
];

/// A flow that keeps the pod's address, for programs.
#[derive(Debug, Serialize)]
struct Row<'a> {
    /// On lines of their own only.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    protocol: String,
    source: IpAddr,
    source_id: u16,
    destination: IpAddr,
    destination_id: u16,
    state: &'static str,
    idle_seconds: u64,
    /// The codes of the reasons that are possible.
    codes: &'static [&'static str],
    /// The pod that had the address at the flow's last packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodRecord<'a>>,
}

/// All of them, for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: u32,
    kept: Vec<Row<'a>>,
}

/// Returns the codes of a reason.
const fn codes(reason: KeptReason) -> &'static [&'static str] {
    match reason {
        KeptReason::BeganOutside => &["NDP601"],
        KeptReason::BypassedEarlier => &["NDP602"],
        KeptReason::Either => &["NDP601", "NDP602"],
    }
}

const fn describe(reason: KeptReason) -> &'static str {
    match reason {
        KeptReason::BeganOutside => "it began outside (NDP601)",
        KeptReason::BypassedEarlier => "bypassed by an earlier policy (NDP602)",
        KeptReason::Either => {
            "it may have begun outside (NDP601) or under an earlier policy (NDP602)"
        }
    }
}

const fn state(state: KeptState) -> &'static str {
    match state {
        KeptState::Unanswered => "unanswered",
        KeptState::Answered => "answered",
        KeptState::Closed => "closed",
    }
}

fn row<'a>(kept: &Kept, names: Timed<'a>, schema: Option<u32>) -> Row<'a> {
    let tuple = &kept.tuple;
    Row {
        schema,
        protocol: protocol_name(tuple.proto),
        source: tuple.src.into(),
        source_id: tuple.src_id,
        destination: tuple.dst.into(),
        destination_id: tuple.dst_id,
        state: state(kept.state),
        idle_seconds: seconds(kept.idle),
        codes: codes(kept.reason),
        pod: names.owner(tuple, kept.idle).map(PodRecord::new),
    }
}

fn cells(kept: &Kept, names: Timed<'_>) -> [String; 7] {
    let tuple = &kept.tuple;
    let owner = names.owner(tuple, kept.idle);
    [
        protocol_name(tuple.proto),
        endpoint(tuple.src, tuple.src_id),
        endpoint(tuple.dst, tuple.dst_id),
        state(kept.state).to_owned(),
        pretty(seconds(kept.idle)),
        describe(kept.reason).to_owned(),
        owner.map_or_else(unknown, |owner| names.names.describe(owner)),
    ]
}

/// Prints the flows that pass the filters, by pod. There are at most some 200,000: the tables of such
/// flows have a fixed size.
///
/// # Errors
/// Returns an error if a map can't be read, the output can't be written, or an option makes no sense
/// here.
pub(super) fn print(look: &Look<'_>, out: &mut dyn Write) -> Result<()> {
    let options = look.options;
    ensure!(
        options.format != Format::Csv,
        "--kept has no CSV; give -o jsonl"
    );
    let selector = Selector::new(&options.filter, &look.names, look.maps)?;
    let mut flows = Vec::new();
    let mut all = 0_usize;
    look.maps.for_each_kept(look.bpffs, |kept| {
        all += 1;
        if selector.passes_kept(kept) {
            flows.push(*kept);
        }
        Ok(())
    })?;
    write(out, look.names, options.format, all, flows, options.limit)
}

/// Writes flows in order, at most `limit`.
pub(super) fn write(
    out: &mut dyn Write,
    names: Timed<'_>,
    format: Format,
    all: usize,
    mut flows: Vec<Kept>,
    limit: Option<usize>,
) -> Result<()> {
    flows.sort_unstable_by_key(|kept| {
        let tuple = kept.tuple;
        let (src, dst) = (*tuple.src.octets(), *tuple.dst.octets());
        (src, dst, tuple.src_id, tuple.dst_id, tuple.proto)
    });
    flows.truncate(limit.unwrap_or(usize::MAX));
    match format {
        Format::Text => {
            let (shown, total) = (flows.len(), grouped(all as u64));
            match (shown, all) {
                (_, 0) => writeln!(out, "no flow keeps its pod's address")?,
                (_, 1) if shown == all => writeln!(out, "1 flow keeps its pod's address")?,
                _ if shown == all => writeln!(out, "{total} flows keep their pod's address")?,
                _ => {
                    let shown = grouped(shown as u64);
                    writeln!(
                        out,
                        "{shown} of {total} flows that keep their pod's address"
                    )?;
                }
            }
            let rows: Vec<_> = flows.iter().map(|kept| cells(kept, names)).collect();
            if !rows.is_empty() {
                write_table(out, COLUMNS, &rows)?;
            }
        }
        Format::Json => {
            let flows = flows.iter().map(|kept| row(kept, names, None)).collect();
            let document = Document {
                schema: SCHEMA,
                kept: flows,
            };
            writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
        }
        Format::Jsonl | Format::Csv => {
            for kept in &flows {
                let row = row(kept, names, Some(SCHEMA));
                writeln!(out, "{}", serde_json::to_string(&row)?)?;
            }
        }
    }
    Ok(())
}
