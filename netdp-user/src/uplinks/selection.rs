//! Criteria for the uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use globset::{Glob, GlobMatcher};

use super::model::Snapshot;
use crate::config::Masqueraded;

/// Criteria for the uplinks, from the administrator and the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Names of the uplinks; if there are none, the routes and `node_addrs` decide.
    pub patterns: Patterns,
    /// Addresses that the node is known by.
    pub node_addrs: Vec<IpAddr>,
    /// True if IPv6 is translated too.
    pub enable_ipv6: bool,
    /// Masqueraded destinations of the policy: links by which the node routes there are uplinks.
    pub masqueraded: Masqueraded,
    /// Indexes of links that were uplinks by their role. They stay uplinks while they exist: a
    /// default route that is gone for a moment must not let a packet out untranslated.
    pub keep: BTreeSet<u32>,
    /// Names of links that were uplinks by their role. One that is deleted and created again is an
    /// uplink from its first moment, before it has an address or a route.
    pub names: BTreeSet<String>,
    /// Links in `keep` that had masqueraded neighbours when they were selected, see
    /// [`Selected::with_guests`](super::select::Selected::with_guests).
    pub with_guests: BTreeSet<u32>,
}

impl Selection {
    /// Reports whether a link of this name is an uplink regardless of its addresses and routes.
    pub(super) fn expects(&self, name: &str) -> bool {
        self.patterns.matches(name) || (self.patterns.is_empty() && self.names.contains(name))
    }
}

/// Glob patterns for the names of links (`*`, `?`, `[ab]`, `{a,b}`).
#[derive(Clone, Debug, Default)]
pub struct Patterns(pub(super) Vec<GlobMatcher>);

impl Patterns {
    /// Parses the values of `flag`.
    ///
    /// # Errors
    /// Returns an error that quotes the value if one is not a glob.
    pub fn parse<S: AsRef<str>>(flag: &str, values: &[S]) -> Result<Self> {
        let parse = |value: &S| {
            let value = value.as_ref();
            let glob = Glob::new(value).with_context(|| {
                format!("{flag} {value:?} is not a pattern; give an interface name such as eth0 or a glob such as ens*")
            })?;
            Ok(glob.compile_matcher())
        };
        values.iter().map(parse).collect::<Result<_>>().map(Self)
    }

    /// Reports whether a pattern matches a link's name.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.is_match(name))
    }

    /// Returns the patterns that match no link, the loopback device aside.
    pub fn unmatched(&self, snapshot: &Snapshot) -> Vec<String> {
        let is_unmatched = |pattern: &&GlobMatcher| {
            let mut links = snapshot.links.iter().filter(|link| !link.loopback);
            !links.any(|link| pattern.is_match(&link.name))
        };
        let unmatched = self.0.iter().filter(is_unmatched);
        unmatched
            .map(|pattern| pattern.glob().to_string())
            .collect()
    }

    /// Reports whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
