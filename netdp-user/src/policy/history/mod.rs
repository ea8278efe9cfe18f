//! The policies that have been in force, for `netdp history`: the agent adds each to a file in the
//! state directory.
//!
//! The file has the rules of the last one, and of each the difference from the one before, so that
//! many policies with long lists take little more than one.

mod show;

use super::changes::{Changes, RuleSet, rule_set};
use crate::config::Rule;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use show::{Ask, output, print};

/// Name in the state directory.
pub(crate) const FILE: &str = "history.json";

/// Version of the file's format.
const VERSION: u32 = 1;

/// Policies that are remembered.
const REMEMBERED: usize = 50;

/// Differing rules that are remembered of all policies together, some 50 bytes each. Of the oldest
/// ones only the numbers stay.
const CHANGES: usize = 100_000;

/// The policies that have been in force, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    version: u32,
    pub(crate) records: Vec<Record>,
    /// The rules of the last one.
    rules: RuleSet,
}

/// A policy that has been in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Number of policies that had been in force on the node until then, including this one.
    pub(crate) generation: u64,
    /// Hash of the policy.
    pub(crate) hash: String,
    /// Time at which it came into force, in seconds since 1970.
    pub(crate) applied_at: u64,
    /// Its source, in words.
    pub(crate) source: String,
    /// ConfigMaps that were part of it: `namespace/name@resourceVersion`.
    config_maps: Vec<String>,
    /// Number of its rules.
    pub(crate) rules: usize,
    /// Numbers of added, removed and changed rules.
    pub(crate) counts: [usize; 3],
    /// The same rules; `None` if they are not kept.
    changes: Option<Changes>,
}

impl Record {
    /// Creates the record of a policy: its generation and hash, the time at which it came into force in
    /// seconds since 1970, its source, and the ConfigMaps in it.
    pub(crate) fn new(
        (generation, hash): (u64, &str),
        applied_at: u64,
        source: &str,
        config_maps: Vec<String>,
    ) -> Self {
        Self {
            generation,
            hash: hash.to_owned(),
            applied_at,
            source: source.to_owned(),
            config_maps,
            ..Self::default()
        }
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            version: VERSION,
            records: Vec::new(),
            rules: RuleSet::new(),
        }
    }
}

impl History {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// Returns an error if it can't be read or parsed, or has another version.
    pub(crate) fn read(state_dir: &StateDir) -> Result<Option<Self>> {
        let Some(bytes) = state_dir.read_optional(FILE)? else {
            return Ok(None);
        };
        let path = state_dir.file(FILE);
        let history: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            history.version == VERSION,
            "{} has version {}, and this netdp reads version {VERSION}",
            path.display(),
            history.version
        );
        Ok(Some(history))
    }

    /// Adds a policy that has come into force, unless it is the last one already.
    ///
    /// # Errors
    /// Returns an error if the file can't be written. One that can't be read is replaced.
    pub(crate) fn record(state_dir: &StateDir, record: Record, rules: &[Rule]) -> Result<()> {
        let mut history = Self::read(state_dir)
            .unwrap_or_else(|err| {
                log::warn!("{err:#}: the history of policies begins anew");
                None
            })
            .unwrap_or_default();
        if history.add(record, rule_set(rules)) {
            state_dir.write_compact_json(FILE, &history)?;
        }
        Ok(())
    }

    fn add(&mut self, mut record: Record, rules: RuleSet) -> bool {
        let last = self.records.last();
        if last.is_some_and(|it| it.generation == record.generation && it.hash == record.hash) {
            return false;
        }
        let changes = Changes::between(&self.rules, &rules);
        record.rules = rules.len();
        if last.is_some() {
            record.counts = [
                changes.added.len(),
                changes.removed.len(),
                changes.changed.len(),
            ];
            record.changes = Some(changes);
        }
        self.records.push(record);
        self.rules = rules;
        let surplus = self.records.len().saturating_sub(REMEMBERED);
        self.records.drain(..surplus);
        let mut kept = 0;
        for record in self.records.iter_mut().rev() {
            kept += record.changes.as_ref().map_or(0, Changes::len);
            if kept > CHANGES {
                record.changes = None;
            }
        }
        true
    }

    /// Returns the rules of a generation, and its place among the records.
    ///
    /// # Errors
    /// Returns an error if it is not remembered.
    fn rules_of(&self, generation: u64) -> Result<(usize, RuleSet)> {
        let known = self.records.iter();
        let Some(place) = known.clone().rposition(|it| it.generation == generation) else {
            let known: Vec<_> = known.map(|it| it.generation.to_string()).collect();
            bail!(
                "generation {generation} is not remembered; there are {}",
                known.join(", ")
            );
        };
        let mut rules = self.rules.clone();
        for record in self.records.iter().skip(place + 1).rev() {
            let changes = record.changes.as_ref().with_context(|| {
                format!(
                    "the rules of generation {generation} are not kept: the lists were too long"
                )
            })?;
            changes.undo(&mut rules);
        }
        Ok((place, rules))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::changes::tests::rules;
    use super::{CHANGES, FILE, History, REMEMBERED, Record};
    use crate::config::{Origin, Rule, RuleAction};
    use crate::state_dir::StateDir;

    pub(in crate::policy) fn record(generation: u64) -> Record {
        Record {
            generation,
            hash: format!("{generation:016x}"),
            applied_at: 1_000_000 + generation,
            source: "the Kubernetes API".into(),
            config_maps: vec![format!("kube-system/ip-masq-agent@{}", 40 + generation)],
            ..Record::default()
        }
    }

    /// Returns a history of three policies.
    pub(in crate::policy) fn three() -> History {
        let mut history = History::default();
        assert!(history.add(record(1), rules(&["10.0.0.0/8"], &[])));
        assert!(history.add(
            record(2),
            rules(&["10.0.0.0/8", "fd00::/8"], &["10.2.0.0/16"])
        ));
        assert!(history.add(record(3), rules(&["10.2.0.0/16", "fd00::/8"], &[])));
        history
    }

    #[test]
    fn each_policy_that_is_remembered_comes_back() {
        let mut history = three();
        assert!(!history.add(record(3), rules(&[], &[])));
        let counts: Vec<_> = history.records.iter().map(|it| it.counts).collect();
        assert_eq!(counts, [[0, 0, 0], [2, 0, 0], [0, 1, 1]]);
        assert_eq!(history.rules_of(1).unwrap().1, rules(&["10.0.0.0/8"], &[]));
        let second = rules(&["10.0.0.0/8", "fd00::/8"], &["10.2.0.0/16"]);
        assert_eq!(history.rules_of(2).unwrap().1, second);
        let refused = history.rules_of(9).unwrap_err().to_string();
        assert!(refused.contains("1, 2, 3"), "{refused}");
    }

    #[test]
    fn fifty_policies_are_remembered() {
        let mut history = History::default();
        for generation in 1..=60 {
            let prefix = format!("10.{generation}.0.0/16");
            history.add(record(generation), rules(&[&prefix], &[]));
        }
        assert_eq!(history.records.len(), REMEMBERED);
        assert!(history.rules_of(10).is_err());
        assert_eq!(
            history.rules_of(11).unwrap().1,
            rules(&["10.11.0.0/16"], &[])
        );
    }

    #[test]
    fn of_long_lists_the_last_are_kept() {
        let list = |n: u32| {
            let count = u32::try_from(CHANGES).unwrap() / 4;
            let nets = (0..count).map(|it| {
                let address = std::net::Ipv4Addr::from_bits((n << 28) + it);
                (
                    ipnet::IpNet::from(std::net::IpAddr::from(address)),
                    RuleAction::Bypass,
                )
            });
            nets.collect()
        };
        let mut history = History::default();
        for n in 1..=5 {
            history.add(record(n.into()), list(n));
        }
        assert_eq!(history.rules_of(3).unwrap().1, list(3));
        let refused = history.rules_of(2).unwrap_err().to_string();
        assert!(refused.contains("not kept"), "{refused}");
    }

    #[test]
    fn the_file_is_read_back_and_a_broken_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(History::read(&state).unwrap(), None);
        let rule = Rule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            action: RuleAction::Bypass,
            origin: Origin::BuiltIn,
            also: Vec::new(),
        };
        for broken in [false, true] {
            if broken {
                std::fs::write(dir.path().join(FILE), "{").unwrap();
                assert!(History::read(&state).is_err());
            }
            History::record(&state, record(1), std::slice::from_ref(&rule)).unwrap();
            let (_, read) = History::read(&state).unwrap().unwrap().rules_of(1).unwrap();
            assert_eq!(read, rules(&["10.0.0.0/8"], &[]));
        }
    }
}
