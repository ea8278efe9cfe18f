//! The way back: what the datapath translates becomes netfilter's.
//!
//! docs/adr/0021 has the order and why no packet leaves with a pod's address in between.

use crate::config::{self, Config};
use crate::conntrack::Conntrack;
use crate::datapath::{self, Handover, Maps};
use crate::iptables::{ChainOptions, ChainReport, Chains};
use anyhow::Result;
use serde::{Deserialize, Serialize};
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
        chains: &Chains,
        config: &Config,
        grace: Duration,
    ) -> Result<(Self, Vec<ChainReport>)> {
        chains.prepare(config)?;
        let mut maps = Maps::open(bpffs)?;
        let given = give_all(&mut maps)?;
        let reports = chains.apply(config);
        // What began before the chains were led to.
        let later = give_all(&mut maps)?;
        log::info!("{} mappings are netfilter's now", given + later);
        let rollback = Self {
            bpffs: bpffs.to_owned(),
            maps,
            until: Instant::now() + grace,
        };
        Ok((rollback, reports))
    }

    /// How many mappings the datapath still has to serve.
    ///
    /// # Errors
    /// The maps can't be read.
    pub fn left(&self) -> Result<usize> {
        self.maps.lingering(SILENCE)
    }

    /// Removes the datapath if nothing needs it any more, or the time is up; says what that was.
    ///
    /// # Errors
    /// The maps can't be read, or the programs can't be taken off.
    pub fn finish(&self) -> Result<Option<Vec<String>>> {
        if self.left()? > 0 && Instant::now() < self.until {
            return Ok(None);
        }
        datapath::detach(&self.bpffs).map(Some)
    }
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
