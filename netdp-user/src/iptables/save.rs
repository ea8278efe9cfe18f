//! Parser of iptables-save's output.

use serde::Serialize;
use std::collections::BTreeMap;

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IptablesRule {
    /// Its text without `-A CHAIN`.
    pub text: String,
    /// Packets and bytes that it has matched.
    pub counters: (u64, u64),
}

/// The nat table of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// Rules of each chain, in order.
    pub chains: BTreeMap<String, Vec<IptablesRule>>,
}

impl Table {
    /// Parses the output of `iptables-save --counters --table nat`. Lines that cannot be parsed are
    /// skipped: iptables-save also prints other tables and comments.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or(chain);
                table.chains.entry(name.into()).or_default();
            } else if let Some((chain, rule)) = rule(line) {
                table.chains.entry(chain.into()).or_default().push(rule);
            }
        }
        table
    }

    /// Returns the rules of a chain; empty if there is no such chain.
    #[must_use]
    pub(crate) fn rules(&self, chain: &str) -> &[IptablesRule] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Iterates over all rules with their chains.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &IptablesRule)> {
        self.chains
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain.as_str(), rule)))
    }
}

/// Parses a rule, `[1:84] -A CHAIN …`, and returns it with its chain.
fn rule(line: &str) -> Option<(&str, IptablesRule)> {
    let (counters, rest) = match line.strip_prefix('[') {
        Some(counted) => {
            let (counters, rest) = counted.split_once("] ")?;
            let (packets, bytes) = counters.split_once(':')?;
            ((packets.parse().ok()?, bytes.parse().ok()?), rest)
        }
        None => ((0, 0), line),
    };
    let (chain, text) = rest.strip_prefix("-A ")?.split_once(' ')?;
    let text = text.into();
    Some((chain, IptablesRule { text, counters }))
}
