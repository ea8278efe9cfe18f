//! From the edit of a configuration to a policy in force.

use super::measure::{About, Lab};
use super::policy;
use anyhow::{Context as _, Result};

impl Lab {
    /// One CIDR among many changes.
    pub fn one_line(&mut self, cidrs: u32) -> Result<()> {
        let about = About {
            what: "one CIDR changed, in force after".into(),
            unit: "ms",
            curve: Some(("one CIDR changed, ms by CIDRs".into(), cidrs.into())),
            higher_is_better: false,
        };
        let mut turn = 0;
        self.interleave(about, |bed, _| {
            if bed.agent_pid().is_none() {
                return Ok(None);
            }
            turn += 1;
            let mut files = policy::netdp(cidrs);
            let first = files.first_mut().context("no file")?;
            first.push_str(&format!("- 192.0.2.{}/32\n", turn % 250));
            Ok(Some(bed.edit(&files)?.as_secs_f64() * 1e3))
        })
    }

    /// From twelve CIDRs to many.
    pub fn all_lines(&mut self, cidrs: u32) -> Result<()> {
        let about = About {
            what: "all CIDRs changed, in force after".into(),
            unit: "ms",
            curve: Some(("all CIDRs changed, ms by CIDRs".into(), cidrs.into())),
            higher_is_better: false,
        };
        self.interleave(about, |bed, _| {
            if bed.agent_pid().is_none() {
                return Ok(None);
            }
            bed.set_cidrs(super::FEW)?;
            Ok(Some(bed.set_cidrs(cidrs)?.as_secs_f64() * 1e3))
        })
    }
}
