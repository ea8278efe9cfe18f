//! Rollback: hands the datapath's mappings over to netfilter.
//!
//! docs/adr/0021 describes the order, and why no packet leaves with a pod's address in between.

use crate::config::{self, Config};
use crate::datapath::{self, Handover, Maps};
use crate::iptables::{self, ChainOptions, ChainReport, Chains, KEEP_CHAIN};
use crate::nf_conntrack::Conntrack;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Silence after which a mapping that could not be handed over counts as ended.
const SILENCE: Duration = Duration::from_secs(30);

/// Facts about the last agent that `netdp detach --to-iptables` needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Options of the chains, from the agent's flags.
    pub chains: ChainOptions,
    /// Options of the configuration, from the agent's flags.
    pub config: config::Options,
}

/// File name in the state directory.
const FALLBACK: &str = "fallback.json";

impl Fallback {
    /// Writes the facts for `netdp detach --to-iptables`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FALLBACK, self)
    }

    /// Reads the facts that an agent with this state directory wrote.
    ///
    /// # Errors
    /// Returns an error if the file does not exist or cannot be parsed.
    pub fn read(state_dir: &StateDir) -> Result<Self> {
        state_dir
            .read_json(FALLBACK)
            .context("no agent's record found; has an agent run with this --state-dir?")
    }
}

/// A datapath that remains only for mappings that netfilter did not accept.
pub struct Rollback {
    bpffs: PathBuf,
    maps: Maps,
    until: Instant,
}

impl Rollback {
    /// Hands over every mapping that netfilter accepts, and leaves new connections to the chains.
    ///
    /// # Errors
    /// Returns an error if the chains cannot be prepared or the maps cannot be read. The datapath
    /// is unchanged then.
    pub fn begin(
        bpffs: &Path,
        chains: &mut Chains,
        config: &Config,
        grace: Duration,
    ) -> Result<(Self, Vec<ChainReport>)> {
        chains.prepare(config)?;
        let mut maps = Maps::open(bpffs)?;
        let before = maps.settings()?;
        let handed_over = Self::hand_over(&mut maps, chains, config);
        maps.restore_ports(&before)?;
        log::info!("handed {} mappings over to netfilter", handed_over?);
        let reports = chains.apply(config);
        let rollback = Self {
            bpffs: bpffs.to_owned(),
            maps,
            until: Instant::now() + grace,
        };
        Ok((rollback, reports))
    }

    /// Hands all mappings over. Until POSTROUTING jumps to the chains, both sides may open
    /// connections, and netfilter does not know the datapath's wire tuples: the two use disjoint
    /// ports.
    fn hand_over(maps: &mut Maps, chains: &mut Chains, config: &Config) -> Result<usize> {
        let (ours, netfilters) = split_port_ranges(&chains.ports().ranges);
        maps.restrict_ports(&ours)?;
        let handed_over = hand_over_all(maps)?;
        chains.apply_with_ranges(config, &netfilters);
        // Mappings made before the jump to the chains.
        Ok(handed_over + hand_over_all(maps)?)
    }

    /// Returns the number of mappings that the datapath still serves.
    ///
    /// # Errors
    /// Returns an error if the maps cannot be read.
    pub fn still_active(&self) -> Result<usize> {
        self.maps.still_active(SILENCE)
    }

    /// Removes the datapath once nothing needs it any more or the time is up, together with the
    /// chain of an earlier takeover that kept tracking active, which the chains now do. Returns
    /// what was removed.
    ///
    /// # Errors
    /// Returns an error if the maps cannot be read or the programs cannot be detached.
    pub fn finish(&self) -> Result<Option<Vec<String>>> {
        if self.still_active()? > 0 && Instant::now() < self.until {
            return Ok(None);
        }
        let mut removed = datapath::detach(&self.bpffs)?;
        let kept = iptables::remove(&BTreeSet::from([KEEP_CHAIN]));
        removed.extend(kept.removed);
        for failed in kept.failed {
            log::warn!("not removed: {failed}");
        }
        Ok(Some(removed))
    }
}

/// Inclusive ranges of ports.
type Ranges = Vec<(u16, u16)>;

/// Splits the ports in `ranges`, or all unprivileged ports if there are none, into the upper half
/// and the rest.
fn split_port_ranges(ranges: &[(u16, u16)]) -> (Ranges, Ranges) {
    let all = if ranges.is_empty() {
        &[(1024, u16::MAX)]
    } else {
        ranges
    };
    let size = |(min, max): &(u16, u16)| u32::from(*max).saturating_sub(u32::from(*min)) + 1;
    let mut lower = all.iter().map(size).sum::<u32>().div_ceil(2);
    let (mut high, mut low) = (Vec::new(), Vec::new());
    for &(min, max) in all {
        // The first port above the lower half; beyond 16 bits if the whole range belongs to it.
        match u16::try_from(u32::from(min) + lower) {
            Ok(first) if first <= min => high.push((min, max)),
            Ok(first) if first <= max => {
                low.push((min, first - 1));
                high.push((first, max));
            }
            _ => low.push((min, max)),
        }
        lower = lower.saturating_sub(size(&(min, max)));
    }
    if high.is_empty() {
        // A single port cannot be split.
        high.clone_from(&low);
    }
    (high, low)
}

fn hand_over_all(maps: &mut Maps) -> Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let mut handed_over = 0;
    for handover in maps.pending_handovers()? {
        if hand_over_one(maps, &mut conntrack, &handover)? {
            handed_over += 1;
        }
    }
    Ok(handed_over)
}

/// Hands a mapping over and reports whether netfilter accepted it. In this order, packets that
/// netfilter translates early may leave, and their replies stay with the datapath until netfilter
/// surely handles them.
fn hand_over_one(maps: &mut Maps, conntrack: &mut Conntrack, handover: &Handover) -> Result<bool> {
    maps.begin_handover(handover)?;
    if let Err(err) = conntrack.replace(&handover.flow) {
        log::debug!("netfilter cannot take over {:?}: {err:#}", handover.flow);
        maps.abort_handover(handover)?;
        return Ok(false);
    }
    maps.complete_handover(handover)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::split_port_ranges;

    #[test]
    fn ports_are_split_in_halves() {
        let high_low = |high: &[(u16, u16)], low: &[(u16, u16)]| (high.to_vec(), low.to_vec());
        assert_eq!(
            split_port_ranges(&[]),
            high_low(&[(33_280, 65_535)], &[(1024, 33_279)])
        );
        assert_eq!(
            split_port_ranges(&[(1, 2), (10, 13), (20, 21)]),
            high_low(&[(12, 13), (20, 21)], &[(1, 2), (10, 11)])
        );
        assert_eq!(
            split_port_ranges(&[(1, 4), (7, 10)]),
            high_low(&[(7, 10)], &[(1, 4)])
        );
        assert_eq!(split_port_ranges(&[(1, 3)]), high_low(&[(3, 3)], &[(1, 2)]));
        assert_eq!(split_port_ranges(&[(9, 9)]), high_low(&[(9, 9)], &[(9, 9)]));
    }
}
