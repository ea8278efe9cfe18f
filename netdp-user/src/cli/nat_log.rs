//! The flags of the NAT log.

use crate::config::parse_duration;
use crate::nat_log::{NatLogOptions, Rotation, Target};
use anyhow::{Result, bail};
use clap::Args;
use std::time::Duration;

/// The shortest interval for living mappings and the shortest age of files.
const SHORTEST: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct NatLogFlags {
    /// Where to log which pod had which address and port on the wire, and when: a file, a Unix stream
    /// socket (unix:PATH), or an IPFIX collector over UDP (ipfix://ADDR:PORT). Without it, nowhere.
    #[arg(long, value_name = "TARGET")]
    nat_log: Option<Target>,
    /// Log the destinations, too.
    #[arg(long, requires = "nat_log")]
    nat_log_destinations: bool,
    /// Interval at which a living mapping is logged; 0: never.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    nat_log_alive: Duration,
    /// Size at which the log's file is rotated, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    nat_log_size: u64,
    /// Age at which the log's file is rotated.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    nat_log_age: Duration,
    /// Number of rotated files that are kept, compressed.
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nat_log_keep: u32,
}

impl NatLogFlags {
    /// Reports whether there is to be a log.
    pub(super) const fn is_given(&self) -> bool {
        self.nat_log.is_some()
    }

    /// Returns the options of the log, if there is to be one.
    pub(super) fn options(&self) -> Result<Option<NatLogOptions>> {
        if self.nat_log_alive < SHORTEST && !self.nat_log_alive.is_zero() {
            bail!("--nat-log-alive: at least 1m, or 0 for never");
        }
        if self.nat_log_age < SHORTEST {
            bail!("--nat-log-age: at least 1m");
        }
        Ok(self.nat_log.clone().map(|target| NatLogOptions {
            target,
            destinations: self.nat_log_destinations,
            alive: self.nat_log_alive,
            rotation: Rotation {
                size: self.nat_log_size << 20,
                age: self.nat_log_age,
                keep: self.nat_log_keep as usize,
            },
        }))
    }
}
