//! Reading of the counts from the pinned maps.

use super::counts::{Counts, Observed, network};
use super::window::Window;
use crate::datapath;
use crate::state_dir::StateDir;
use crate::time::now;
use anyhow::Result;
use ipnet::IpNet;
use std::collections::HashMap;
use std::path::Path;

/// Returns what the programs have counted by network; `None` if the pins are of a version that does
/// not count it.
///
/// # Errors
/// Returns an error if a map can't be opened or read.
pub(crate) fn read(bpffs: &Path) -> Result<Option<Observed>> {
    let mut observed = Observed::new();
    // Pairs first: what leaves meanwhile is then rather an attempt than a further packet.
    let mut packets: HashMap<IpNet, u64> = HashMap::new();
    datapath::for_each_pair(bpffs, |pair| {
        *packets.entry(network(pair.peer.into())).or_default() += pair.packets();
    })?;
    let is_there = datapath::for_each_reach(bpffs, |first, reach| {
        let network = network(first);
        let counts = Counts {
            pod_new: reach.pod_new.into(),
            pod_answered: reach.pod_answered.into(),
            pod_packets: packets.get(&network).copied().unwrap_or_default(),
            node_new: reach.node_new.into(),
            node_answered: reach.node_answered.into(),
        };
        observed.insert(network, counts);
    })?;
    Ok(is_there.then_some(observed))
}

/// Returns the counts of the last minutes: what an agent has saved, and what was counted since.
///
/// # Errors
/// Returns an error if either can't be read.
pub(crate) fn lately(bpffs: &Path, dir: &StateDir) -> Result<Observed> {
    let mut window = Window::read(dir)?;
    if let Some(observed) = read(bpffs)? {
        window.observe(now(), observed);
    }
    Ok(window.sums(window.at))
}
