//! The names of what numbers in events stand for: pods, interfaces, rules.

use super::Sources;
use crate::datapath::{self, Maps};
use crate::pods::{Names, Owner};
use crate::state_dir::StateDir;
use anyhow::Result;
use ipnet::IpNet;
use nix::net::if_::if_indextoname;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time for which names are kept.
const KEEP: Duration = Duration::from_secs(5);

/// Names as they were read some seconds ago at most.
pub(super) struct Known {
    cni_dir: PathBuf,
    state_dir: StateDir,
    maps: Maps,
    pods: Names,
    rules: HashMap<u32, IpNet>,
    /// The number of policies so far, when `rules` was read.
    generation: Option<u32>,
    interfaces: HashMap<u32, Option<String>>,
    read: Instant,
}

impl Known {
    /// Opens the maps, and reads names.
    ///
    /// # Errors
    /// Returns an error if there is no datapath.
    pub(super) fn open(sources: &Sources<'_>) -> Result<Self> {
        let state_dir = StateDir::at(sources.state_dir);
        let mut known = Self {
            cni_dir: sources.cni_dir.to_owned(),
            maps: datapath::open(sources.bpffs)?,
            pods: Names::load(sources.cni_dir, &state_dir),
            state_dir,
            rules: HashMap::new(),
            generation: None,
            interfaces: HashMap::new(),
            read: Instant::now(),
        };
        known.read_rules();
        Ok(known)
    }

    /// Reads again what may have changed, if that is due.
    pub(super) fn refresh(&mut self) {
        if self.read.elapsed() < KEEP {
            return;
        }
        self.read = Instant::now();
        self.pods = Names::load(&self.cni_dir, &self.state_dir);
        self.interfaces.clear();
        self.read_rules();
    }

    /// Reads the rules in force, if they are others than before. Where they can't be read, rules have
    /// no names.
    fn read_rules(&mut self) {
        let generation = self
            .maps
            .settings()
            .ok()
            .map(|settings| settings.generation);
        if generation.is_some() && generation == self.generation {
            return;
        }
        self.generation = generation;
        if let Ok(policy) = self.maps.numbered_policy() {
            let rules = policy.rules().map(|(net, value)| (value.rule, net));
            self.rules = rules.collect();
        }
    }

    /// Returns the pod that had an address at a time, in nanoseconds since 1970.
    pub(super) fn owner(&self, address: IpAddr, time: u64) -> Option<Owner<'_>> {
        self.pods.owner(address, time / 1_000_000)
    }

    /// Returns the prefix of a rule, by its index in `rule_hits`.
    pub(super) fn rule(&self, index: u32) -> Option<IpNet> {
        self.rules.get(&index).copied()
    }

    /// Returns the name of an interface; `None` if it is gone.
    pub(super) fn interface(&mut self, index: u32) -> Option<String> {
        let name = self.interfaces.entry(index).or_insert_with(|| {
            let name = if_indextoname(index).ok()?;
            Some(name.to_string_lossy().into_owned())
        });
        name.clone()
    }
}
