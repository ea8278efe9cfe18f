//! The way back: what the datapath translates becomes netfilter's.
//!
//! docs/adr/0021 has the order and why no packet leaves with a pod's address in between.

use crate::config::{self, Config};
use crate::conntrack::Conntrack;
use crate::datapath::{self, Handover, Maps};
use crate::iptables::{self, ChainOptions, ChainReport, Chains, KEEP_CHAIN};
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Silence after which a mapping that netfilter could not be given counts as over.
const SILENCE: Duration = Duration::from_secs(30);

/// What `netdp detach --to-iptables` has to know of the agent that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The chains of its flags.
    pub chains: ChainOptions,
    /// What its flags made of the configuration.
    pub config: config::Options,
}

/// Its name in the state directory.
const FALLBACK: &str = "fallback.json";

impl Fallback {
    /// Writes it for `netdp detach --to-iptables`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FALLBACK, self)
    }

    /// Reads what an agent of this directory wrote.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn read(state_dir: &StateDir) -> Result<Self> {
        state_dir
            .read_json(FALLBACK)
            .context("no agent has left what this needs; has one run with this --state-dir?")
    }
}

/// A datapath that goes on only for mappings that netfilter did not take.
pub struct Rollback {
    bpffs: PathBuf,
    maps: Maps,
    until: Instant,
}

impl Rollback {
    /// Gives every mapping to netfilter that it takes, and new connections to the chains.
    ///
    /// # Errors
    /// The chains can't be prepared, or the maps can't be read. Then the datapath is as before.
    pub fn begin(
        bpffs: &Path,
        chains: &mut Chains,
        config: &Config,
        grace: Duration,
    ) -> Result<(Self, Vec<ChainReport>)> {
        chains.prepare(config)?;
        let mut maps = Maps::open(bpffs)?;
        let before = maps.settings()?;
        let given = Self::hand_over(&mut maps, chains, config);
        maps.set_ports_of(&before)?;
        log::info!("{} mappings are netfilter's now", given?);
        let reports = chains.apply(config);
        let rollback = Self {
            bpffs: bpffs.to_owned(),
            maps,
            until: Instant::now() + grace,
        };
        Ok((rollback, reports))
    }

    /// Until the chains are led to, both may begin connections, and netfilter does not know what
    /// the other's look like on the wire: they use different ports.
    fn hand_over(maps: &mut Maps, chains: &mut Chains, config: &Config) -> Result<usize> {
        let (ours, netfilters) = apart(&chains.ports().ranges);
        maps.open_within(&ours)?;
        let given = give_all(maps)?;
        chains.apply_within(config, &netfilters);
        // What began before they were led to.
        Ok(given + give_all(maps)?)
    }

    /// How many mappings the datapath still has to serve.
    ///
    /// # Errors
    /// The maps can't be read.
    pub fn left(&self) -> Result<usize> {
        self.maps.lingering(SILENCE)
    }

    /// Removes the datapath if nothing needs it any more, or the time is up, and the chain of an earlier
    /// takeover that kept tracking on, which the chains do by now; says what that was.
    ///
    /// # Errors
    /// The maps can't be read, or the programs can't be taken off.
    pub fn finish(&self) -> Result<Option<Vec<String>>> {
        if self.left()? > 0 && Instant::now() < self.until {
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

/// The upper half of the ports in `ranges`, all but the privileged ones if there is none; and the
/// others.
fn apart(ranges: &[(u16, u16)]) -> (Ranges, Ranges) {
    let all = if ranges.is_empty() {
        &[(1024, u16::MAX)]
    } else {
        ranges
    };
    let size = |(min, max): &(u16, u16)| u32::from(*max).saturating_sub(u32::from(*min)) + 1;
    let mut lower = all.iter().map(size).sum::<u32>().div_ceil(2);
    let (mut high, mut low) = (Vec::new(), Vec::new());
    for &(min, max) in all {
        // The first port that is not among the lower ones; none of them fits 16 bits then.
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
        // A single port can't be split.
        high.clone_from(&low);
    }
    (high, low)
}

fn give_all(maps: &mut Maps) -> Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let mut given = 0;
    for handover in maps.handovers()? {
        if give(maps, &mut conntrack, &handover)? {
            given += 1;
        }
    }
    Ok(given)
}

/// Whether netfilter takes the mapping. In this order what it translates early may leave, and its
/// answers are ours until it surely does.
fn give(maps: &mut Maps, conntrack: &mut Conntrack, handover: &Handover) -> Result<bool> {
    maps.hand(handover)?;
    if let Err(err) = conntrack.replace(&handover.flow) {
        log::debug!("netfilter does not take {:?}: {err:#}", handover.flow);
        maps.take_back(handover)?;
        return Ok(false);
    }
    maps.give_up(handover)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn ports_are_split_in_halves() {
        let high_low = |high: &[(u16, u16)], low: &[(u16, u16)]| (high.to_vec(), low.to_vec());
        assert_eq!(apart(&[]), high_low(&[(33_280, 65_535)], &[(1024, 33_279)]));
        assert_eq!(
            apart(&[(1, 2), (10, 13), (20, 21)]),
            high_low(&[(12, 13), (20, 21)], &[(1, 2), (10, 11)])
        );
        assert_eq!(apart(&[(1, 4), (7, 10)]), high_low(&[(7, 10)], &[(1, 4)]));
        assert_eq!(apart(&[(1, 3)]), high_low(&[(3, 3)], &[(1, 2)]));
        assert_eq!(apart(&[(9, 9)]), high_low(&[(9, 9)], &[(9, 9)]));
    }
}
