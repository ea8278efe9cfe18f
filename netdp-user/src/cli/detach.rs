//! `netdp detach`.

use super::args::InstancePaths;
use crate::agent::Memory;
use crate::config::{self, ClusterCidrs, Config, RuleAction, parse_duration};
use crate::datapath;
use crate::iptables::{self, ChainReport, Chains, KEEP_CHAIN, Removal};
use crate::report::Report;
use crate::rollback::{Fallback, Rollback};
use crate::state_dir::StateDir;
use crate::terminal;
use crate::upstream::masq_agent;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Period of polling whether the datapath is still needed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Period of the message that it is still needed.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Detach {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// First write ip-masq-agent's chains from the last good configuration and hand the mappings
    /// over to netfilter, so that no connection ends.
    #[arg(long)]
    to_iptables: bool,
    /// How long to wait for mappings that netfilter cannot take over.
    #[arg(long = "rollback-grace", alias = "grace", value_name = "DURATION",
          default_value = "5m", value_parser = parse_duration, requires = "to_iptables")]
    grace: Duration,
}

impl Detach {
    pub(super) fn run(self) -> Result<()> {
        let dir = StateDir::open(&self.paths.state_dir)?;
        let _lock = match dir.lock()? {
            Some(lock) => lock,
            None => bail!(
                "an agent is running on {}; stop it first, or it would attach again",
                self.paths.state_dir.display()
            ),
        };
        let Removal { removed, failed } = if self.to_iptables {
            let removed = self.to_iptables(&dir)?;
            Removal {
                removed,
                failed: Vec::new(),
            }
        } else {
            self.remove_all(&dir)
        };
        for what in removed {
            eprintln!("netdp: removed {}", terminal::line(&what));
        }
        if !failed.is_empty() {
            bail!("not removed: {}", failed.join("; "));
        }
        Ok(())
    }

    /// Removes everything that agents may have left. An object that can't be removed does not stop
    /// the others from being removed.
    fn remove_all(&self, dir: &StateDir) -> Removal {
        let left = Memory::read(dir).unwrap_or_else(|err| {
            eprintln!(
                "netdp: {}: chains, filters and a ready file that only it records may remain",
                terminal::line(&format!("{err:#}"))
            );
            None
        });
        let left = left.unwrap_or_default();
        let mut chains: BTreeSet<_> = left.chains.iter().map(|it| it.chain.as_str()).collect();
        chains.insert(KEEP_CHAIN);
        let mut all = iptables::remove(&chains);
        let missing_program = left.chains.iter().filter_map(ChainReport::missing_program);
        all.failed.extend(missing_program);
        match datapath::detach(&self.paths.bpffs) {
            Ok(removed) => all.removed.extend(removed),
            Err(err) => all.failed.push(format!("{err:#}")),
        }
        // Filters of a datapath whose maps were not pinned any more.
        (all.removed).extend(datapath::remove_filters(&left.placed));
        match Self::forget_untracked(dir) {
            Ok(Some(what)) => all.removed.push(what),
            Ok(None) => {}
            Err(err) => all.failed.push(format!("{err:#}")),
        }
        Self::report_other_chains(dir, &chains);
        if let Some(ready) = &left.ready_file {
            match std::fs::remove_file(ready) {
                Ok(()) => all.removed.push(ready.display().to_string()),
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                Err(err) => all.failed.push(format!("{}: {err}", ready.display())),
            }
        }
        // The files there are needed to find the remaining objects.
        if all.failed.is_empty() {
            let state_dir = self.paths.state_dir.display();
            match dir.remove() {
                Ok(true) => all
                    .removed
                    .push(format!("the agents' files in {state_dir}")),
                Ok(false) => {}
                Err(err) => all.failed.push(format!("{err:#}")),
            }
        }
        if all.removed.is_empty() && all.failed.is_empty() {
            eprintln!(
                "netdp: nothing to remove: no programs or pins in {}, no chains, no state in {}",
                self.paths.bpffs.display(),
                self.paths.state_dir.display()
            );
        }
        all
    }

    /// Deletes the conntrack entries of flows translated by a datapath that was not detached
    /// properly: its pins were removed. Needs the last good configuration.
    fn forget_untracked(dir: &StateDir) -> Result<Option<String>> {
        if !datapath::is_marked() {
            return Ok(None);
        }
        let config = match last_good(dir) {
            Ok(config) => config,
            Err(err) => {
                eprintln!(
                    "netdp: the mark in connection tracking that tells the next netdp run of \
                     translated flows is left, because without the last good configuration they \
                     cannot be identified: {err:#}. It expires by itself; conntrack -D -p 253 \
                     removes it"
                );
                return Ok(None);
            }
        };
        let local = nix::ifaddrs::getifaddrs().context("listing the node's addresses")?;
        let local = local.filter_map(|it| {
            let address = it.address?;
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
        });
        let forgotten = datapath::delete_entries(&local.collect(), |flow, way| {
            datapath::may_be_translated(flow, way)
                && config.decide(way.destination).action != RuleAction::Bypass
        })?;
        Ok(Some(format!(
            "the conntrack entries of {forgotten} flows that may have been translated"
        )))
    }

    /// Reports chains in netdp's format that no record attributes to netdp.
    fn report_other_chains(dir: &StateDir, removed: &BTreeSet<&str>) {
        let name = Fallback::read(dir).map(|fallback| fallback.chains.name);
        let name = name.unwrap_or_else(|_| masq_agent::CHAIN.into());
        if removed.contains(name.as_str()) {
            return;
        }
        let (found, _) = iptables::find_replaced(&name, |_| false);
        for found in found {
            eprintln!(
                "netdp: {found} is left: no record shows that netdp wrote it, and ip-masq-agent \
                 writes the same chain. If neither runs on this node any more, remove it with \
                 iptables"
            );
        }
    }

    fn to_iptables(&self, dir: &StateDir) -> Result<Vec<String>> {
        let config = last_good(dir)?;
        let mut chains = Chains::new(&Fallback::read(dir)?.chains)?;
        let bpffs = &self.paths.bpffs;
        datapath::adopt(bpffs)?;
        let (rollback, reports) = Rollback::begin(bpffs, &mut chains, &config, self.grace)?;
        if let Some(error) = reports.iter().find_map(|report| report.error.clone()) {
            bail!("{error}; the eBPF datapath stays in force");
        }
        let mut last_report = Instant::now();
        let removed = loop {
            if let Some(removed) = rollback.finish()? {
                break removed;
            }
            if last_report.elapsed() >= REPORT_INTERVAL {
                last_report = Instant::now();
                eprintln!(
                    "netdp: waiting for the end of {} mappings that netfilter cannot take over",
                    rollback.still_active()?
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let memory = Memory {
            policy: Memory::recall(dir).policy,
            chains: reports.clone(),
            ..Memory::default()
        };
        memory.save(dir)?;
        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: "iptables".into(),
            chains: reports,
            ..Report::default()
        };
        report.save(dir)?;
        Ok(removed)
    }
}

/// Returns the last good configuration, with the effect of the agent's flags.
fn last_good(dir: &StateDir) -> Result<Config> {
    let fallback = Fallback::read(dir)?;
    let documents = dir.last_good().unwrap_or_default();
    let mut networks = ClusterCidrs::default();
    networks.auto.add_saved(dir.last_networks());
    let loaded = config::load_for_cluster(&documents, &fallback.config, &networks)
        .map_err(|rejected| anyhow!("the last good configuration: {rejected}"))?;
    Ok(loaded.config)
}
