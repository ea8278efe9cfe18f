//! Bypass decisions of earlier policies, kept beside the policy in force: a connection that began
//! with the pod's address can only continue with it.
//!
//! The trie in force holds them all, so they survive the agent, and any number of successive
//! changes.

use super::entries::{Entries, NO_RULE, Prefix, bits};
use netdp_common::layout::{ACTION_MASK, Action, POLICY_NO_RULE, POLICY_WAS_BYPASSED, PolicyValue};

/// Treatment of connections that the previous policy bypassed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// They keep the pod's address.
    Keep,
    /// They are masqueraded like new ones, which breaks them.
    Forget,
}

/// The datapath's default for addresses that no prefix covers.
pub(super) const UNCOVERED: PolicyValue = PolicyValue {
    action: Action::Masquerade as u32,
    rule: NO_RULE,
};

/// A prefix on the path down to longer ones, and the value in effect below it.
struct Level {
    prefix: Prefix,
    rule: PolicyValue,
    bypassed_before: bool,
    /// Value in the trie at this prefix.
    value: PolicyValue,
}

/// Returns the entries of `rules`, marked where `before`, the previous trie, bypassed or was marked
/// itself, and the additional entries needed to mark exactly that.
pub(super) fn with_history(rules: &Entries, before: &Entries) -> Entries {
    let mut out = Vec::with_capacity(rules.len());
    // Covering prefixes come before those that they cover.
    let mut above: Vec<Level> = Vec::new();
    for (prefix, own, marked) in rules.merge_join(before) {
        while above
            .last()
            .is_some_and(|level| !covers(level.prefix, prefix))
        {
            above.pop();
        }
        let (rule, bypassed_before, value) =
            above.last().map_or((UNCOVERED, false, UNCOVERED), |level| {
                (level.rule, level.bypassed_before, level.value)
            });
        let rule = own.unwrap_or(rule);
        let bypassed_before = marked.map_or(bypassed_before, |value| bypassed(&value));
        let mut wanted = rule;
        if bypassed_before && action(&rule) != Action::Bypass {
            wanted.action |= POLICY_WAS_BYPASSED;
        }
        let covered = value.action & !POLICY_NO_RULE == wanted.action;
        if own.is_none() && !covered {
            wanted.action |= POLICY_NO_RULE;
        }
        if own.is_some() || !covered {
            out.push((prefix, wanted));
        }
        above.push(Level {
            prefix,
            rule,
            bypassed_before,
            value: wanted,
        });
    }
    out.into_iter().collect()
}

/// Returns the entries of the policy alone, without marks.
pub(super) fn without_history(entries: &Entries) -> Entries {
    entries
        .iter()
        .filter(|(_, value)| value.action & POLICY_NO_RULE == 0)
        .map(|&(prefix, value)| {
            let action = value.action & ACTION_MASK;
            (prefix, PolicyValue { action, ..value })
        })
        .collect()
}

const fn action(value: &PolicyValue) -> Action {
    Action::from_raw(value.action)
}

fn bypassed(value: &PolicyValue) -> bool {
    action(value) == Action::Bypass || value.action & POLICY_WAS_BYPASSED != 0
}

fn covers((len, net): Prefix, (other_len, other): Prefix) -> bool {
    let differ = bits(net) ^ bits(other);
    len <= other_len && (len == 0 || differ >> (128 - len) == 0)
}

#[cfg(test)]
mod tests {
    use super::{action, covers, with_history, without_history};
    use crate::datapath::entries::Entries;
    use netdp_common::layout::{Action, Addr, POLICY_WAS_BYPASSED, PolicyValue};
    use proptest::prelude::*;

    fn lookup(trie: &Entries, addr: Addr) -> PolicyValue {
        let covering = trie
            .iter()
            .filter(|(prefix, _)| covers(*prefix, (128, addr)));
        covering
            .max_by_key(|(prefix, _)| prefix.0)
            .map_or(super::UNCOVERED, |(_, value)| *value)
    }

    /// Generates prefixes that differ in a few bits at the end of one address, so that they cover
    /// each other.
    fn policy() -> impl Strategy<Value = Entries> {
        let rule = (0u32..=5, 0u8..32, any::<bool>());
        prop::collection::vec(rule, 0..6).prop_map(|rules| {
            let rules = (0..).zip(rules).map(|(rule, (bits, net, bypass))| {
                let kept = 0xffu8.checked_shl(5 - bits).unwrap_or(0);
                let action = if bypass {
                    Action::Bypass
                } else {
                    Action::Masquerade
                };
                let value = PolicyValue {
                    action: action as u32,
                    rule,
                };
                ((123 + bits, address(net & kept)), value)
            });
            rules.collect()
        })
    }

    fn address(last: u8) -> Addr {
        Addr::from_v4([10, 0, 0, last])
    }

    proptest! {
        #[test]
        fn every_address_is_as_the_policies_say(policies in prop::collection::vec(policy(), 1..6)) {
            let mut trie = Entries::default();
            let mut history = [false; 32];
            for policy in &policies {
                trie = with_history(policy, &trie);
                for last in 0u8..32 {
                    let wanted = lookup(policy, address(last));
                    let seen = lookup(&trie, address(last));
                    prop_assert_eq!(action(&seen), action(&wanted));
                    prop_assert_eq!(seen.rule, wanted.rule);
                    let bypassed = action(&wanted) == Action::Bypass;
                    let marked = seen.action & POLICY_WAS_BYPASSED != 0;
                    let before = &mut history[usize::from(last)];
                    prop_assert_eq!(marked, *before && !bypassed);
                    *before |= bypassed;
                }
                prop_assert_eq!(&without_history(&trie), policy);
            }
        }

        #[test]
        fn one_policy_again_changes_nothing(first in policy(), second in policy()) {
            let trie = with_history(&second, &with_history(&first, &Entries::default()));
            prop_assert_eq!(with_history(&second, &trie), trie);
        }
    }
}
