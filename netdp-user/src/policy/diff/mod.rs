//! `netdp diff`: a configuration compared with the policy in force, and with what flows on the node.

mod show;

use super::changes::{Changes, RuleSet, rule_set};
use super::ledger::{Finder, Key};
use crate::cli::output::write_out;
use crate::config::{Config, RuleAction};
use crate::datapath::{Maps, OnReload, is_pinned};
use crate::report::Report;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, bail};
use netdp_common::layout::{Action, Addr};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

/// Effects that a configuration would have.
#[derive(Debug, Default)]
struct Effects {
    agent_runs: bool,
    changes: Changes,
    flows: Option<Flows>,
    /// Effect of a policy change on live flows; `None` if it is not known.
    on_reload: Option<OnReload>,
    /// Reason why the effect on flows is not known, if so.
    problem: Option<String>,
}

/// Effects on flows.
#[derive(Debug, Default)]
struct Flows {
    /// Live mappings to destinations that would be bypassed.
    mappings: usize,
    /// Pods that have these mappings.
    pods: usize,
    /// Pairs of a pod and a destination that were bypassed and would be masqueraded: their number, by
    /// the prefix that would decide.
    pairs: BTreeMap<Key, usize>,
}

/// Prints what a configuration would change. Returns whether any rule differs.
///
/// # Errors
/// Returns an error if the policy in force is not known.
pub(crate) fn print(bpffs: &Path, state_dir: &Path, next: &Config, json: bool) -> Result<bool> {
    let dir = StateDir::at(state_dir);
    let report = Report::read(&dir).ok();
    let maps = match is_pinned(bpffs) {
        true => Maps::open(bpffs).map(Some),
        false => Ok(None),
    };
    let now = match (&report, &maps) {
        (Some(report), _) => reported(report),
        (None, Ok(Some(maps))) => in_force(maps)?,
        _ => bail!(
            "no policy in force is known: there is neither a status report in {} nor a datapath in {}",
            state_dir.display(),
            bpffs.display()
        ),
    };
    let next = rule_set(&next.rules);
    let mut effects = Effects {
        agent_runs: dir.lock_holder().is_some(),
        changes: Changes::between(&now, &next),
        on_reload: report.and_then(|report| report.on_reload),
        ..Effects::default()
    };
    match maps.and_then(|maps| maps.map(|it| Flows::find(&it, &now, &next)).transpose()) {
        Ok(flows) => effects.flows = flows,
        Err(err) => effects.problem = Some(format!("{err:#}")),
    }
    let text = if json {
        effects.json()?
    } else {
        effects.text()?
    };
    write_out(&text, json)?;
    Ok(!effects.changes.is_empty())
}

/// Returns the rules in the agent's report.
fn reported(report: &Report) -> RuleSet {
    let rules = report.config.rules.iter().filter_map(|rule| {
        let action = match rule.action.as_str() {
            "bypass" => RuleAction::Bypass,
            _ => RuleAction::Masquerade,
        };
        Some((rule.prefix.parse().ok()?, action))
    });
    rules.collect()
}

/// Returns the rules in the maps. What an IPsec policy withholds is masqueraded otherwise.
fn in_force(maps: &Maps) -> Result<RuleSet> {
    let policy = maps
        .numbered_policy()
        .context("reading the policy in force")?;
    let rules = policy.rules().map(|(prefix, value)| {
        let action = match Action::from_raw(value.action) {
            Action::Bypass => RuleAction::Bypass,
            Action::Masquerade | Action::Withhold => RuleAction::Masquerade,
        };
        (prefix, action)
    });
    Ok(rules.collect())
}

/// The decisions of a set of rules.
struct Decisions<'a> {
    rules: &'a RuleSet,
    finder: Finder,
}

impl<'a> Decisions<'a> {
    fn of(rules: &'a RuleSet) -> Self {
        Self {
            rules,
            finder: Finder::new(rules.keys().copied()),
        }
    }

    /// Returns the action for a destination, and the prefix that decides.
    fn decide(&mut self, destination: Addr) -> (RuleAction, Key) {
        let key = self.finder.find(destination);
        let action = key.and_then(|prefix| self.rules.get(&prefix));
        (action.copied().unwrap_or(RuleAction::Masquerade), key)
    }
}

impl Flows {
    /// Compares live mappings and the pairs of the bypass cache.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    fn find(maps: &Maps, now: &RuleSet, next: &RuleSet) -> Result<Self> {
        let (mut now, mut next) = (Decisions::of(now), Decisions::of(next));
        let ours: BTreeSet<Addr> = maps
            .local_addresses()?
            .into_iter()
            .map(Addr::from)
            .collect();
        let mut flows = Self::default();
        let mut pods = HashSet::new();
        maps.for_each_sent(|tuple, _, _| {
            // The policy does not apply to the node's own addresses.
            let is_lost = !ours.contains(&tuple.dst)
                && now.decide(tuple.dst).0 == RuleAction::Masquerade
                && next.decide(tuple.dst).0 == RuleAction::Bypass;
            if is_lost {
                flows.mappings += 1;
                pods.insert(tuple.src);
            }
        })?;
        flows.pods = pods.len();
        let mut pairs = HashSet::new();
        maps.for_each_pair(|pair| {
            if now.decide(pair.peer).0 != RuleAction::Bypass || !pairs.insert((pair.pod, pair.peer))
            {
                return;
            }
            if let (RuleAction::Masquerade, by) = next.decide(pair.peer) {
                *flows.pairs.entry(by).or_default() += 1;
            }
        })?;
        Ok(flows)
    }
}
