//! `netdp detach`.

use super::Places;
use crate::config::{self, parse_duration};
use crate::datapath;
use crate::iptables::{self, Chains};
use crate::rollback::Rollback;
use crate::state_dir::StateDir;
use crate::status::Report;
use crate::terminal;
use anyhow::{Result, anyhow, bail};
use clap::Args;
use std::time::{Duration, Instant};

/// How often it is looked whether the datapath is still needed.
const LOOK: Duration = Duration::from_millis(200);

/// How often it is told that it is.
const TELL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Detach {
    #[command(flatten)]
    pub(super) places: Places,
    /// Give the mappings to netfilter first, and new connections to ip-masq-agent's chains, made of
    /// the last good configuration: no connection ends.
    #[arg(long)]
    to_iptables: bool,
    /// How long to wait for mappings that netfilter does not take.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration,
          requires = "to_iptables")]
    grace: Duration,
}

impl Detach {
    pub(super) fn run(self) -> Result<()> {
        let dir = StateDir::open(&self.places.state_dir)?;
        let _lock = match dir.lock()? {
            Some(lock) => lock,
            None => bail!(
                "an agent is running on {}; stop it first, or it would attach again",
                self.places.state_dir.display()
            ),
        };
        let removed = if self.to_iptables {
            self.to_iptables(&dir)?
        } else {
            self.for_good(&dir)?
        };
        for what in removed {
            eprintln!("netdp: removed {}", terminal::line(&what));
        }
        Ok(())
    }

    fn for_good(&self, dir: &StateDir) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let report = dir.report().unwrap_or_default();
        for chain in report.chains {
            removed.extend(iptables::remove(&chain.chain)?);
        }
        removed.extend(datapath::detach(&self.places.bpffs)?);
        // Those of a datapath whose maps were not pinned any more.
        removed.extend(datapath::remove_filters(&report.placed));
        dir.forget()?;
        if removed.is_empty() {
            eprintln!(
                "netdp: nothing is pinned in {}, and no agent wrote chains",
                self.places.bpffs.display()
            );
        }
        Ok(removed)
    }

    fn to_iptables(&self, dir: &StateDir) -> Result<Vec<String>> {
        let fallback = dir.fallback()?;
        let documents = dir.last_good().unwrap_or_default();
        let config = config::load(&documents, &fallback.config)
            .map_err(|rejected| anyhow!("the last good configuration: {rejected}"))?
            .config;
        let chains = Chains::new(&fallback.chains)?;
        let bpffs = &self.places.bpffs;
        datapath::adopt(bpffs)?;
        let (rollback, reports) = Rollback::begin(bpffs, &chains, &config, self.grace)?;
        if let Some(error) = reports.iter().find_map(|report| report.error.clone()) {
            bail!("{error}; the eBPF datapath goes on");
        }
        let mut told = Instant::now();
        let removed = loop {
            if let Some(removed) = rollback.finish()? {
                break removed;
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                eprintln!(
                    "netdp: {} mappings that netfilter does not take; waiting for their end",
                    rollback.left()?
                );
            }
            std::thread::sleep(LOOK);
        };
        dir.save_report(&Report {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: "iptables".into(),
            chains: reports,
            ..Report::default()
        })?;
        Ok(removed)
    }
}
