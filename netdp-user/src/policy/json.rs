//! JSON output of `netdp policy`.

use super::gather::{Query, Row, View};
use crate::format::utc_time;
use anyhow::Result;
use netdp_common::layout::Action;
use serde::Serialize;

/// Content of `netdp policy -o json`.
#[derive(Debug, Serialize)]
struct Json<'a> {
    schema: u32,
    /// `running` or `not running`.
    agent_running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts_since: Option<String>,
    /// Reason why there are no counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    rules: Vec<Rule<'a>>,
    removed: Vec<Rule<'a>>,
}

#[derive(Debug, Serialize)]
struct Policy<'a> {
    hash: &'a str,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_at: Option<String>,
    source: &'a str,
}

#[derive(Debug, Serialize)]
struct Rule<'a> {
    /// Absent for all other destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// Absent for removed prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_flows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_hit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_at: Option<String>,
    codes: &'a [crate::codes::Code],
}

impl<'a> Rule<'a> {
    fn of(row: &'a Row) -> Self {
        let amount = row.counts.map(|counts| counts.amount);
        let last = row.counts.map_or(0, |counts| counts.last);
        Self {
            prefix: row.prefix.map(|prefix| prefix.to_string()),
            action: Some(action(row.action)),
            depth: Some(row.depth),
            origin: row.origin.as_deref(),
            packets: amount.map(|it| it.packets),
            bytes: amount.map(|it| it.bytes),
            new_flows: amount.map(|it| it.flows),
            last_hit: utc_time(last).filter(|_| last != 0),
            removed_at: None,
            codes: &row.codes,
        }
    }

    fn removed((row, at): &'a (Row, u64)) -> Self {
        Self {
            action: None,
            depth: None,
            removed_at: utc_time(*at),
            ..Self::of(row)
        }
    }
}

/// Returns the name of an action.
pub(crate) const fn action(action: Action) -> &'static str {
    match action {
        Action::Bypass => "bypass",
        Action::Masquerade => "masquerade",
        Action::Withhold => "drop",
    }
}

pub(super) fn text(view: &View, query: &Query) -> Result<String> {
    let json = Json {
        schema: 1,
        agent_running: view.agent_runs,
        policy: view.config.as_ref().map(|config| Policy {
            hash: &config.hash,
            generation: config.generation,
            applied_at: utc_time(config.applied_at),
            source: &config.source,
        }),
        counts_since: view.since.and_then(utc_time),
        problem: view.problem.as_deref(),
        rules: view.selected(query).into_iter().map(Rule::of).collect(),
        removed: view.removed.iter().map(Rule::removed).collect(),
    };
    Ok(serde_json::to_string_pretty(&json)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::super::gather::Query;
    use super::super::gather::tests::view;
    use super::text;

    #[test]
    fn the_form_is_golden() {
        let shown = text(&view(), &Query::default()).unwrap();
        assert_eq!(shown, include_str!("golden.json"));
    }
}
