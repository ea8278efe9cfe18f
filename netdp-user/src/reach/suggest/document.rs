//! The change of the configuration, as a document in its own format.

use super::is_bypass;
use crate::report::RuleReport;
use ipnet::IpNet;
use serde::Serialize;
use std::fmt::Write as _;

/// A change of the configuration that has networks masqueraded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    /// Prefixes to add to `masqueradeCIDRs`: the fewest that have these networks and no others.
    pub masquerade: Vec<IpNet>,
    /// Entries of `nonMasqueradeCIDRs` that have to go: they lie in these prefixes, and would still
    /// be bypassed.
    pub no_longer_bypass: Vec<Entry>,
    /// The lists that change, whole. As a further document it is merged with the others, unless
    /// entries have to go; in a document it takes the place of the lists of the same names.
    pub document: String,
}

/// An entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    /// The prefix.
    pub prefix: IpNet,
    /// The place where it is written.
    pub origin: String,
}

impl Change {
    /// Returns the change for networks that are bypassed by these rules; `None` without networks.
    pub(super) fn new(networks: &[IpNet], rules: &[RuleReport]) -> Option<Self> {
        let masquerade = IpNet::aggregate(&networks.to_vec());
        if masquerade.is_empty() {
            return None;
        }
        let (mut bypass, mut masked, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for rule in rules.iter().filter(|rule| is_written(rule)) {
            let Ok(prefix) = rule.prefix.parse::<IpNet>() else {
                continue;
            };
            if !is_bypass(rule) {
                masked.push(prefix);
            } else if masquerade.iter().any(|net| net.contains(&prefix)) {
                gone.push(Entry {
                    prefix,
                    origin: rule.origin.clone(),
                });
            } else {
                bypass.push(prefix);
            }
        }
        masked.extend(
            masquerade
                .iter()
                .filter(|net| !masked.contains(net))
                .copied()
                .collect::<Vec<_>>(),
        );
        let is_within = |prefix: &IpNet| {
            let mut wider = masquerade.iter().filter(|net| *net != prefix);
            wider.any(|net| net.contains(prefix))
        };
        masked.retain(|prefix| !is_within(prefix));
        let mut document = String::new();
        if !gone.is_empty() {
            list(&mut document, "nonMasqueradeCIDRs", &bypass);
        }
        list(&mut document, "masqueradeCIDRs", &masked);
        Some(Self {
            masquerade,
            no_longer_bypass: gone,
            document,
        })
    }
}

/// Reports whether a rule is an entry of a document.
fn is_written(rule: &RuleReport) -> bool {
    let elsewhere = ["--", "auto: "];
    rule.origin != "built-in" && !elsewhere.iter().any(|it| rule.origin.starts_with(it))
}

/// Writes a list. An empty one is written as such: without the key the defaults would apply.
fn list(document: &mut String, key: &str, prefixes: &[IpNet]) {
    if prefixes.is_empty() {
        document.push_str(key);
        document.push_str(": []\n");
        return;
    }
    document.push_str(key);
    document.push_str(":\n");
    for prefix in prefixes {
        let _ = writeln!(document, "- {prefix}");
    }
}
