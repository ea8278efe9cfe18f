//! Output of `netdp diff`.

use super::super::changes::JsonChanges;
use super::{Effects, Flows};
use crate::datapath::OnReload;
use crate::format::grouped;
use crate::terminal;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;

/// Content of `netdp diff -o json`.
#[derive(Debug, Serialize)]
struct Json<'a> {
    schema: u32,
    agent_running: bool,
    differs: bool,
    changes: JsonChanges,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_reload: Option<OnReload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mappings: Option<Mappings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pairs: Option<Vec<Pairs>>,
    /// Reason why the effect on flows is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

/// Live mappings that would not be made any more.
#[derive(Debug, Serialize)]
struct Mappings {
    count: usize,
    pods: usize,
}

/// Pairs that would be masqueraded.
#[derive(Debug, Serialize)]
struct Pairs {
    /// The prefix that would decide; absent if no rule would.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    count: usize,
}

impl Effects {
    pub(super) fn json(&self) -> Result<String> {
        let flows = self.flows.as_ref();
        let json = Json {
            schema: 1,
            agent_running: self.agent_runs,
            differs: !self.changes.is_empty(),
            changes: (&self.changes).into(),
            on_reload: self.on_reload,
            mappings: flows.map(|flows| Mappings {
                count: flows.mappings,
                pods: flows.pods,
            }),
            pairs: flows.map(|flows| {
                let pairs = flows.pairs.iter();
                let pairs = pairs.map(|(key, count)| Pairs {
                    prefix: key.map(|prefix| prefix.to_string()),
                    count: *count,
                });
                pairs.collect()
            }),
            problem: self.problem.as_deref(),
        };
        Ok(serde_json::to_string_pretty(&json)? + "\n")
    }

    pub(super) fn text(&self) -> Result<String> {
        let mut out = String::new();
        if self.changes.is_empty() {
            writeln!(out, "no difference: these rules are in force")?;
        } else {
            let summary = self.changes.summary();
            writeln!(out, "{summary} against the policy in force\n")?;
        }
        for line in self.changes.lines() {
            writeln!(out, "{line}")?;
        }
        if !self.changes.is_empty() {
            writeln!(out)?;
            self.flows_text(&mut out)?;
        }
        if !self.agent_runs {
            writeln!(
                out,
                "the agent is not running; this compares with what it has left"
            )?;
        }
        Ok(out)
    }

    fn flows_text(&self, out: &mut String) -> Result<()> {
        if let Some(problem) = &self.problem {
            writeln!(
                out,
                "effect on flows not known: {}",
                terminal::line(problem)
            )?;
        }
        let Some(Flows {
            mappings,
            pods,
            pairs,
        }) = &self.flows
        else {
            return Ok(());
        };
        let (count, pods) = (grouped(*mappings as u64), grouped(*pods as u64));
        let fate = match self.on_reload {
            _ if *mappings == 0 => String::new(),
            None => String::new(),
            Some(OnReload::Sticky) => " (--on-reload sticky: they live on)".into(),
            Some(OnReload::Cutover) => " (--on-reload cutover: they end at once)".into(),
            Some(OnReload::Drain) => {
                " (--on-reload drain: they end after 30 s of silence)".to_owned()
            }
        };
        writeln!(
            out,
            "live mappings that would not be made any more: {count}, of {pods} pods{fate}"
        )?;
        for (key, count) in pairs {
            let by = key.map_or_else(|| "no rule".to_owned(), |prefix| prefix.to_string());
            writeln!(
                out,
                "{by}: {} pod-destination pairs seen bypassed would be masqueraded",
                grouped(*count as u64)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::changes::Changes;
    use super::super::super::changes::tests::rules;
    use super::super::{Decisions, Effects, Flows};
    use crate::config::RuleAction;
    use crate::datapath::OnReload;
    use netdp_common::layout::Addr;
    use serde_json::{Value, json};

    fn effects() -> Effects {
        let before = rules(&["10.0.0.0/8"], &[]);
        let after = rules(&["10.0.0.0/8", "192.0.2.0/24"], &["10.9.0.0/16"]);
        Effects {
            agent_runs: true,
            changes: Changes::between(&before, &after),
            flows: Some(Flows {
                mappings: 1_400,
                pods: 3,
                pairs: [("10.9.0.0/16".parse().ok(), 31), (None, 2)].into(),
            }),
            on_reload: Some(OnReload::Sticky),
            problem: None,
        }
    }

    #[test]
    fn the_text_has_rules_then_flows() {
        assert_eq!(
            effects().text().unwrap(),
            "+2 against the policy in force\n\n\
             + 10.9.0.0/16 masquerade\n\
             + 192.0.2.0/24 bypass\n\n\
             live mappings that would not be made any more: 1,400, of 3 pods (--on-reload sticky: \
             they live on)\n\
             no rule: 2 pod-destination pairs seen bypassed would be masqueraded\n\
             10.9.0.0/16: 31 pod-destination pairs seen bypassed would be masqueraded\n"
        );
        let same = Effects {
            changes: Changes::default(),
            ..effects()
        };
        assert_eq!(
            same.text().unwrap(),
            "no difference: these rules are in force\n"
        );
    }

    #[test]
    fn the_json_is_exact() {
        let shown: Value = serde_json::from_str(&effects().json().unwrap()).unwrap();
        let expected = json!({
            "schema": 1,
            "agent_running": true,
            "differs": true,
            "changes": {
                "added": [
                    {"prefix": "10.9.0.0/16", "action": "masquerade"},
                    {"prefix": "192.0.2.0/24", "action": "bypass"},
                ],
                "removed": [],
                "changed": [],
            },
            "on_reload": "sticky",
            "mappings": {"count": 1400, "pods": 3},
            "pairs": [{"count": 2}, {"prefix": "10.9.0.0/16", "count": 31}],
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_longest_prefix_decides() {
        let rules = rules(&["10.0.0.0/8"], &["10.9.0.0/16"]);
        let mut decisions = Decisions::of(&rules);
        let mut decide = |address| decisions.decide(Addr::from_v4(address)).0;
        assert_eq!(decide([10, 1, 0, 1]), RuleAction::Bypass);
        assert_eq!(decide([10, 9, 0, 1]), RuleAction::Masquerade);
        assert_eq!(decide([192, 0, 2, 1]), RuleAction::Masquerade);
    }
}
