//! `netdp flows`: the table of live mappings.

use crate::cli::output::{table, write_out};
use crate::datapath::{FlowRecord, Maps};
use crate::time::pretty;
use anyhow::{Context as _, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Prints the live mappings.
///
/// # Errors
/// Returns an error if the maps do not exist or cannot be read.
pub fn print_flows(bpffs: &Path, json: bool) -> Result<()> {
    let flows = Maps::open(bpffs)
        .context("no datapath found; is the agent running, and with this --bpffs?")?
        .flows()?;
    let text = if json {
        serde_json::to_string_pretty(&flows)? + "\n"
    } else {
        flow_table(&flows)
    };
    write_out(&text, json)
}

fn flow_table(flows: &[FlowRecord]) -> String {
    let mut rows = table(&[
        "PROTO",
        "POD",
        "DESTINATION",
        "SEEN AS",
        "STATE",
        "AGE",
        "IDLE",
        "OUT",
        "IN",
    ]);
    for flow in flows {
        rows.add_row([
            flow.protocol.clone(),
            endpoint(flow.source, flow.source_id),
            endpoint(flow.destination, flow.destination_id),
            endpoint(flow.nat_address, flow.nat_id),
            flow.state.clone(),
            pretty(flow.age_seconds),
            pretty(flow.idle_seconds),
            flow.packets_out.to_string(),
            flow.packets_in.to_string(),
        ]);
    }
    let mappings = if flows.len() == 1 {
        "mapping"
    } else {
        "mappings"
    };
    format!("{rows}\n{} {mappings}\n", flows.len())
}

fn endpoint(ip: IpAddr, id: u16) -> String {
    SocketAddr::new(ip, id).to_string()
}
