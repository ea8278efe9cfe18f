//! The rules of a policy.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::{Action, Rule};
use crate::prefixes::Prefixes;

/// Rules in their order, which do not change any more. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Rule>,
    /// Made when it is asked for: most of the agent's work is done without.
    index: OnceLock<Index>,
}

#[derive(Debug)]
struct Index {
    prefixes: Prefixes,
    /// The bypasses alone.
    bypasses: Prefixes,
}

impl Rules {
    fn index(&self) -> &Index {
        self.0.index.get_or_init(|| {
            let bypasses = self.iter().filter(|rule| rule.action == Action::Bypass);
            Index {
                prefixes: Prefixes::new(self.iter().map(|rule| rule.prefix)),
                bypasses: Prefixes::new(bypasses.map(|rule| rule.prefix)),
            }
        })
    }

    fn at(&self, place: usize) -> Option<&Rule> {
        self.0.list.get(place)
    }

    /// Those whose prefix contains all of `net`, the longest first.
    pub fn covering(&self, net: IpNet) -> impl Iterator<Item = &Rule> {
        let places = self.index().prefixes.covering(net);
        places.filter_map(|place| self.at(place))
    }

    /// Those whose prefix is in `net`, or is that.
    pub fn inside(&self, net: IpNet) -> impl Iterator<Item = &Rule> {
        let places = self.index().prefixes.inside(net);
        places.filter_map(|place| self.at(place))
    }

    /// Whether a part of `net`, not all of it, is bypassed by a rule.
    pub fn bypass_a_part(&self, net: IpNet) -> bool {
        // Each prefix is there once.
        let inside = self.index().bypasses.inside(net).take(2).count();
        let same = self.covering(net).next().filter(|rule| rule.prefix == net);
        let is_whole = same.is_some_and(|rule| rule.action == Action::Bypass);
        inside > usize::from(is_whole)
    }
}

impl Deref for Rules {
    type Target = [Rule];

    fn deref(&self) -> &[Rule] {
        &self.0.list
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.list == other.0.list
    }
}

impl Eq for Rules {}

impl From<Vec<Rule>> for Rules {
    fn from(list: Vec<Rule>) -> Self {
        let index = OnceLock::new();
        Self(Arc::new(Inner { list, index }))
    }
}

impl FromIterator<Rule> for Rules {
    fn from_iter<T: IntoIterator<Item = Rule>>(rules: T) -> Self {
        rules.into_iter().collect::<Vec<_>>().into()
    }
}
