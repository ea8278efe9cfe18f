//! Lookup of the prefixes around and inside a prefix without comparing all of them.

use ipnet::IpNet;
use std::collections::HashMap;

/// A fixed list of prefixes; lookups return positions in that list.
#[derive(Debug, Clone, Default)]
pub struct Prefixes {
    /// Prefixes with their positions in the list. Each comes directly before the ones that it
    /// contains.
    sorted: Vec<(IpNet, usize)>,
    /// Index in `sorted` of the next shorter prefix that contains each one.
    broader: Vec<Option<usize>>,
}

impl Prefixes {
    /// Builds the index of a list, which may have duplicates.
    pub fn new(list: impl IntoIterator<Item = IpNet>) -> Self {
        let list = list.into_iter().map(|prefix| prefix.trunc());
        let mut sorted: Vec<_> = list.zip(0..).collect();
        sorted.sort_unstable();
        let mut broader = Vec::with_capacity(sorted.len());
        let mut around: Vec<(IpNet, usize)> = Vec::new();
        for (at, (prefix, _)) in sorted.iter().enumerate() {
            while around
                .last()
                .is_some_and(|(outer, _)| !outer.contains(prefix))
            {
                around.pop();
            }
            broader.push(around.last().map(|(_, at)| *at));
            around.push((*prefix, at));
        }
        Self { sorted, broader }
    }

    /// Returns the prefixes that contain all of `net`, the longest first.
    pub fn covering(&self, net: IpNet) -> impl Iterator<Item = usize> {
        // The entry right before its insertion point is the longest prefix that contains it, or
        // inside that prefix.
        let end = self.sorted.partition_point(|(prefix, _)| *prefix <= net);
        let mut next = end.checked_sub(1);
        let chain = std::iter::from_fn(move || {
            let (prefix, place) = self.sorted.get(next?)?;
            next = next.and_then(|at| self.broader.get(at).copied().flatten());
            Some((prefix, *place))
        });
        chain
            .filter(move |(prefix, _)| prefix.contains(&net))
            .map(|(_, place)| place)
    }

    /// Returns the prefixes inside `net`, including `net` itself.
    pub fn inside(&self, net: IpNet) -> impl Iterator<Item = usize> {
        let net = net.trunc();
        let start = self.sorted.partition_point(|(prefix, _)| *prefix < net);
        let rest = self.sorted.get(start..).unwrap_or_default();
        let end = rest.partition_point(|(prefix, _)| net.contains(prefix));
        rest.iter().take(end).map(|(_, place)| *place)
    }
}

/// A dynamic multiset of prefixes.
#[derive(Debug, Default)]
pub struct PrefixSet {
    /// Number of copies of each prefix.
    count: HashMap<IpNet, usize>,
    /// Number of entries of `count` per family and length.
    lengths: HashMap<(bool, u8), usize>,
}

impl PrefixSet {
    /// Inserts a prefix; repeated insertions are counted.
    pub fn insert(&mut self, net: IpNet) {
        let count = self.count.entry(net).or_default();
        *count += 1;
        if *count == 1 {
            *self.lengths.entry(length(&net)).or_default() += 1;
        }
    }

    /// Removes one copy of an inserted prefix.
    pub fn remove(&mut self, net: &IpNet) {
        if let Some(count) = self.count.get_mut(net) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(net);
                if let Some(of_length) = self.lengths.get_mut(&length(net)) {
                    *of_length -= 1;
                }
            }
        }
    }

    /// Reports whether a prefix in the set contains all of `net`.
    pub fn covers(&self, net: &IpNet) -> bool {
        let (is_v6, longest) = length(net);
        (0..=longest)
            .filter(|len| self.lengths.get(&(is_v6, *len)).is_some_and(|n| *n > 0))
            .filter_map(|len| IpNet::new(net.addr(), len).ok())
            .any(|outer| self.count.contains_key(&outer.trunc()))
    }
}

/// Returns family and length.
fn length(net: &IpNet) -> (bool, u8) {
    (matches!(net, IpNet::V6(_)), net.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::{PrefixSet, Prefixes};
    use ipnet::{IpNet, Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    /// Generates prefixes of both families that often contain each other.
    fn net() -> impl Strategy<Value = IpNet> {
        let v4 = (0..=4u8, 0..16u8).prop_map(|(bits, last)| {
            IpNet::from(Ipv4Net::new([10, 0, 0, last].into(), 28 + bits).unwrap())
        });
        let v6 = (0..=4u8, 0..16u16).prop_map(|(bits, last)| {
            let address = [0xfd00, 0, 0, 0, 0, 0, 0, last].into();
            IpNet::from(Ipv6Net::new(address, 124 + bits).unwrap())
        });
        let all = prop::sample::select(vec!["0.0.0.0/0", "::/0", "10.0.0.0/8"]);
        prop_oneof![4 => v4, 4 => v6, 1 => all.prop_map(|all| all.parse().unwrap())]
            .prop_map(|net: IpNet| net.trunc())
    }

    proptest! {
        #[test]
        fn answers_are_those_of_asking_every_one(
            list in prop::collection::vec(net(), 0..24),
            net in net(),
        ) {
            let prefixes = Prefixes::new(list.iter().copied());
            let at = |place: usize| list[place];
            let covering: Vec<_> = prefixes.covering(net).map(at).collect();
            let mut expected: Vec<_> =
                list.iter().copied().filter(|prefix| prefix.contains(&net)).collect();
            expected.sort_by_key(|prefix| std::cmp::Reverse(prefix.prefix_len()));
            prop_assert_eq!(covering, expected);
            let inside: Vec<_> = prefixes.inside(net).map(at).collect();
            let mut expected: Vec<_> =
                list.iter().copied().filter(|prefix| net.contains(prefix)).collect();
            expected.sort();
            prop_assert_eq!(inside, expected);
        }

        #[test]
        fn a_set_covers_what_one_of_it_contains(
            list in prop::collection::vec(net(), 0..24),
            out in 0..24usize,
            net in net(),
        ) {
            let mut set = PrefixSet::default();
            list.iter().for_each(|prefix| set.insert(*prefix));
            let (gone, kept) = list.split_at(out.min(list.len()));
            gone.iter().for_each(|prefix| set.remove(prefix));
            let expected = kept.iter().any(|prefix| prefix.contains(&net));
            prop_assert_eq!(set.covers(&net), expected);
        }
    }
}
