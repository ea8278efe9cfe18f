//! Time from a configuration edit to the policy in force, and the agent's memory use for it.

use super::measure::{About, Lab};
use super::variant::Kind;
use anyhow::{Context as _, Result};
use std::fs;

impl Lab {
    /// Measures a change of one CIDR among many.
    pub fn one_line(&mut self, cidrs: u32) -> Result<()> {
        let mut turn = 0;
        let about = about("one CIDR changed, in force after", "ms", cidrs);
        self.interleave(about, |bed, _| {
            turn += 1;
            let took = bed.change_one(cidrs, turn)?;
            Ok(took.map(|took| took.as_secs_f64() * 1e3))
        })
    }

    /// Measures a change from twelve CIDRs to many.
    pub fn all_lines(&mut self, cidrs: u32) -> Result<()> {
        let about = about("all CIDRs changed, in force after", "ms", cidrs);
        self.interleave(about, |bed, _| {
            if matches!(bed.variant.kind, Kind::Plain | Kind::Empty) {
                return Ok(None);
            }
            bed.set_cidrs(super::FEW)?;
            Ok(Some(bed.set_cidrs(cidrs)?.as_secs_f64() * 1e3))
        })
    }

    /// Measures the agent's current and maximum resident memory after that.
    pub fn memory(&mut self, cidrs: u32) -> Result<()> {
        for (what, field) in [
            ("the agent's memory", "VmRSS:"),
            ("the most of it so far", "VmHWM:"),
        ] {
            self.interleave(about(what, "MiB", cidrs), |bed, _| {
                bed.agent_pid().map(|pid| resident(pid, field)).transpose()
            })?;
        }
        Ok(())
    }
}

fn about(what: &str, unit: &'static str, cidrs: u32) -> About {
    About {
        what: what.into(),
        unit,
        curve: Some((format!("{what}, {unit} by CIDRs"), cidrs.into())),
        higher_is_better: false,
    }
}

/// Returns a field of a process's status that is in KiB, converted to MiB.
pub fn resident(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    let kib: f64 = value
        .with_context(|| format!("{path}: no {field}"))?
        .parse()?;
    Ok(kib / 1024.0)
}
