//! The configuration: what files say, checked, united, and turned into the policy that the
//! datapath is given.
//!
//! The files are those of ip-masq-agent (YAML or JSON), with `masqueradeCIDRs` added, and those of
//! k8s-custom-iptables. A set of files is taken whole or not at all: one error anywhere rejects it.

mod built_in;
mod cidr;
mod diagnostic;
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
mod plain;
mod rules;
mod settings;
mod tree;
mod upstream;
mod values;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parse::FileConfig;
use parts::{Part, Text};
use serde::{Deserialize, Serialize};

pub use diagnostic::{Diagnostic, Rejected};
#[cfg(test)]
pub(crate) use key::Key;

pub use document::{Document, Format, MAX_DOCUMENT_BYTES};
pub use keys::{Keys, LABEL, NAT_RULES_MAP};
pub use lint::Surroundings;
pub use manifest::holds_objects;
pub use masqueraded::Masqueraded;
pub use rules::Rules;
pub use upstream::differences;

/// The resync interval where no file sets one.
pub const DEFAULT_RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Shorter intervals are raised to this one, lest the agent do nothing but read files.
pub const MIN_RESYNC_INTERVAL: Duration = Duration::from_millis(100);

/// How many CIDRs one file may list where it does not say itself.
pub const DEFAULT_CIDR_LIMIT: usize = 64;

/// How many rules a policy may have: the kernel's tries hold 1,048,576 prefixes each, some of which
/// are netdp's own.
pub const MAX_RULES: usize = 1_000_000;

/// The flags that change what a configuration means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Accept IPv6 CIDRs and add the IPv6 link-local rule.
    pub enable_ipv6: bool,
    /// Let the default list also hold the reserved IPv4 ranges.
    pub nomasq_all_reserved_ranges: bool,
    /// What becomes of destinations that no list names. `None`, nobody said: they are masqueraded.
    /// With [`Action::Bypass`] the default lists do not count, for they would change nothing.
    pub default_action: Option<Action>,
}

/// What happens to a pod's packet to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
pub enum Action {
    /// It leaves as it is.
    Bypass,
    /// It leaves with the address of its uplink.
    Masquerade,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bypass => "bypass",
            Self::Masquerade => "masquerade",
        })
    }
}

/// Where a rule comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No file says so: a default, or the link-local rule.
    BuiltIn,
    /// A flag says so.
    Flag(&'static str),
    /// An entry of a file.
    File {
        /// The document's name.
        file: Arc<str>,
        /// The line of the entry, counted from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::Flag(flag) => f.write_str(flag),
            Self::File { file, line } => write!(f, "{file}:{line}"),
        }
    }
}

/// The action for the destinations in a prefix that no longer prefix covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Aligned; no two rules have the same.
    pub prefix: IpNet,
    /// What to do.
    pub action: Action,
    /// Who says so first.
    pub origin: Origin,
    /// Who says the same, in the order of the documents.
    pub also: Vec<Origin>,
}

/// An effective configuration. Destinations outside all rules are masqueraded; another default
/// action is a rule of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The whole policy: the default action if it is a rule, the link-local rules, then bypasses,
    /// then masquerades, then NAT rules, those of files in the order of the files and their entries.
    pub rules: Rules,
    /// How often to read the files and check the datapath though nothing was notified.
    pub resync_interval: Duration,
    /// Whether 169.254.0.0/16 is left without its own bypass rule.
    pub masq_link_local: bool,
    /// Whether `fe80::/10` is left without its own bypass rule.
    pub masq_link_local_ipv6: bool,
}

/// What [`Config::decide`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What happens to the packet.
    pub action: Action,
    /// The rule that says so; `None` is the default.
    pub rule: Option<&'a Rule>,
}

impl Config {
    /// The decision for a destination.
    pub fn decide(&self, destination: IpAddr) -> Decision<'_> {
        let rule = self.rules.covering(destination.into()).next();
        Decision {
            action: rule.map_or(Action::Masquerade, |rule| rule.action),
            rule,
        }
    }

    /// Whether every destination in `net` is masqueraded.
    pub fn masquerades(&self, net: IpNet) -> bool {
        let around = self.rules.covering(net).next();
        around.is_none_or(|rule| rule.action == Action::Masquerade)
            && !self.rules.bypass_a_part(net)
    }

    /// Which destinations are masqueraded, for questions about whole prefixes.
    pub fn masqueraded(&self) -> Masqueraded {
        Masqueraded::of(&self.rules)
    }

    /// 16 hexadecimal digits that tell configurations apart: the same on every node and in every
    /// version for the same rules and settings, in whichever order and files they were written.
    pub fn hash(&self) -> String {
        let mut rules: Vec<String> = self
            .rules
            .iter()
            .map(|rule| format!("{} {}", rule.prefix, rule.action))
            .collect();
        rules.sort_unstable();
        let Self {
            rules: _,
            resync_interval,
            masq_link_local,
            masq_link_local_ipv6,
        } = self;
        let settings = format!(
            "{} {masq_link_local} {masq_link_local_ipv6}",
            resync_interval.as_nanos()
        );
        let canonical = format!("{settings}\n{}", rules.join("\n"));
        format!("{:016x}", fnv1a(canonical.as_bytes()))
    }
}

/// A duration as configurations write it: Go's, such as `1m30s` or `1.5h`.
///
/// # Errors
/// Anything else, and negative ones.
pub fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let nanos = duration::parse(text).map_err(|err| anyhow::anyhow!("{err}"))?;
    let nanos = u64::try_from(nanos).map_err(|_| anyhow::anyhow!("it is negative"))?;
    Ok(Duration::from_nanos(nanos))
}

/// 64-bit FNV-1a: fixed for good by its definition, unlike the standard library's hashers. Nobody
/// gains by forging a hash that is only displayed and compared.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A configuration that may come into force, and what its author should still look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// Findings that reject nothing.
    pub warnings: Vec<Diagnostic>,
    /// Which objects of manifests were read, and which were left out.
    pub notes: Vec<Diagnostic>,
}

/// Reads, checks and unites `docs`. No documents give the defaults.
///
/// # Errors
/// Every error in every document; then none of them may come into force.
pub fn load(docs: &[Document], opts: &Options) -> Result<Loaded, Rejected> {
    load_within(docs, opts, &Surroundings::default())
}

/// Reads, checks and unites `docs`, and warns of what the policy does to its `surroundings`.
///
/// # Errors
/// As [`load`].
pub fn load_within(
    docs: &[Document],
    opts: &Options,
    surroundings: &Surroundings,
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
    let config = merge::merge(&files, opts, &mut errors, &mut warnings);
    if config.rules.len() > MAX_RULES {
        errors.push(lint::too_many(&config.rules));
        // There may be one for each.
        warnings.clear();
    }
    lint::cluster(&config, opts, surroundings, &mut warnings);
    lint::rest_unsaid(only_nat_rules, &config, opts, &mut warnings);
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

/// Puts `findings` in the order of the parts and their lines.
fn sort(findings: &mut [Diagnostic], parts: &[Part<'_>]) {
    let names = parts.iter().map(|part| part.name.as_ref());
    let places: HashMap<&str, usize> = names.zip(0..).collect();
    findings.sort_by_key(|finding| {
        let place = places.get(finding.file.as_str());
        (place.copied().unwrap_or(usize::MAX), finding.line)
    });
}

/// The configuration without any file.
pub fn defaults(opts: &Options) -> Config {
    merge::merge(&[], opts, &mut Vec::new(), &mut Vec::new())
}
