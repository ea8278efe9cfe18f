//! The rules of a policy.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::{Rule, RuleAction};
use crate::prefixes::Prefixes;

/// An immutable, ordered list of rules. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Rule>,
    /// Built on first use: most of the agent's work does not need it.
    index: OnceLock<Index>,
}

#[derive(Debug)]
struct Index {
    prefixes: Prefixes,
    /// Prefixes of the bypasses alone.
    bypasses: Prefixes,
}

impl Rules {
    fn index(&self) -> &Index {
        self.0.index.get_or_init(|| {
            let bypasses = self.iter().filter(|rule| rule.action == RuleAction::Bypass);
            Index {
                prefixes: Prefixes::new(self.iter().map(|rule| rule.prefix)),
                bypasses: Prefixes::new(bypasses.map(|rule| rule.prefix)),
            }
        })
    }

    fn at(&self, place: usize) -> Option<&Rule> {
        self.0.list.get(place)
    }

    /// Returns the rules whose prefix contains all of `net`, the longest first.
    pub fn covering(&self, net: IpNet) -> impl Iterator<Item = &Rule> {
        let places = self.index().prefixes.covering(net);
        places.filter_map(|place| self.at(place))
    }

    /// Returns the rules whose prefix lies in `net`, or equals it.
    pub fn inside(&self, net: IpNet) -> impl Iterator<Item = &Rule> {
        let places = self.index().prefixes.inside(net);
        places.filter_map(|place| self.at(place))
    }

    /// Reports whether a rule bypasses a part of `net`, but not all of it.
    pub fn bypass_partially(&self, net: IpNet) -> bool {
        // Prefixes are unique.
        let inside = self.index().bypasses.inside(net).take(2).count();
        let same = self.covering(net).next().filter(|rule| rule.prefix == net);
        let is_whole = same.is_some_and(|rule| rule.action == RuleAction::Bypass);
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
