//! Samples: what the maps and the agent's report say at one time.

use super::run_time::{Counting, Runs, runs};
use crate::datapath::{self, Destination, Maps, Usage};
use crate::machine;
use crate::pods::Names;
use crate::policy::{self, PrefixUse};
use crate::report::Report;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result};
use netdp_common::layout::Counters;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Demands on a sample besides the totals.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    /// The datapath's time of the last sample, in ticks.
    pub since: Option<u32>,
    /// The destinations whose mappings are counted by pod.
    pub watched: HashSet<Destination>,
    /// Set if the kernel is to count run times.
    pub run_time: bool,
    /// Set if prefixes are shown.
    pub prefixes: bool,
}

/// The counters of an uplink.
#[derive(Debug, Clone)]
pub(super) struct UplinkSample {
    /// Name of the interface.
    pub name: String,
    /// Counts since it has its number.
    pub counters: Counters,
}

/// One look at everything.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// The time of the look.
    pub at: Instant,
    /// The time that it took.
    pub took: Duration,
    /// Names of pods.
    pub names: Arc<Names>,
    /// Name of the node.
    pub node: String,
    /// Mappings by pod and destination.
    pub usage: Usage,
    /// Counters of all interfaces.
    pub counters: Counters,
    /// Those of each uplink.
    pub uplinks: Vec<UplinkSample>,
    /// Most mappings that there may be.
    pub capacity: u64,
    /// Ports towards one destination.
    pub ports: u64,
    /// The agent's last report; `None` if there is none.
    pub report: Option<Report>,
    /// True if an agent runs.
    pub has_agent: bool,
    /// Runs of the programs, while they are counted.
    pub runs: Option<Runs>,
    /// Reason why they can't be counted.
    pub no_runs: Option<String>,
    /// Rules of the policy, while they are shown.
    pub prefixes: Vec<PrefixUse>,
    /// Reason why they can't be read.
    pub no_prefixes: Option<String>,
}

/// Reads samples.
pub(super) struct Sampler {
    maps: Maps,
    bpffs: PathBuf,
    state_dir: PathBuf,
    cni_dir: PathBuf,
    /// Names of pods, and when they were read.
    names: Option<(Arc<Names>, Instant)>,
    counting: Option<Counting>,
}

/// Time for which names of pods are not read again.
const NAMES_LAST: Duration = Duration::from_secs(10);

impl Sampler {
    /// Opens the maps.
    ///
    /// # Errors
    /// Returns an error if there are none, or if they can't be read.
    pub(super) fn open(bpffs: &Path, state_dir: &Path, cni_dir: &Path) -> Result<Self> {
        Ok(Self {
            maps: datapath::open(bpffs)?,
            bpffs: bpffs.to_owned(),
            state_dir: state_dir.to_owned(),
            cni_dir: cni_dir.to_owned(),
            names: None,
            counting: None,
        })
    }

    /// Takes a sample.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(super) fn sample(&mut self, request: &Request) -> Result<Sample> {
        let begin = Instant::now();
        let state_dir = StateDir::at(&self.state_dir);
        let report = Report::read(&state_dir).ok();
        let (runs, no_runs) = match self.runs(request.run_time) {
            Ok(runs) => (runs, None),
            Err(err) => (None, Some(format!("{err:#}"))),
        };
        let (prefixes, no_prefixes) = match self.prefixes(request.prefixes) {
            Ok(prefixes) => (prefixes, None),
            Err(err) => (Vec::new(), Some(format!("{err:#}"))),
        };
        let usage = self.maps.usage(request.since, &request.watched)?;
        Ok(Sample {
            at: begin,
            took: begin.elapsed(),
            node: machine::name(),
            names: self.names(),
            usage,
            counters: self.maps.counters()?,
            uplinks: self.uplinks(report.as_ref())?,
            capacity: self.maps.capacity()? as u64,
            ports: self.maps.ports_of_destination()?,
            has_agent: state_dir.lock_holder().is_some(),
            report,
            runs,
            no_runs,
            prefixes,
            no_prefixes,
        })
    }

    fn names(&mut self) -> Arc<Names> {
        if let Some((names, at)) = &self.names
            && at.elapsed() < NAMES_LAST
        {
            return Arc::clone(names);
        }
        let names = Arc::new(Names::load(&self.cni_dir, &StateDir::at(&self.state_dir)));
        self.names = Some((Arc::clone(&names), Instant::now()));
        names
    }

    fn prefixes(&self, are_wanted: bool) -> Result<Vec<PrefixUse>> {
        if !are_wanted {
            return Ok(Vec::new());
        }
        policy::prefixes(&self.bpffs, &self.state_dir)
    }

    fn runs(&mut self, are_wanted: bool) -> Result<Option<Runs>> {
        if !are_wanted {
            self.counting = None;
            return Ok(None);
        }
        if self.counting.is_none() {
            self.counting = Some(Counting::begin()?);
        }
        runs(self.maps.snat_id()?).map(Some)
    }

    fn uplinks(&self, report: Option<&Report>) -> Result<Vec<UplinkSample>> {
        let mut uplinks = Vec::new();
        for ifindex in self.maps.uplinks()? {
            let known = report.and_then(|report| {
                let mut uplinks = report.uplinks.iter();
                uplinks.find(|uplink| uplink.ifindex == ifindex)
            });
            let number = self.maps.uplink(ifindex)?.number();
            uplinks.push(UplinkSample {
                name: known.map_or_else(|| format!("#{ifindex}"), |uplink| uplink.name.clone()),
                counters: self
                    .maps
                    .counters_of(number)
                    .context("reading the counters of an uplink")?,
            });
        }
        uplinks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(uplinks)
    }
}
