//! The chains of both families, kept in line with the configuration.

use super::{Backend, CUSTOM_CHAIN, Chain, Iptables, IptablesRule, Ports, RuleOptions};
use crate::config::Config;
use crate::programs;
use crate::upstream::custom_iptables;
use anyhow::{Result, ensure};
use netdp_common::layout::Family;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Length limit of a chain's name (XT_EXTENSION_MAXNAMELEN without the final zero,
/// include/uapi/linux/netfilter/x_tables.h).
const MAX_NAME: usize = 28;

/// Options of the chains that do not depend on the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainOptions {
    /// Name of the chain, from `--masq-chain`.
    pub name: String,
    /// Set if IPv6 has a chain, too.
    pub enable_ipv6: bool,
    /// Choice of source ports.
    pub ports: Ports,
}

/// The chains of all families in use.
#[derive(Debug)]
pub struct Chains {
    families: Vec<Iptables>,
    name: String,
    ports: Ports,
    adopted: bool,
    /// Chains as last written.
    written: Vec<(Family, Chain)>,
}

/// State of one family's chain, for `netdp status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainReport {
    /// Address family: `IPv4` or `IPv6`.
    pub family: String,
    /// Backend: `nft` or `legacy`.
    pub backend: String,
    /// Name of the chain.
    pub chain: String,
    /// Number of its rules.
    pub rules: usize,
    /// Reason why it could not be written, if so.
    pub error: Option<String>,
}

impl ChainReport {
    /// Reads the rules from the kernel, with their counters.
    ///
    /// # Errors
    /// Returns an error if the iptables programs are missing or fail.
    pub fn read_rules(&self) -> Result<Vec<IptablesRule>> {
        let table = self.iptables().read()?;
        Ok(table.rules(&self.chain).to_vec())
    }

    /// Returns why the chain cannot be removed, if the required program is missing.
    #[must_use]
    pub fn missing_program(&self) -> Option<String> {
        let err = self.iptables().read().err()?;
        let Self {
            chain,
            family,
            backend,
            ..
        } = self;
        programs::is_absent(&err).then(|| format!("chain {chain} ({family}, {backend}): {err:#}"))
    }

    fn iptables(&self) -> Iptables {
        let family = match self.family.as_str() {
            "IPv6" => Family::V6,
            _ => Family::V4,
        };
        let backend = match self.backend.as_str() {
            "legacy" => Backend::Legacy,
            _ => Backend::Nft,
        };
        Iptables { family, backend }
    }
}

impl Chains {
    /// Finds the programs. Writes nothing.
    ///
    /// # Errors
    /// Returns an error if the chain name is invalid, or no iptables program is installed.
    pub fn new(options: &ChainOptions) -> Result<Self> {
        let name = options.name.as_str();
        ensure!(
            !name.is_empty()
                && name.len() <= MAX_NAME
                && !name.starts_with(['-', '!'])
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
            "--masq-chain {name:?}: a chain's name is 1 to {MAX_NAME} letters, digits, '-', '_' and '.'"
        );
        let backend = Backend::detect();
        let mut families = vec![Family::V4];
        if options.enable_ipv6 {
            families.push(Family::V6);
        }
        let families: Vec<_> = families
            .into_iter()
            .map(|family| Iptables { family, backend })
            .collect();
        let mut ports = options.ports.clone();
        let mut adopted = false;
        for iptables in &families {
            adopted |= !iptables.read()?.rules(name).is_empty();
            if ports.random_fully && !iptables.has_random_fully() {
                log::warn!(
                    "this iptables does not support --random-fully: ports are preserved where they \
                     are free"
                );
                ports.random_fully = false;
            }
        }
        log::info!("iptables: backend {backend}, chain {name}");
        Ok(Self {
            families,
            name: name.into(),
            ports,
            adopted,
            written: Vec::new(),
        })
    }

    /// Returns chains of no family, which need no programs.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self {
            families: Vec::new(),
            name: crate::upstream::masq_agent::CHAIN.into(),
            ports: Ports::default(),
            adopted: false,
            written: Vec::new(),
        }
    }

    /// Returns the backend that the chains are written with.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.families.first().map_or(Backend::Nft, |it| it.backend)
    }

    /// Reports whether a chain existed at the start.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Returns the chains that are to be written, without rules yet.
    #[must_use]
    pub fn planned(&self) -> Vec<ChainReport> {
        let families = self.families.iter();
        let planned = families.map(|iptables| ChainReport {
            family: iptables.family.to_string(),
            backend: iptables.backend.to_string(),
            chain: self.name.clone(),
            rules: 0,
            error: None,
        });
        planned.collect()
    }

    /// Writes the chains without a jump to them: from then on the kernel tracks connections, and
    /// translates those whose entries are created over netlink with a translation.
    ///
    /// # Errors
    /// Returns an error if the programs fail.
    pub fn prepare(&self, config: &Config) -> Result<()> {
        for iptables in &self.families {
            let chain = Chain::new(&self.name, iptables.family, config, &self.ports);
            iptables.prepare(&chain)?;
        }
        Ok(())
    }

    /// Brings the chains in line with `config`, each family independently.
    pub fn apply(&mut self, config: &Config) -> Vec<ChainReport> {
        self.apply_with(config, &self.ports.clone())
    }

    /// Brings the chains in line with `config`, but restricts source ports to `ranges` for now.
    pub fn apply_with_ranges(
        &mut self,
        config: &Config,
        ranges: &[(u16, u16)],
    ) -> Vec<ChainReport> {
        let ports = Ports {
            ranges: ranges.to_vec(),
            random_fully: self.ports.random_fully,
        };
        self.apply_with(config, &ports)
    }

    /// Returns the choice of source ports.
    #[must_use]
    pub const fn ports(&self) -> &Ports {
        &self.ports
    }

    fn apply_with(&mut self, config: &Config, ports: &Ports) -> Vec<ChainReport> {
        let mut reports = Vec::new();
        for iptables in self.families.clone() {
            let chain = Chain::new(&self.name, iptables.family, config, ports);
            let rules = chain.rules.len();
            let error = match iptables.apply(&chain) {
                Ok(true) => {
                    self.log_write(iptables.family, chain);
                    None
                }
                Ok(false) => None,
                Err(err) => Some(format!("{err:#}")),
            };
            reports.push(ChainReport {
                family: iptables.family.to_string(),
                backend: iptables.backend.to_string(),
                chain: self.name.clone(),
                rules,
                error,
            });
        }
        reports
    }

    /// Logs the reason of a write: a new chain, a changed one, or a third party's modification.
    fn log_write(&mut self, family: Family, chain: Chain) {
        let name = &self.name;
        if (self.written.iter()).any(|(f, c)| *f == family && *c == chain) {
            log::warn!("{family}: chain {name} or the jump to it was changed: written again");
            return;
        }
        log::info!("{family}: chain {name} written");
        self.written.retain(|(f, _)| *f != family);
        self.written.push((family, chain));
    }
}

/// Third-party rules in one table that do the same as netdp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplacedRules {
    iptables: Iptables,
    /// The chain of ip-masq-agent or netdp, if it is one.
    chain: Option<String>,
    /// Rules to remove: chain and text.
    rules: Vec<(String, String)>,
}

impl std::fmt::Display for ReplacedRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Iptables { family, backend } = self.iptables;
        match &self.chain {
            Some(chain) => write!(f, "chain {chain} ({family}, {backend})"),
            None => write!(
                f,
                "{} rules of {} ({family}, {backend})",
                self.rules.len(),
                custom_iptables::NAME
            ),
        }
    }
}

impl ReplacedRules {
    /// Removes them atomically. With `keep`, connections that netfilter already translates
    /// continue: nat rules are evaluated only for a connection's first packet (Linux 6.18,
    /// nf_nat_inet_fn), and tracking stays active.
    ///
    /// # Errors
    /// Returns an error if the programs fail.
    pub(crate) fn remove(&self, keep: bool) -> Result<()> {
        let chains: Vec<_> = self.chain.iter().map(String::as_str).collect();
        self.iptables.remove(&self.rules, &chains, keep)
    }
}

/// Finds, in both families and backends, the chain `name` with the jumps to it, and the rules of
/// k8s-custom-iptables whose prefix `covered` accepts, including those in the chain that netdp
/// writes in its place. Also returns the tables that could not be read although the program is
/// installed.
pub(crate) fn find_replaced(
    name: &str,
    covered: impl Fn(&str) -> bool,
) -> (Vec<ReplacedRules>, Vec<String>) {
    let mut found = Vec::new();
    let mut unread = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in [Family::V4, Family::V6] {
            let iptables = Iptables { family, backend };
            let table = match iptables.read() {
                Ok(table) => table,
                // The scan for third-party NAT rules reports missing programs.
                Err(err) if programs::is_absent(&err) => continue,
                Err(err) => {
                    unread.push(format!("iptables, {family}, {backend}: {err:#}"));
                    continue;
                }
            };
            let rules = |wanted: &dyn Fn(&RuleOptions<'_>) -> bool| -> Vec<_> {
                table
                    .all()
                    .filter(|(_, rule)| wanted(&RuleOptions::parse(&rule.text)))
                    .map(|(chain, rule)| (chain.to_owned(), rule.text.clone()))
                    .collect()
            };
            let mut chains = Vec::new();
            if table.chains.contains_key(name) {
                chains.push(name);
            }
            let own = masqueraded_destinations(table.rules(CUSTOM_CHAIN));
            if name != CUSTOM_CHAIN && own.is_some_and(|own| own.iter().all(|it| covered(it))) {
                chains.push(CUSTOM_CHAIN);
            }
            for chain in chains {
                found.push(ReplacedRules {
                    iptables,
                    chain: Some(chain.to_owned()),
                    rules: rules(&|rule| rule.target() == Some(chain)),
                });
            }
            let custom = rules(&|rule| custom_destination(rule).is_some_and(&covered));
            if !custom.is_empty() {
                found.push(ReplacedRules {
                    iptables,
                    chain: None,
                    rules: custom,
                });
            }
        }
    }
    (found, unread)
}

/// Returns the destinations that rules masquerade; `None` if there are none, or all are.
fn masqueraded_destinations(rules: &[IptablesRule]) -> Option<Vec<String>> {
    let rules = rules.iter().map(|rule| RuleOptions::parse(&rule.text));
    let rules = rules.filter(|rule| rule.target() == Some("MASQUERADE"));
    let found: Vec<_> = rules
        .map(|rule| rule.destination().map(str::to_owned))
        .collect::<Option<_>>()?;
    (!found.is_empty()).then_some(found)
}

/// Returns the destination of a rule of k8s-custom-iptables (run.sh at 48ec4ca).
fn custom_destination<'r>(rule: &'r RuleOptions<'_>) -> Option<&'r str> {
    let is_custom =
        rule.has_comment(custom_iptables::COMMENT_PREFIX) && rule.target() == Some("MASQUERADE");
    rule.destination().filter(|_| is_custom)
}

/// Result of [`remove`].
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// Removed chains and rules, one line each.
    pub removed: Vec<String>,
    /// Failures to find or remove, with their reasons.
    pub failed: Vec<String>,
}

/// Removes the chains of these names and the jumps to them, in both families and backends. If a
/// program is missing, its chains are not searched for.
pub(crate) fn remove(names: &BTreeSet<&str>) -> Removal {
    let mut all = Removal::default();
    for name in names {
        let (found, unread) = find_replaced(name, |_| false);
        let unread = unread.into_iter();
        all.failed
            .extend(unread.map(|why| format!("chain {name}, if it is there: {why}")));
        for found in found {
            match found.remove(false) {
                Ok(()) => all.removed.push(found.to_string()),
                Err(err) => all.failed.push(format!("{found}: {err:#}")),
            }
        }
    }
    all
}
