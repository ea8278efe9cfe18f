//! Contents of a policy trie as a sorted list: two of them are compared in one walk, which takes a
//! millisecond or two for 100,000 entries.

use super::rule_counts::SHARED_INDEX;
use netdp_common::layout::{Addr, POLICY_NO_RULE, PolicyValue};
use std::iter::from_fn;

/// Prefix length and address of a trie's key; IPv4 lies below `::ffff:0:0/96`.
pub(super) type Prefix = (u32, Addr);

/// [`PolicyValue::rule`] of an entry that stems from no rule.
pub(super) const NO_RULE: u32 = u32::MAX;

/// Entries of a trie, sorted by address; of equal addresses the shorter prefix first. So a prefix
/// comes right before those that it covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries(Vec<(Prefix, PolicyValue)>);

impl FromIterator<(Prefix, PolicyValue)> for Entries {
    /// Accepts any order; of equal prefixes the last one counts.
    fn from_iter<I: IntoIterator<Item = (Prefix, PolicyValue)>>(entries: I) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(prefix, _)| sort_key(prefix));
        entries.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = later.1;
            }
            same
        });
        entries.shrink_to_fit();
        Self(entries)
    }
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Prefix, PolicyValue)> {
        self.0.iter()
    }

    /// Merges the prefixes of both in their order, each with its value in `self` and in `other`.
    pub(super) fn merge_join<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (Prefix, Option<PolicyValue>, Option<PolicyValue>)> + 'a {
        let mut ours = self.0.iter().peekable();
        let mut theirs = other.0.iter().peekable();
        from_fn(move || {
            let next = [ours.peek(), theirs.peek()];
            let prefix = next.into_iter().flatten().map(|(prefix, _)| *prefix);
            let prefix = prefix.min_by_key(sort_key)?;
            let own = ours.next_if(|(own, _)| *own == prefix);
            let other = theirs.next_if(|(other, _)| *other == prefix);
            Some((prefix, own.map(|e| e.1), other.map(|e| e.1)))
        })
    }

    /// Returns the entries with the rule numbers they have in `before`, so that a rule added or
    /// removed leaves the entries of other rules unchanged; and the lowest number that no rule has had.
    /// New rules get numbers above those, from `free` on. If none are left, all rules are renumbered;
    /// as long as every rule can have an entry of its own in `rule_hits`, only such numbers are given.
    pub(super) fn numbered_after(self, before: &Self, free: u32) -> (Self, u32) {
        let numbered =
            |value: &PolicyValue| value.rule != NO_RULE && value.action & POLICY_NO_RULE == 0;
        let known = before.iter().map(|(_, value)| value);
        let highest = known.filter(|v| numbered(v)).map(|v| v.rule).max();
        let mut next = highest
            .map_or(0, |highest| highest.saturating_add(1))
            .max(free);
        let own = |list: &Self| u32::try_from(list.len()).unwrap_or(NO_RULE);
        let end = if own(&self) < SHARED_INDEX {
            SHARED_INDEX
        } else {
            NO_RULE
        };
        let news = self.merge_join(before).filter(|(_, own, before)| {
            own.is_some_and(|own| own.rule != NO_RULE) && !before.as_ref().is_some_and(numbered)
        });
        let news = u32::try_from(news.count()).unwrap_or(NO_RULE);
        if next.checked_add(news).is_none_or(|after| after > end) {
            let after = own(&self);
            return (self, after);
        }
        let entries = self.merge_join(before).filter_map(|(prefix, own, before)| {
            let mut own = own?;
            if own.rule != NO_RULE {
                own.rule = before.filter(numbered).map_or_else(
                    || {
                        next += 1;
                        next - 1
                    },
                    |before| before.rule,
                );
            }
            Some((prefix, own))
        });
        let entries = entries.collect();
        (Self(entries), next)
    }
}

fn sort_key((len, addr): &Prefix) -> (u128, u32) {
    (bits(*addr), *len)
}

pub(super) fn bits(addr: Addr) -> u128 {
    u128::from_be_bytes(*addr.octets())
}

#[cfg(test)]
mod tests {
    use super::{Entries, NO_RULE, Prefix, SHARED_INDEX};
    use netdp_common::layout::{Action, Addr, POLICY_NO_RULE, PolicyValue};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn prefix(last: u8, len: u32) -> Prefix {
        (len, Addr::from_v4([10, 0, 0, last]))
    }

    fn value(rule: u32) -> PolicyValue {
        PolicyValue {
            action: Action::Bypass as u32,
            rule,
        }
    }

    fn rules(last: &[u8]) -> Entries {
        let rules = (0..).zip(last);
        rules
            .map(|(n, last)| (prefix(*last, 128), value(n)))
            .collect()
    }

    fn numbers(entries: &Entries) -> Vec<u32> {
        entries.iter().map(|(_, value)| value.rule).collect()
    }

    #[test]
    fn a_rule_keeps_its_number() {
        let (first, next) = rules(&[1, 3, 5]).numbered_after(&Entries::default(), 0);
        assert_eq!((numbers(&first), next), (vec![0, 1, 2], 3));
        let (second, next) = rules(&[0, 1, 2, 3, 5]).numbered_after(&first, next);
        assert_eq!((numbers(&second), next), (vec![3, 0, 4, 1, 2], 5));
        let (third, next) = rules(&[3, 5]).numbered_after(&second, next);
        assert_eq!((numbers(&third), next), (vec![1, 2], 5));
    }

    #[test]
    fn a_number_is_not_given_to_another_prefix() {
        let (first, next) = rules(&[1, 3]).numbered_after(&Entries::default(), 7);
        assert_eq!((numbers(&first), next), (vec![7, 8], 9));
        let (second, next) = rules(&[1]).numbered_after(&first, next);
        let (third, next) = rules(&[1, 9]).numbered_after(&second, next);
        assert_eq!((numbers(&third), next), (vec![7, 9], 10));
    }

    #[test]
    fn numbers_begin_anew_before_they_run_out() {
        for highest in [NO_RULE - 2, SHARED_INDEX - 1] {
            let last: Entries = [(prefix(1, 128), value(highest))].into_iter().collect();
            let (next, free) = rules(&[1, 3]).numbered_after(&last, 0);
            assert_eq!((numbers(&next), free), (vec![0, 1], 2));
        }
        let last: Entries = [(prefix(1, 128), value(SHARED_INDEX - 2))]
            .into_iter()
            .collect();
        let (next, free) = rules(&[1, 3]).numbered_after(&last, 0);
        assert_eq!(numbers(&next), [SHARED_INDEX - 2, SHARED_INDEX - 1]);
        assert_eq!(free, SHARED_INDEX);
    }

    #[test]
    fn what_no_rule_says_has_no_number() {
        let mark = PolicyValue {
            action: Action::Masquerade as u32 | POLICY_NO_RULE,
            rule: 7,
        };
        let before: Entries = [(prefix(1, 128), value(4)), (prefix(3, 128), mark)]
            .into_iter()
            .collect();
        let (next, _) = rules(&[1, 3]).numbered_after(&before, 0);
        assert_eq!(numbers(&next), [4, 5]);
    }

    proptest! {
        #[test]
        fn a_merge_join_holds_both_lists(
            left in prop::collection::vec((any::<u8>(), 100u32..=128, any::<u32>()), 0..40),
            right in prop::collection::vec((any::<u8>(), 100u32..=128, any::<u32>()), 0..40),
        ) {
            let entry = |&(last, len, rule): &(u8, u32, u32)| (prefix(last, len), value(rule));
            let map = |list: &[_]| list.iter().map(entry).collect::<BTreeMap<_, _>>();
            let list = |list: &[_]| list.iter().map(entry).collect::<Entries>();
            let (left_map, right_map) = (map(&left), map(&right));
            let mut seen = BTreeMap::new();
            for (prefix, own, other) in list(&left).merge_join(&list(&right)) {
                prop_assert_eq!(own, left_map.get(&prefix).copied());
                prop_assert_eq!(other, right_map.get(&prefix).copied());
                prop_assert!(seen.insert(prefix, ()).is_none(), "{:?} twice", prefix);
            }
            let all = left_map.keys().chain(right_map.keys()).map(|prefix| (*prefix, ()));
            prop_assert_eq!(seen, all.collect::<BTreeMap<_, _>>());
        }
    }
}
