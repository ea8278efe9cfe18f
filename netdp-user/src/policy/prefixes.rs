//! The policy in force with its counts, for a live screen.

use super::gather::{Row, View};
use anyhow::{Result, bail};
use ipnet::IpNet;
use netdp_common::layout::Action;
use std::path::Path;

/// A rule of the policy in force, and how much it was needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrefixUse {
    /// The prefix; `None` for all other destinations.
    pub prefix: Option<IpNet>,
    /// Number of rules around it.
    pub depth: usize,
    /// True if its destinations are masqueraded.
    pub is_masqueraded: bool,
    /// Packets that pods have sent to its destinations.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Mappings that began because of it.
    pub flows: u64,
    /// Its origin, if that is known.
    pub origin: Option<String>,
}

/// Reads the policy in force with its counts, each rule before those in it.
///
/// # Errors
/// Returns an error if the maps can't be read, or nothing has been counted.
pub(crate) fn prefixes(bpffs: &Path, state_dir: &Path) -> Result<Vec<PrefixUse>> {
    let view = View::gather(bpffs, state_dir)?;
    if let Some(problem) = view.problem {
        bail!("{problem}");
    }
    let of = |row: Row| {
        let amount = row.counts.unwrap_or_default().amount;
        PrefixUse {
            prefix: row.prefix,
            depth: row.depth,
            is_masqueraded: row.action == Action::Masquerade,
            packets: amount.packets,
            bytes: amount.bytes,
            flows: amount.flows,
            origin: row.origin,
        }
    };
    Ok(view.rows.into_iter().map(of).collect())
}
