//! Output of `netdp history`.

use super::super::changes::{Changes, JsonChanges, JsonRule, summary};
use super::{History, Record};
use crate::cli::output::{table, write_out};
use crate::codes::Code;
use crate::format::{grouped, local_time, utc_time};
use crate::report::Report;
use crate::state_dir::StateDir;
use crate::terminal;
use crate::time::{self, pretty};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Selection that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The last policies, so many.
    List(usize),
    /// The rules of a generation.
    Rules(u64),
    /// The difference from one generation to another.
    Changes(u64, u64),
}

/// Prints the history of policies.
///
/// # Errors
/// Returns an error if there is none in the state directory, or a generation is not remembered.
pub(crate) fn print(state_dir: &Path, ask: Ask, json: bool) -> Result<()> {
    write_out(&output(state_dir, ask, json)?, json)
}

/// Returns the output of `netdp history`.
///
/// # Errors
/// Returns the errors of [`print()`].
pub(crate) fn output(state_dir: &Path, ask: Ask, json: bool) -> Result<String> {
    let dir = StateDir::at(state_dir);
    let history = History::read(&dir)?.with_context(|| {
        format!(
            "no history of policies in {}; has an agent run with this --state-dir?",
            state_dir.display()
        )
    })?;
    let runs = dir.lock_holder().is_some();
    let mut text = match (ask, json) {
        (_, true) => history.json(ask)?,
        (Ask::List(count), _) => history.list(count, time::now())?,
        (Ask::Rules(generation), _) => history.rules_text(generation)?,
        (Ask::Changes(from, to), _) => history.changes_text(from, to)?,
    };
    if !json {
        let rejected = Report::read(&dir).map(|report| report.config.rejected);
        for reason in rejected.unwrap_or_default() {
            let (reason, code) = (terminal::line(&reason), Code::Rejected);
            writeln!(
                text,
                "the newest configuration was rejected, and is not listed: {reason}  {code}"
            )?;
        }
    }
    if !json && !runs {
        text.push_str("the agent is not running; this is what it has left\n");
    }
    Ok(text)
}

/// A record in JSON.
#[derive(Debug, Serialize)]
struct JsonRecord<'a> {
    generation: u64,
    hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied_at: Option<String>,
    source: &'a str,
    config_maps: &'a [String],
    rules: usize,
    added: usize,
    removed: usize,
    changed: usize,
}

impl<'a> JsonRecord<'a> {
    fn of(record: &'a Record) -> Self {
        let [added, removed, changed] = record.counts;
        Self {
            generation: record.generation,
            hash: &record.hash,
            applied_at: utc_time(record.applied_at),
            source: &record.source,
            config_maps: &record.config_maps,
            rules: record.rules,
            added,
            removed,
            changed,
        }
    }
}

/// Content of `netdp history -o json`: one of the three parts.
#[derive(Debug, Default, Serialize)]
struct Json<'a> {
    schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<JsonRecord<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<JsonRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<JsonRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<JsonRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<JsonRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<JsonChanges>,
}

impl History {
    /// Returns the last records, the latest first.
    fn latest(&self, count: usize) -> impl Iterator<Item = &Record> {
        self.records.iter().rev().take(count)
    }

    fn json(&self, ask: Ask) -> Result<String> {
        let record = |place: usize| self.records.get(place).map(JsonRecord::of);
        let mut json = Json {
            schema: 1,
            ..Json::default()
        };
        match ask {
            Ask::List(count) => {
                json.policies = Some(self.latest(count).map(JsonRecord::of).collect());
            }
            Ask::Rules(generation) => {
                let (place, rules) = self.rules_of(generation)?;
                json.policy = record(place);
                json.rules = Some(rules.into_iter().map(JsonRule::new).collect());
            }
            Ask::Changes(from, to) => {
                let (before, after) = (self.rules_of(from)?, self.rules_of(to)?);
                json.from = record(before.0);
                json.to = record(after.0);
                json.changes = Some((&Changes::between(&before.1, &after.1)).into());
            }
        }
        Ok(serde_json::to_string_pretty(&json)? + "\n")
    }

    fn list(&self, count: usize, now: u64) -> Result<String> {
        let mut out = String::new();
        if let Some(last) = self.records.last() {
            writeln!(
                out,
                "generation {} ({}) has been in force for {}; {} remembered",
                last.generation,
                short(&last.hash),
                pretty(now.saturating_sub(last.applied_at)),
                self.records.len()
            )?;
        }
        let mut rows = table(&[
            "TIME",
            "AGE",
            "GEN",
            "HASH",
            "RULES",
            "CHANGE",
            "SOURCE",
            "CONFIGMAPS",
        ]);
        for record in self.latest(count) {
            rows.add_row([
                local_time(record.applied_at),
                pretty(now.saturating_sub(record.applied_at)),
                record.generation.to_string(),
                short(&record.hash).to_owned(),
                grouped(record.rules as u64),
                summary(record.counts),
                record.source.clone(),
                match record.config_maps.as_slice() {
                    [] => "-".to_owned(),
                    maps => maps.join(", "),
                },
            ]);
        }
        writeln!(out, "\n{rows}\n")?;
        writeln!(
            out,
            "netdp history GEN shows the rules of one, netdp history A B what differs"
        )?;
        Ok(out)
    }

    fn rules_text(&self, generation: u64) -> Result<String> {
        let (place, rules) = self.rules_of(generation)?;
        let mut out = String::new();
        if let Some(record) = self.records.get(place) {
            let until = self.records.get(place + 1).map_or_else(
                || "on".to_owned(),
                |next| format!("to {}", local_time(next.applied_at)),
            );
            let rules = grouped(record.rules as u64);
            writeln!(
                out,
                "generation {generation} ({}), {rules} rules from {}, was in force from {} {until}",
                short(&record.hash),
                terminal::line(&record.source),
                local_time(record.applied_at),
            )?;
        }
        let mut rows = table(&["PREFIX", "ACTION"]);
        for (prefix, action) in rules {
            rows.add_row([prefix.to_string(), action.to_string()]);
        }
        writeln!(out, "\n{rows}\n")?;
        Ok(out)
    }

    fn changes_text(&self, from: u64, to: u64) -> Result<String> {
        let ((_, before), (_, after)) = (self.rules_of(from)?, self.rules_of(to)?);
        let changes = Changes::between(&before, &after);
        let mut out = String::new();
        match changes.is_empty() {
            true => writeln!(out, "generations {from} and {to} have the same rules")?,
            false => writeln!(
                out,
                "{} from generation {from} to {to}\n",
                changes.summary()
            )?,
        }
        for line in changes.lines() {
            writeln!(out, "{line}")?;
        }
        Ok(out)
    }
}

fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::super::tests::three;
    use super::Ask;
    use serde_json::{Value, json};

    #[test]
    fn the_list_begins_with_what_is_in_force() {
        let shown = three().list(2, 1_000_063).unwrap();
        let mut lines = shown.lines();
        let first = "generation 3 (00000000) has been in force for 1m0s; 3 remembered";
        assert_eq!(lines.next(), Some(first));
        let rows: Vec<_> = lines.filter(|line| line.contains("@4")).collect();
        assert_eq!(rows.len(), 2, "{shown}");
        assert!(rows[0].contains("-1 ~1"), "{shown}");
        assert!(rows[1].contains("kube-system/ip-masq-agent@42"), "{shown}");
    }

    #[test]
    fn one_policy_or_what_differs_is_shown() {
        let history = three();
        let shown = history.rules_text(1).unwrap();
        assert!(
            shown.starts_with("generation 1 (00000000), 1 rules from"),
            "{shown}"
        );
        assert!(shown.contains("10.0.0.0/8"), "{shown}");
        let shown = history.changes_text(1, 3).unwrap();
        assert!(
            shown.starts_with("+2 -1 from generation 1 to 3\n"),
            "{shown}"
        );
        assert!(shown.contains("\n- 10.0.0.0/8 bypass\n"), "{shown}");
        let same = history.changes_text(2, 2).unwrap();
        assert_eq!(same, "generations 2 and 2 have the same rules\n");
    }

    fn record(generation: u64, counts: [usize; 3], rules: usize) -> Value {
        json!({
            "generation": generation,
            "hash": format!("{generation:016x}"),
            "applied_at": format!("1970-01-12T13:46:4{generation}Z"),
            "source": "the Kubernetes API",
            "config_maps": [format!("kube-system/ip-masq-agent@{}", 40 + generation)],
            "rules": rules,
            "added": counts[0],
            "removed": counts[1],
            "changed": counts[2],
        })
    }

    #[test]
    fn the_json_is_exact() {
        let history = three();
        let shown = |ask| -> Value { serde_json::from_str(&history.json(ask).unwrap()).unwrap() };
        let (second, third) = (record(2, [2, 0, 0], 3), record(3, [0, 1, 1], 2));
        assert_eq!(
            shown(Ask::List(1)),
            json!({"schema": 1, "policies": [third]})
        );
        let rule = |prefix: &str, action: &str| json!({"prefix": prefix, "action": action});
        assert_eq!(
            shown(Ask::Rules(3)),
            json!({
                "schema": 1,
                "policy": third,
                "rules": [rule("10.2.0.0/16", "bypass"), rule("fd00::/8", "bypass")],
            })
        );
        assert_eq!(
            shown(Ask::Changes(2, 3)),
            json!({
                "schema": 1,
                "from": second,
                "to": third,
                "changes": {
                    "added": [],
                    "removed": [rule("10.0.0.0/8", "bypass")],
                    "changed": [rule("10.2.0.0/16", "bypass")],
                },
            })
        );
    }
}
