//! Other people's NAT: rules that translate the packets that netdp is to translate, and rules that
//! give another destination to what is addressed to the node.
//!
//! [`look`] reads both kinds of iptables and native nftables into one model (`rule`). `walk`
//! finds what is reached from POSTROUTING, `classify` says what each rule
//! means for pods' packets. `inward` finds what is reached from PREROUTING and OUTPUT, and on which ports.
//! `early` judges rules that drop what is addressed to pods before netfilter would have given answers
//! their addresses.

mod classify;
mod early;
mod inward;
mod iptables;
mod nft;
mod nft_inward;
mod owner;
mod read;
mod rule;
mod walk;
mod watch;

#[cfg(test)]
mod tests;

pub use classify::{Around, Translator};
pub use inward::Diverted;
pub use read::look;
pub use watch::Watch;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// All that one look shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What concerns pods' packets.
    pub seen: Seen,
    /// What concerns packets to the node.
    pub nat: Inward,
}

/// What becomes of packets that are addressed to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inward {
    /// Rules that give some of them another destination.
    pub diverted: Vec<Diverted>,
    /// Where such rules may be that could not be read, and why.
    pub unread: Vec<String>,
    /// Backends whose program is here and has failed: there may be more rules of theirs.
    pub failed: BTreeSet<String>,
    /// Neither nft nor iptables is here, as in an image without them.
    pub no_programs: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Rules that translate sources and are not netdp's, and those that drop answers to pods.
    pub rules: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
    /// Neither nft nor iptables is here, as in an image without them.
    #[serde(default)]
    pub no_programs: bool,
}

/// One rule, or several that differ in their addresses only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// Who writes such rules, as far as names tell.
    pub owner: String,
    /// `IPv4`, `IPv6`, or `both`.
    pub family: String,
    /// `nft`, `legacy` (iptables of either kind) or `nftables`.
    pub backend: String,
    /// Where it is.
    pub chain: String,
    /// Its text, as the program of its kind prints it; that of the first, where there are several.
    pub rule: String,
    /// How many there are.
    pub count: usize,
    /// Whether it drops packets, rather than translating them.
    #[serde(default)]
    pub drops: bool,
    /// Whether it does to pods' packets what the configuration does not say.
    pub conflict: bool,
    /// Why.
    pub why: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            owner,
            why,
            backend,
            family,
            rule,
            ..
        } = self;
        let what = if self.drops { "a rule of" } else { "NAT by" };
        write!(f, "{what} {owner} {why}: {backend}, {family}: {rule}")
    }
}

/// Findings as they come; rules of one owner that mean the same count as one.
#[derive(Debug, Default)]
struct Findings {
    rules: Vec<Finding>,
    /// Where in `rules` those of known owners are.
    known: HashMap<Meaning, usize>,
}

/// Owner, family, backend, whether it drops, whether it is a conflict, and why.
type Meaning = (String, String, String, bool, bool, String);

impl Findings {
    fn add(&mut self, finding: Finding) {
        if finding.owner != owner::UNKNOWN {
            let meaning = (
                finding.owner.clone(),
                finding.family.clone(),
                finding.backend.clone(),
                finding.drops,
                finding.conflict,
                finding.why.clone(),
            );
            let place = *self.known.entry(meaning).or_insert(self.rules.len());
            if let Some(like) = self.rules.get_mut(place) {
                like.count += 1;
                return;
            }
        }
        self.rules.push(finding);
    }
}
