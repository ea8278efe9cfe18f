//! netfilter's part of the status: rules of the chains, and third-party NAT rules.

use super::Report;
use crate::cli::output::table;
use crate::codes::Code;
use crate::foreign::NatFindings;
use crate::iptables::{ChainReport, IptablesRule};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;

/// The rules of one chain as in the kernel.
#[derive(Debug, Serialize)]
pub(super) struct LiveRules {
    family: String,
    chain: String,
    rules: Vec<IptablesRule>,
    /// Reason why they cannot be read, if so.
    error: Option<String>,
}

/// Reads the rules of each chain that the agent keeps.
pub(super) fn live(report: Option<&Report>) -> Vec<LiveRules> {
    let chains = report.map_or(&[][..], |report| &report.chains);
    let read = |chain: &ChainReport| {
        let live = chain.read_rules();
        LiveRules {
            family: chain.family.clone(),
            chain: chain.chain.clone(),
            error: live.as_ref().err().map(|err| format!("{err:#}")),
            rules: live.unwrap_or_default(),
        }
    };
    chains.iter().map(read).collect()
}

/// Formats the rules with their counters.
pub(super) fn rules(out: &mut String, chains: &[LiveRules]) -> Result<()> {
    if chains.is_empty() {
        return Ok(());
    }
    let mut rows = table(&["PACKETS", "BYTES", "FAMILY", "RULE"]);
    for chain in chains {
        for rule in &chain.rules {
            rows.add_row([
                rule.counters.0.to_string(),
                rule.counters.1.to_string(),
                chain.family.clone(),
                without_comment(&rule.text),
            ]);
        }
        if let Some(error) = &chain.error {
            let unread = format!("not read: {error}");
            rows.add_row(["-", "-", &chain.family, &unread]);
        }
    }
    writeln!(out, "{rows}\n")?;
    Ok(())
}

/// Removes the rule's comment, which is long and the same for all rules.
fn without_comment(rule: &str) -> String {
    let parts = rule
        .split_once("-m comment --comment \"")
        .and_then(|(before, rest)| {
            let (_, after) = rest.split_once("\" ")?;
            Some(format!("{before}{after}"))
        });
    parts.unwrap_or_else(|| rule.to_owned())
}

/// Formats third-party NAT rules.
pub(super) fn foreign(out: &mut String, seen: &NatFindings) -> Result<()> {
    for problem in &seen.unread {
        writeln!(out, "other NAT  not read: {problem}")?;
    }
    for found in seen.rules.iter().filter(|found| found.conflict) {
        match found.drops {
            true => writeln!(out, "conflict   {found}")?,
            false => writeln!(out, "conflict   {found} {}", Code::OtherNat)?,
        }
    }
    if !seen.rules.is_empty() {
        let mut rows = table(&["OTHER NAT", "FAMILY", "KIND", "CHAIN", "RULES", "VERDICT"]);
        for found in &seen.rules {
            rows.add_row([
                found.owner.clone(),
                found.family.clone(),
                found.backend.clone(),
                found.chain.clone(),
                found.count.to_string(),
                match found.conflict {
                    true => "conflict: see above".into(),
                    false => format!("harmless: {}", found.why),
                },
            ]);
        }
        writeln!(out, "\n{rows}\n")?;
    }
    Ok(())
}
