//! The agent's report, and its presentation by `netdp status`.

mod findings;
mod model;
mod nat;
mod status;
mod text;

use crate::cli::output::write_out;
use anyhow::Result;
use std::path::Path;

pub(crate) use findings::Finding;
pub(crate) use model::FILE;
pub use model::{ConfigReport, EndedForRoom, Report, RuleReport, UplinkReport};
pub(crate) use status::Status;

/// Prints the status.
///
/// # Errors
/// Returns an error if the maps cannot be read.
pub fn print(bpffs: &Path, state_dir: &Path, json: bool) -> Result<()> {
    let status = Status::gather(bpffs, state_dir)?;
    let text = if json { status.json()? } else { status.text()? };
    write_out(&text, json)
}
