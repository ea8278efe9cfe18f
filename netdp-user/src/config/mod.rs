//! The configuration: files are parsed, checked, merged, and turned into the policy for the
//! datapath.
//!
//! The files are those of ip-masq-agent (YAML or JSON), with the additional keys `masqueradeCIDRs`
//! and `autoNonMasquerade`, and those of k8s-custom-iptables. A set of files is accepted as a whole or not at all: one error
//! anywhere rejects it.

mod auto;
mod cidr;
mod defaults;
mod diagnostic;
mod differences;
mod document;
mod duration;
mod key;
mod keys;
mod lint;
mod manifest;
mod masqueraded;
mod merge;
mod nat_rules;
mod nesting;
mod parse;
mod parts;
mod rules;
mod settings;
mod values;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use auto::AutoOrigin;
use ipnet::IpNet;
use netdp_common::layout::Action;
use parse::FileConfig;

use parts::{Part, Text};
use serde::{Deserialize, Serialize};

pub(crate) use auto::{AutoApi, AutoKind, AutoKinds, AutoNetwork, AutoNetworks, AutoSource};
pub(crate) use diagnostic::{Diagnostic, Rejected};
pub(crate) use differences::differences;
#[cfg(test)]
pub(crate) use key::Key;

pub(crate) use document::{Document, Format, MAX_DOCUMENT_BYTES};
pub(crate) use keys::{Keys, LABEL};
pub(crate) use lint::ClusterCidrs;
pub(crate) use manifest::contains_objects;
pub(crate) use masqueraded::Masqueraded;
pub(crate) use rules::Rules;

/// The resync interval if no file sets one.
pub(crate) const DEFAULT_RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Minimum resync interval: shorter ones are raised to it, so that the agent does not spend all its
/// time reading files.
pub(crate) const MIN_RESYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum number of CIDRs in one file, unless the file sets its own limit.
pub(crate) const DEFAULT_CIDR_LIMIT: usize = 64;

/// Maximum number of rules of a policy: the kernel's tries hold 1,048,576 prefixes each, some of
/// which are netdp's own.
pub(crate) const MAX_RULES: usize = 1_000_000;

/// The flags that affect the meaning of a configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// True to accept IPv6 CIDRs and add the IPv6 link-local rule.
    pub enable_ipv6: bool,
    /// True to add the reserved IPv4 ranges to the default list.
    pub nomasq_all_reserved_ranges: bool,
    /// Action for destinations that are in no list. `None` if the flag is not given: they are
    /// masqueraded. With [`RuleAction::Bypass`] the default lists are omitted, as they would change
    /// nothing.
    pub default_action: Option<RuleAction>,
}

/// Action of a rule on pods' packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
pub enum RuleAction {
    /// Packets keep the pod's address.
    Bypass,
    /// Packets leave with the address of their uplink.
    Masquerade,
}

impl From<RuleAction> for Action {
    fn from(action: RuleAction) -> Self {
        match action {
            RuleAction::Bypass => Self::Bypass,
            RuleAction::Masquerade => Self::Masquerade,
        }
    }
}

impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bypass => "bypass",
            Self::Masquerade => "masquerade",
        })
    }
}

/// Origin of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A default or the link-local rule, which no file contains.
    BuiltIn,
    /// A flag, by name.
    Flag(&'static str),
    /// An entry of a file.
    File {
        /// Name of the document.
        file: Arc<str>,
        /// Line of the entry, counted from 1.
        line: usize,
    },
    /// Networks of the cluster.
    Auto(AutoOrigin),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::Flag(flag) => f.write_str(flag),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Auto(origin) => write!(f, "{origin}"),
        }
    }
}

/// The action for the destinations in a prefix that no longer prefix covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Prefix without host bits, unique among the rules.
    pub prefix: IpNet,
    /// Action on packets to the prefix.
    pub action: RuleAction,
    /// First origin of the rule.
    pub origin: Origin,
    /// Further origins of the same rule, in the order of the documents.
    pub also: Vec<Origin>,
}

/// Reports whether a prefix is that of a link-local rule (`masqLinkLocal`), which is no default.
pub(crate) fn is_link_local(prefix: &IpNet) -> bool {
    [defaults::LINK_LOCAL_V4, defaults::LINK_LOCAL_V6].contains(prefix)
}

impl Rule {
    /// Reports whether the rule is of the built-in list, which counts while no document has its own.
    pub(crate) fn is_default(&self) -> bool {
        self.action == RuleAction::Bypass
            && self.origin == Origin::BuiltIn
            && !is_link_local(&self.prefix)
    }

    /// Reports whether the rule bypasses networks of the cluster that no document lists.
    pub(crate) const fn is_auto(&self) -> bool {
        matches!(self.origin, Origin::Auto(_))
    }
}

/// An effective configuration. Destinations outside all rules are masqueraded; another default
/// action is a rule of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The whole policy: the default action if it is a rule, the link-local rules, then bypasses,
    /// then masquerades, then those of the cluster's networks, then NAT rules; those from files in the order of the files and their
    /// entries.
    pub rules: Rules,
    /// Period of reading the files and checking the datapath without any notification.
    pub resync_interval: Duration,
    /// True if 169.254.0.0/16 has no bypass rule of its own.
    pub masq_link_local: bool,
    /// True if `fe80::/10` has no bypass rule of its own.
    pub masq_link_local_ipv6: bool,
    /// Kinds of the cluster's networks that are bypassed as far as they are known.
    pub auto: AutoKinds,
}

/// Result of [`Config::decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Action on the packet.
    pub action: RuleAction,
    /// The rule that applies; `None`: the default.
    pub rule: Option<&'a Rule>,
}

impl Config {
    /// Returns the decision for a destination.
    pub fn decide(&self, destination: IpAddr) -> Decision<'_> {
        let rule = self.rules.covering(destination.into()).next();
        Decision {
            action: rule.map_or(RuleAction::Masquerade, |rule| rule.action),
            rule,
        }
    }

    /// Reports whether every destination in `net` is masqueraded.
    pub fn masquerades(&self, net: IpNet) -> bool {
        let around = self.rules.covering(net).next();
        around.is_none_or(|rule| rule.action == RuleAction::Masquerade)
            && !self.rules.bypass_partially(net)
    }

    /// Returns the masqueraded destinations, for queries about whole prefixes.
    pub fn masqueraded(&self) -> Masqueraded {
        Masqueraded::of(&self.rules)
    }

    /// Reports whether nothing but the cluster's networks differs from `other`.
    pub(crate) fn differs_in_networks_only(&self, other: &Self) -> bool {
        let with = |rules: &Rules| Self {
            rules: rules.clone(),
            ..other.clone()
        };
        let lasting = |config: &Self| -> Vec<Rule> {
            let rules = config.rules.iter().filter(|rule| !rule.is_auto());
            rules.cloned().collect()
        };
        *self == with(&self.rules) && lasting(self) == lasting(other)
    }

    /// Returns 16 hexadecimal digits that identify a configuration: the same on every node and in
    /// every version for the same rules and settings, whatever the order of rules and files. Of the
    /// cluster's networks only the kinds count: nodes learn of a new node one after the other.
    pub fn hash(&self) -> String {
        let mut rules: Vec<String> = self
            .rules
            .iter()
            .filter(|rule| !rule.is_auto())
            .map(|rule| format!("{} {}", rule.prefix, rule.action))
            .collect();
        rules.sort_unstable();
        let Self {
            rules: _,
            resync_interval,
            masq_link_local,
            masq_link_local_ipv6,
            auto,
        } = self;
        let mut settings = format!(
            "{} {masq_link_local} {masq_link_local_ipv6}",
            resync_interval.as_nanos()
        );
        // Nothing where there are none: the hash is that of versions that did not know the key.
        for kind in auto {
            settings.push_str(" auto:");
            settings.push_str(kind.name());
        }
        let canonical = format!("{settings}\n{}", rules.join("\n"));
        format!("{:016x}", fnv1a(canonical.as_bytes()))
    }
}

/// Parses a duration in Go's notation, as configurations contain it, such as `1m30s` or `1.5h`.
///
/// # Errors
/// Returns an error for anything else, and for negative durations.
pub(crate) fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let nanos = duration::parse(text).map_err(|err| anyhow::anyhow!("{err}"))?;
    let nanos = u64::try_from(nanos).map_err(|_| anyhow::anyhow!("it is negative"))?;
    Ok(Duration::from_nanos(nanos))
}

/// Returns the 64-bit FNV-1a hash: stable by its definition, unlike the standard library's hashers.
/// Forging a hash that is only displayed and compared gains nothing.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A valid configuration, with findings for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// Findings that do not reject the configuration.
    pub warnings: Vec<Diagnostic>,
    /// Objects of manifests that were read, and those that were left out.
    pub notes: Vec<Diagnostic>,
}

/// Loads `docs` without networks of the cluster.
#[cfg(test)]
pub(crate) fn load(docs: &[Document], opts: &Options) -> Result<Loaded, Rejected> {
    load_for_cluster(docs, opts, &ClusterCidrs::default())
}

/// Parses, checks and merges `docs`. Without documents the result is the defaults. Bypasses `cluster_cidrs` where a document says so, and warns if
/// the policy masquerades them.
///
/// # Errors
/// Returns every error in every document; then none of them may come into force.
pub(crate) fn load_for_cluster(
    docs: &[Document],
    opts: &Options,
    cluster_cidrs: &ClusterCidrs,
) -> Result<Loaded, Rejected> {
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    let mut notes = Vec::new();
    let mut parts = Vec::new();
    for doc in docs {
        parts.extend(parts::parts(doc, &mut errors, &mut notes));
    }
    let only_nat_rules = parts
        .iter()
        .all(|part| matches!(part.text, Text::NatRules(_)));
    let files: Vec<_> = parts
        .iter()
        .map(|Part { name, text }| {
            let name = name.as_ref();
            let config = match text {
                Text::MasqAgent(None) => FileConfig::default(),
                Text::MasqAgent(Some(root)) => {
                    parse::parse(name, root, opts, &mut errors, &mut warnings)
                }
                Text::NatRules(text) => {
                    nat_rules::parse(name, text, opts, &mut errors, &mut warnings)
                }
            };
            (name, config)
        })
        .collect();
    let config = merge::merge(
        &files,
        opts,
        &cluster_cidrs.auto,
        &mut errors,
        &mut warnings,
    );
    if config.rules.len() > MAX_RULES {
        errors.push(lint::too_many(&config.rules));
        // There may be a warning for each rule.
        warnings.clear();
    }
    auto::lint(
        &files,
        &cluster_cidrs.auto,
        opts,
        &config.rules,
        &mut warnings,
        &mut notes,
    );
    lint::cluster(&config, opts, cluster_cidrs, &mut warnings);
    lint::implicit_default_action(only_nat_rules, &config, opts, &mut warnings);
    sort(&mut errors, &parts);
    sort(&mut warnings, &parts);
    if errors.is_empty() {
        Ok(Loaded {
            config,
            warnings,
            notes,
        })
    } else {
        Err(Rejected { errors })
    }
}

/// Sorts `findings` by the order of the parts and their lines.
fn sort(findings: &mut [Diagnostic], parts: &[Part<'_>]) {
    let names = parts.iter().map(|part| part.name.as_ref());
    let places: HashMap<&str, usize> = names.zip(0..).collect();
    findings.sort_by_key(|finding| {
        let place = places.get(finding.file.as_str());
        (place.copied().unwrap_or(usize::MAX), finding.line)
    });
}

/// Returns the configuration without any file.
pub(crate) fn defaults(opts: &Options) -> Config {
    let networks = AutoNetworks::default();
    merge::merge(&[], opts, &networks, &mut Vec::new(), &mut Vec::new())
}
