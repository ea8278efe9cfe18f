//! What iptables-save prints of a table.

use serde::Serialize;
use std::collections::BTreeMap;

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its text without `-A CHAIN`.
    pub text: String,
    /// Packets and bytes that it has matched.
    pub counters: (u64, u64),
}

/// The nat table of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The rules of each chain, in order.
    pub chains: BTreeMap<String, Vec<Rule>>,
}

impl Table {
    /// Reads what `iptables-save --counters --table nat` printed. What it cannot read is not there:
    /// iptables-save prints other tables' and comment lines, too.
    #[must_use]
    pub fn parse(text: &str) -> Self {
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

    /// The rules of a chain; none if there is no such chain.
    #[must_use]
    pub fn rules(&self, chain: &str) -> &[Rule] {
        self.chains.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Every rule with the chain that it is in.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.chains
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain.as_str(), rule)))
    }
}

/// A rule, `[1:84] -A CHAIN …`, with its chain.
fn rule(line: &str) -> Option<(&str, Rule)> {
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
    Some((chain, Rule { text, counters }))
}
