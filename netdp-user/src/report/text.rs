//! Text output of `netdp status`.

use super::findings::FILLING;
use super::status::Status;
use super::{ConfigReport, Report, nat};
use crate::cli::output::table;
use crate::codes::{Code, Severity};
use crate::pod;
use crate::terminal;
use crate::time::{now, pretty};
use anyhow::Result;
use netdp_common::layout::DropReason;
use std::fmt::Write as _;

impl Status {
    pub(super) fn text(&self) -> Result<String> {
        let mut out = String::new();
        match self.pid {
            Some(pid) => writeln!(out, "agent      running, pid {pid}")?,
            None => writeln!(out, "agent      not running {}", Code::AgentGone)?,
        }
        let mut problems: Vec<Code> = (self.findings().iter())
            .filter(|finding| finding.severity != Severity::Info)
            .filter_map(|finding| finding.code)
            .collect();
        problems.dedup();
        if !problems.is_empty() {
            let named = problems
                .iter()
                .map(|code| format!("{code} {}", code.text()));
            let named: Vec<_> = named.collect();
            writeln!(out, "problems   {}", named.join("; "))?;
        }
        let report = self.report.as_ref().map(terminal::sanitize).transpose()?;
        if let Some(report) = &report {
            writeln!(out, "mode       {}", report.mode)?;
            if let Some(no_ebpf) = &report.no_ebpf {
                writeln!(out, "no eBPF    {}", no_ebpf.why)?;
                for line in &no_ebpf.add {
                    writeln!(out, "to add     {line}")?;
                }
                if !no_ebpf.add.is_empty() {
                    writeln!(out, "           ({})", pod::BELOW)?;
                }
            }
        }
        match self.off.as_slice() {
            [] => writeln!(out, "datapath   {}", self.datapath)?,
            reasons => {
                for reason in reasons {
                    let reason = terminal::line(reason);
                    writeln!(out, "datapath   NOT IN FORCE: {reason}")?;
                }
            }
        }
        if let Some(kernel) = report.as_ref().and_then(|report| report.kernel.as_ref()) {
            writeln!(out, "kernel     {kernel}")?;
        }
        for what in &self.behind {
            writeln!(out, "conflict   {}", terminal::line(what))?;
        }
        if let Some(report) = &report {
            if let Some(why) = &report.unpinned {
                writeln!(
                    out,
                    "unpinned   the datapath will not outlive the agent: {why}"
                )?;
            }
            if let Some(why) = &report.fleeting {
                writeln!(out, "unpinned   {why}")?;
            }
            if report.repairs > 0 {
                writeln!(
                    out,
                    "repairs    {} (programs or pins that were removed, and restored)",
                    report.repairs
                )?;
            }
        }
        let (used, max) = (self.mappings, self.max_mappings);
        let percent = (used * 100).checked_div(max).unwrap_or(0);
        match &self.unread {
            None if percent > FILLING => {
                let code = Code::TableFilling;
                writeln!(out, "mappings   {used} of {max} ({percent} %) {code}")?;
            }
            None => writeln!(out, "mappings   {used} of {max} ({percent} %)")?,
            Some(why) => writeln!(out, "mappings   unknown: {}", terminal::line(why))?,
        }
        if let Some(report) = &report {
            describe(&mut out, report)?;
            nat::rules(&mut out, &self.rules)?;
            nat::foreign(&mut out, &report.foreign)?;
        }
        let shown: Vec<_> = self
            .packets
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        writeln!(out, "packets    {}", or_none(&shown, ", "))?;
        let drops: Vec<_> = self
            .drops
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| {
                let reason = DropReason::ALL.iter().find(|it| it.name() == *name);
                let code = reason.and_then(|reason| Code::of_drop(*reason));
                let code = code.map_or_else(String::new, |code| format!(" {code}"));
                format!("{name} {count}{code}")
            })
            .collect();
        writeln!(out, "dropped    {}", or_none(&drops, ", "))?;
        Ok(out)
    }
}

fn describe(out: &mut String, report: &Report) -> Result<()> {
    let config = &report.config;
    let age = now().saturating_sub(config.applied_at);
    let files = match config.files.as_slice() {
        [] => String::new(),
        files => format!(" ({})", files.join(", ")),
    };
    writeln!(
        out,
        "config     {} from {}{files}, in force for {}",
        config.hash,
        config.source,
        pretty(age)
    )?;
    for problem in &config.rejected {
        writeln!(out, "rejected   {problem} {}", Code::Rejected)?;
    }
    for warning in &config.warnings {
        writeln!(out, "warning    {warning}")?;
    }
    if let Some(api) = &report.api {
        writeln!(out, "api        {api}")?;
    }
    for reason in &report.unready {
        writeln!(out, "not ready  {reason}")?;
    }
    for name in &report.waiting_for {
        writeln!(out, "waiting    for an interface that matches {name}")?;
    }
    for name in &report.waiting_for_pods {
        writeln!(
            out,
            "waiting    for an interface towards pods that matches {name}"
        )?;
    }
    for hint in &report.hints {
        writeln!(out, "hint       {hint}")?;
    }
    if let Some(reason) = &report.no_uplink
        && report.waiting_for.is_empty()
    {
        writeln!(out, "waiting    {reason}")?;
    }
    // If there is no uplink at all, this is the reason.
    for what in report
        .left_out
        .iter()
        .filter(|what| report.no_uplink.as_ref() != Some(*what))
    {
        writeln!(out, "left out   {what}")?;
    }
    for what in &report.stacked {
        writeln!(out, "stacked    {what}")?;
    }
    for what in &report.no_address {
        let what = what.describe(report.mode == "iptables");
        writeln!(out, "no address {what} {}", Code::NoAddress)?;
    }
    for what in &report.leaks {
        writeln!(out, "leak       {what} {}", Code::NoUplink)?;
    }
    if !report.guests.is_empty() {
        let guests = report.guests.join(", ");
        writeln!(
            out,
            "guests     {guests}: traffic to them is not masqueraded"
        )?;
    }
    for what in &report.chains_back {
        writeln!(
            out,
            "conflict   {what} was created again: another program still writes it {}",
            Code::ChainBack
        )?;
    }
    for what in &report.not_taken_over {
        writeln!(out, "takeover   will be retried: {what}")?;
    }
    for what in &report.ipsec {
        writeln!(out, "ipsec      {what}")?;
    }
    for what in &report.detours {
        writeln!(out, "detour     {what} {}", Code::Detour)?;
    }
    for finding in &report.reach {
        let code = finding.verdict.code();
        let code = code.map_or_else(String::new, |code| format!(" {code}"));
        writeln!(out, "reach      {}{code}", finding.describe())?;
    }
    if let Some(room) = &report.ended_for_room {
        writeln!(
            out,
            "for room   {} mappings ended before their timeout, the last {} ago {}",
            room.mappings,
            pretty(now().saturating_sub(room.last_at)),
            Code::EndsForRoom
        )?;
    }
    if let Some(node) = &report.node {
        writeln!(out, "node ports {}", node.line())?;
        for what in &node.not_kept {
            writeln!(out, "not kept   {what}")?;
        }
        for problem in &node.unread {
            writeln!(
                out,
                "not kept   hostPorts and services, as far as NAT rules cannot be read: {problem}"
            )?;
        }
    }
    if !report.chains.is_empty() {
        let mut chains = table(&["CHAIN", "FAMILY", "BACKEND", "RULES", "PROBLEM"]);
        for chain in &report.chains {
            chains.add_row([
                chain.chain.clone(),
                chain.family.clone(),
                chain.backend.clone(),
                chain.rules.to_string(),
                chain.error.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        writeln!(out, "\n{chains}\n")?;
        return policy(out, config);
    }
    let mut uplinks = table(&["UPLINK", "INDEX", "ATTACHED", "IPV4", "IPV6", "LINK"]);
    for uplink in &report.uplinks {
        uplinks.add_row([
            uplink.name.clone(),
            uplink.ifindex.to_string(),
            uplink.attached.clone(),
            uplink.v4.map_or_else(|| "-".into(), |ip| ip.to_string()),
            uplink.v6.map_or_else(|| "-".into(), |ip| ip.to_string()),
            if uplink.up { "up" } else { "down" }.into(),
        ]);
    }
    writeln!(out, "\n{uplinks}\n")?;
    policy(out, config)
}

fn policy(out: &mut String, config: &ConfigReport) -> Result<()> {
    let mut policy = table(&["DESTINATION", "ACTION", "FROM"]);
    const SHOWN: usize = 20;
    for rule in config.rules.iter().take(SHOWN) {
        policy.add_row([&rule.prefix, &rule.action, &rule.origin]);
    }
    if config.rules.len() > SHOWN {
        let more = format!("… {} more", config.rules.len() - SHOWN);
        policy.add_row([more.as_str(), "", "-o json shows all"]);
    }
    // A default action is a rule for all destinations.
    if !config.rules.iter().any(|rule| rule.prefix == "0.0.0.0/0") {
        policy.add_row(["everything else", "masquerade", "built-in"]);
    }
    writeln!(out, "{policy}\n")?;
    Ok(())
}

fn or_none(list: &[String], separator: &str) -> String {
    if list.is_empty() {
        "none".into()
    } else {
        list.join(separator)
    }
}
