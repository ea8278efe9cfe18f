//! Sets of rules, and the difference of two of them.

use crate::config::{Rule, RuleAction};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rules of a policy, without origins.
pub(super) type RuleSet = BTreeMap<IpNet, RuleAction>;

/// Returns the rules of a configuration.
pub(super) fn rule_set(rules: &[Rule]) -> RuleSet {
    let rules = rules.iter().map(|rule| (rule.prefix, rule.action));
    rules.collect()
}

/// Differences from one set of rules to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    /// Rules that only the next one has.
    pub added: Vec<(IpNet, RuleAction)>,
    /// Rules that only the former one has.
    pub removed: Vec<(IpNet, RuleAction)>,
    /// Prefixes with another action, and the next one.
    pub changed: Vec<(IpNet, RuleAction)>,
}

impl Changes {
    /// Returns the difference of two sets of rules.
    pub(super) fn between(before: &RuleSet, after: &RuleSet) -> Self {
        let mut changes = Self::default();
        for (prefix, action) in after {
            match before.get(prefix) {
                None => changes.added.push((*prefix, *action)),
                Some(former) if former != action => changes.changed.push((*prefix, *action)),
                Some(_) => {}
            }
        }
        let removed = before.iter().filter(|(it, _)| !after.contains_key(it));
        changes.removed = removed.map(|(it, action)| (*it, *action)).collect();
        changes
    }

    /// Turns the next set of rules into the former one.
    pub(super) fn undo(&self, rules: &mut RuleSet) {
        for (prefix, _) in &self.added {
            rules.remove(prefix);
        }
        rules.extend(self.removed.iter().copied());
        for (prefix, action) in &self.changed {
            rules.insert(*prefix, other(*action));
        }
    }

    /// Reports whether nothing differs.
    pub(super) const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of differences.
    pub(super) const fn len(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }

    /// Returns the numbers of differences: `+3 -1 ~2`, without those that are zero.
    pub(super) fn summary(&self) -> String {
        summary([self.added.len(), self.removed.len(), self.changed.len()])
    }

    /// Returns a line for each difference, in the order of prefixes.
    pub(super) fn lines(&self) -> Vec<String> {
        let mark = |mark: &'static str, rules: &[(IpNet, RuleAction)]| {
            let rules = rules.iter().copied();
            rules
                .map(move |(prefix, action)| (prefix, mark, action))
                .collect::<Vec<_>>()
        };
        let mut all = mark("+", &self.added);
        all.extend(mark("-", &self.removed));
        all.extend(mark("~", &self.changed));
        all.sort_by_key(|(prefix, ..)| *prefix);
        let line = |(prefix, mark, action): (IpNet, &str, RuleAction)| match mark {
            "~" => format!("{mark} {prefix} {action} (was {})", other(action)),
            _ => format!("{mark} {prefix} {action}"),
        };
        all.into_iter().map(line).collect()
    }
}

/// Returns numbers of added, removed and changed rules: `+3 -1 ~2`, without those that are zero.
pub(crate) fn summary(counts: [usize; 3]) -> String {
    let parts: Vec<_> = ["+", "-", "~"]
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .map(|(mark, count)| format!("{mark}{count}"))
        .collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" ")
    }
}

const fn other(action: RuleAction) -> RuleAction {
    match action {
        RuleAction::Bypass => RuleAction::Masquerade,
        RuleAction::Masquerade => RuleAction::Bypass,
    }
}

/// A difference in JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct JsonChanges {
    added: Vec<JsonRule>,
    removed: Vec<JsonRule>,
    /// With the next action.
    changed: Vec<JsonRule>,
}

/// A rule in JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct JsonRule {
    prefix: String,
    action: String,
}

impl JsonRule {
    pub(super) fn new((prefix, action): (IpNet, RuleAction)) -> Self {
        Self {
            prefix: prefix.to_string(),
            action: action.to_string(),
        }
    }
}

impl From<&Changes> for JsonChanges {
    fn from(changes: &Changes) -> Self {
        let rules = |list: &[_]| list.iter().copied().map(JsonRule::new).collect();
        Self {
            added: rules(&changes.added),
            removed: rules(&changes.removed),
            changed: rules(&changes.changed),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Changes, RuleSet};
    use crate::config::RuleAction::{Bypass, Masquerade};

    /// Returns rules, bypassing ones first.
    pub(in crate::policy) fn rules(bypass: &[&str], masquerade: &[&str]) -> RuleSet {
        let bypass = bypass.iter().map(|it| (it.parse().unwrap(), Bypass));
        let masquerade = masquerade
            .iter()
            .map(|it| (it.parse().unwrap(), Masquerade));
        bypass.chain(masquerade).collect()
    }

    #[test]
    fn a_difference_can_be_undone() {
        let before = rules(&["10.0.0.0/8", "fd00::/8"], &["10.2.0.0/16"]);
        let after = rules(&["10.2.0.0/16", "fd00::/8"], &["192.0.2.0/24"]);
        let changes = Changes::between(&before, &after);
        assert_eq!(changes.summary(), "+1 -1 ~1");
        assert_eq!(
            changes.lines(),
            [
                "- 10.0.0.0/8 bypass",
                "~ 10.2.0.0/16 bypass (was masquerade)",
                "+ 192.0.2.0/24 masquerade"
            ]
        );
        let mut undone = after.clone();
        changes.undo(&mut undone);
        assert_eq!(undone, before);
        assert!(Changes::between(&after, &after).is_empty());
        assert_eq!(Changes::default().summary(), "-");
    }
}
