//! `netdp policy`: the policy in force with what each prefix has counted.

use super::args::{InstancePaths, Output};
use crate::policy::{self, Query};
use anyhow::Result;
use clap::Args;
use std::net::IpAddr;

/// End of the help text.
const EXAMPLES: &str = "\
Examples:
  netdp policy
  netdp policy --unused=30d
  netdp policy --for 10.2.0.17 -o json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ShowPolicy {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Only rules that no packet has hit since counts began; with a time, such as 30d, 12h or
    /// 90m, that none has hit for that long.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          value_parser = parse_age)]
    unused: Option<Option<u64>>,
    /// Only rules that contain this address.
    #[arg(long = "for", value_name = "IP")]
    destination: Option<IpAddr>,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl ShowPolicy {
    /// Runs the command.
    ///
    /// # Errors
    /// Returns an error if there are no maps, or they can't be read.
    pub(super) fn run(&self) -> Result<()> {
        let query = Query {
            unused: self.unused,
            destination: self.destination,
            json: self.output == Output::Json,
        };
        policy::print(&self.paths.bpffs, &self.paths.state_dir, &query)
    }
}

/// Parses a time such as `30d`; returns seconds.
pub(crate) fn parse_age(text: &str) -> Result<u64, String> {
    const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let parsed = UNITS.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        number.checked_mul(*seconds)
    });
    parsed.ok_or_else(|| "expected a number with d, h, m or s, such as 30d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_age;

    #[test]
    fn an_age_has_one_unit() {
        assert_eq!(parse_age("30d"), Ok(2_592_000));
        assert_eq!(parse_age("90m"), Ok(5_400));
        for wrong in ["", "30", "d", "1h30m", "-1d", "99999999999999999999d"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }
}
