//! `netdp suggest`: which networks to masquerade, so that they answer pods.

mod document;
mod text;

use super::counts::Observed;
use super::judge::{ATTEMPTS, Finding, Verdict, bypasses, findings};
use super::read;
use super::window::{WINDOW_SECONDS, Window};
use crate::cli::output::write_out;
use crate::config::{Origin, Rule, RuleAction, Rules};
use crate::datapath;
use crate::report::{Report, RuleReport};
use crate::state_dir::StateDir;
use crate::time::now;
use anyhow::{Context as _, Result, bail};
use document::Change;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use std::path::Path;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// The change alone, as a document of the configuration.
    Yaml,
    /// JSON for programs.
    Json,
}

/// The answer in one word, for the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There are networks to masquerade.
    Some,
    /// There are none.
    None,
    /// It cannot be told: too few attempts were seen.
    Unknown,
}

/// Result of `netdp suggest`, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Suggestion {
    schema: u32,
    /// True if an agent runs.
    agent_running: bool,
    /// Time at which attempts were last counted; absent for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// Seconds before `at` in which they were counted.
    window_seconds: u64,
    /// The most attempts that pods made towards one bypassed network.
    most_attempts: u64,
    /// That network.
    #[serde(skip_serializing_if = "Option::is_none")]
    most_attempted: Option<IpNet>,
    /// Networks that were judged.
    networks: Vec<Finding>,
    /// The change of the configuration; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
}

/// Prints the suggestion.
///
/// # Errors
/// Returns an error if neither counts nor maps are found, or they cannot be read, or the output
/// cannot be written.
pub(crate) fn print(bpffs: &Path, state_dir: &Path, format: Format) -> Result<Answer> {
    let (text, answer) = output(bpffs, state_dir, format)?;
    write_out(&text, format == Format::Json)?;
    Ok(answer)
}

/// Returns the output of `netdp suggest`, and the answer in one word.
///
/// # Errors
/// Returns the errors of [`print()`].
pub(crate) fn output(bpffs: &Path, state_dir: &Path, format: Format) -> Result<(String, Answer)> {
    let dir = StateDir::at(state_dir);
    let mut window = Window::read(&dir)?;
    if datapath::is_pinned(bpffs) {
        let observed = read(bpffs)?
            .context("the programs of this version count no answers; netdp run replaces them")?;
        window.observe(now(), observed);
    } else if window.at == 0 {
        bail!(
            "no counts: no pinned maps in {}, and nothing of an agent in {}",
            bpffs.display(),
            state_dir.display()
        );
    }
    let rules = match Report::read(&dir) {
        Ok(report) => report.config.rules,
        Err(err) => bail!(
            "the policy in force is not known: no agent has written it to {} ({err:#})",
            state_dir.display()
        ),
    };
    let suggestion = Suggestion::new(&window, &rules, dir.lock_holder().is_some());
    let text = match format {
        Format::Text => suggestion.text(),
        Format::Yaml => suggestion.yaml(),
        Format::Json => serde_json::to_string_pretty(&suggestion)? + "\n",
    };
    Ok((text, suggestion.answer()))
}

impl Suggestion {
    fn new(window: &Window, reported: &[RuleReport], agent_running: bool) -> Self {
        let sums = window.sums(window.at);
        let rules = rules(reported);
        let networks = findings(&sums, &rules);
        let most_attempted = most_attempted(&sums, &rules);
        let unreached: Vec<IpNet> = networks
            .iter()
            .filter(|finding| finding.verdict == Verdict::NoWayBack)
            .map(|finding| finding.network)
            .collect();
        let at = i64::try_from(window.at).unwrap_or(i64::MAX);
        Self {
            schema: 1,
            agent_running,
            at: match window.at {
                0 => None,
                _ => Timestamp::from_second(at).ok(),
            },
            window_seconds: WINDOW_SECONDS,
            most_attempts: most_attempted.map_or(0, |(_, attempts)| attempts),
            most_attempted: most_attempted.map(|(network, _)| network),
            change: Change::new(&unreached, reported),
            networks,
        }
    }

    fn answer(&self) -> Answer {
        let is = |verdict| self.networks.iter().any(|it| it.verdict == verdict);
        if self.change.is_some() {
            Answer::Some
        } else if self.networks.is_empty() || is(Verdict::Silent) {
            Answer::Unknown
        } else {
            Answer::None
        }
    }

    /// Returns the change with the reasons as comments, or a comment that there is none.
    fn yaml(&self) -> String {
        let Some(change) = &self.change else {
            return "# No network to masquerade was found.\n".to_owned();
        };
        let mut yaml = String::new();
        for finding in &self.networks {
            if finding.verdict == Verdict::NoWayBack {
                yaml += &format!("# {}\n", finding.reasons());
            }
        }
        yaml + &change.document
    }
}

/// Returns the bypassed network towards which pods have made most attempts, those that were not answered
/// first, with their number.
fn most_attempted(sums: &Observed, rules: &Rules) -> Option<(IpNet, u64)> {
    let attempted = sums.iter().filter(|(_, counts)| counts.pod_new > 0);
    let bypassed = attempted.filter(|(network, _)| bypasses(rules, **network));
    let most = bypassed.max_by_key(|(_, counts)| {
        let unanswered = counts.pod_new - counts.pods_heard();
        (unanswered, counts.pod_new)
    });
    most.map(|(network, counts)| (*network, counts.pod_new))
}

/// Returns the rules of a report; those that cannot be parsed are left out.
fn rules(reported: &[RuleReport]) -> Rules {
    let rule = |rule: &RuleReport| {
        Some(Rule {
            prefix: rule.prefix.parse().ok()?,
            action: if is_bypass(rule) {
                RuleAction::Bypass
            } else {
                RuleAction::Masquerade
            },
            origin: Origin::BuiltIn,
            also: Vec::new(),
        })
    };
    reported.iter().filter_map(rule).collect()
}

fn is_bypass(rule: &RuleReport) -> bool {
    rule.action == RuleAction::Bypass.to_string()
}

#[cfg(test)]
mod tests;
