//! Removal of the datapath, whichever agent has attached it.

use super::maps::{self, Maps};
use super::{bpffs, links, orphans};
use crate::nf_conntrack::Conntrack;
use anyhow::Result;
use netdp_common::layout::pins;
use std::collections::BTreeSet;
use std::path::Path;

/// Removes programs, pins and maps below `bpffs`, and the bpffs itself if it is mounted there. Also
/// detaches programs of netdp on the node's hooks whose pins are out of reach, and deletes the
/// conntrack entries of flows that any of them have translated. Returns what was removed, a line
/// each.
///
/// # Errors
/// Returns an error that names what could not be removed.
pub fn detach(bpffs: &Path) -> Result<Vec<String>> {
    let mut removal = remove_pinned(bpffs)?;
    let maps = std::mem::take(&mut removal.maps);
    Ok(removal.clear_conntrack(maps.iter()))
}

/// Objects that were removed, and their maps.
#[derive(Default)]
pub(super) struct Removal {
    /// Removed objects, a line each.
    lines: Vec<String>,
    /// Maps that were pinned.
    maps: Vec<Maps>,
    /// True if the flows that some of the programs have translated can't be determined.
    unknown: bool,
}

impl Removal {
    /// Deletes the conntrack entries of flows translated by these maps, whose programs are
    /// detached. Where that fails, a mark notifies the next agent. Returns what was removed.
    pub(super) fn clear_conntrack<'a>(
        mut self,
        maps: impl Iterator<Item = &'a Maps>,
    ) -> Vec<String> {
        for maps in maps {
            match maps.delete_conntrack_entries() {
                Ok(0) => {}
                Ok(n) => self
                    .lines
                    .push(format!("the conntrack entries of {n} translated flows")),
                Err(err) => {
                    log::debug!("connection tracking: {err:#}");
                    self.unknown = true;
                }
            }
        }
        if self.unknown
            && let Err(err) = Conntrack::open().and_then(|mut conntrack| conntrack.mark())
        {
            log::debug!("connection tracking: {err:#}");
        }
        self.lines
    }
}

/// Removes everything that [`detach`] does, but for conntrack entries.
pub(super) fn remove_pinned(bpffs: &Path) -> Result<Removal> {
    let mut removal = Removal::default();
    let mut before = None;
    // Unmounting one bpffs may uncover another.
    while bpffs::is_bpffs(bpffs) && before.replace(removal.lines.len()) != Some(removal.lines.len())
    {
        let pinned = bpffs.join(pins::SNAT).exists();
        match Maps::open(bpffs) {
            Ok(maps) => removal.maps.push(maps),
            Err(_) => removal.unknown |= pinned,
        }
        let removed = &mut removal.lines;
        // With pins of another version, or an incomplete set, links and files are removed all the
        // same.
        let uplinks = maps::pinned_uplinks(bpffs).unwrap_or_default();
        links::remove_all(bpffs, &uplinks, removed)?;
        for (file, _) in pins::ALL.iter().chain(pins::EARLIER) {
            bpffs::remove_pin(&bpffs.join(file), removed)?;
        }
        bpffs::remove_dir(bpffs, removed)?;
    }
    let pinned = removal.lines.len();
    if let Err(err) = orphans::remove(&BTreeSet::new(), &mut removal.lines) {
        log::warn!("searching for programs whose pins are out of reach: {err:#}");
    }
    removal.unknown |= removal.lines.len() > pinned;
    Ok(removal)
}
