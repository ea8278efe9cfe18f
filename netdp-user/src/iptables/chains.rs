//! The chains of both families, kept as the configuration says.

use super::{Backend, Chain, Family, Iptables, Ports, Rule};
use crate::config::Config;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// The greatest length of a chain's name (XT_EXTENSION_MAXNAMELEN less the final zero,
/// include/uapi/linux/netfilter/x_tables.h).
const MAX_NAME: usize = 28;

/// What the chains are to be, whatever the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainOptions {
    /// `--masq-chain`.
    pub name: String,
    /// Whether IPv6 has one.
    pub enable_ipv6: bool,
    /// How source ports are chosen.
    pub ports: Ports,
}

/// The chains.
#[derive(Debug)]
pub struct Chains {
    families: Vec<Iptables>,
    name: String,
    ports: Ports,
    adopted: bool,
    /// What was written last.
    written: RefCell<Vec<(Family, Chain)>>,
}

/// What the chain of one family is, as `netdp status` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainReport {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `nft` or `legacy`.
    pub backend: String,
    /// Its name.
    pub chain: String,
    /// How many rules it has.
    pub rules: usize,
    /// Why it could not be written, if so.
    pub error: Option<String>,
}

impl ChainReport {
    /// The rules as they are in the kernel now, with their counters.
    ///
    /// # Errors
    /// The programs are not here or fail.
    pub fn live(&self) -> Result<Vec<Rule>> {
        let family = match self.family.as_str() {
            "IPv6" => Family::V6,
            _ => Family::V4,
        };
        let backend = match self.backend.as_str() {
            "legacy" => Backend::Legacy,
            _ => Backend::Nft,
        };
        let table = Iptables { family, backend }.read()?;
        Ok(table.rules(&self.chain).to_vec())
    }
}

impl Chains {
    /// Finds the programs. Writes nothing.
    ///
    /// # Errors
    /// A name that is none for a chain, or no iptables here.
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
                    "iptables here does not know --random-fully: ports are kept where they are free"
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
            written: RefCell::default(),
        })
    }

    /// Whether there was a chain at start.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Makes the chains what `config` says, each family for itself.
    pub fn apply(&self, config: &Config) -> Vec<ChainReport> {
        let apply = |iptables: &Iptables| {
            let chain = Chain::new(&self.name, iptables.family, config, &self.ports);
            let error = match iptables.apply(&chain) {
                Ok(true) => {
                    self.note(iptables.family, &chain);
                    None
                }
                Ok(false) => None,
                Err(err) => Some(format!("{err:#}")),
            };
            ChainReport {
                family: iptables.family.to_string(),
                backend: iptables.backend.to_string(),
                chain: self.name.clone(),
                rules: chain.rules.len(),
                error,
            }
        };
        self.families.iter().map(apply).collect()
    }

    /// Says why it was written: for the first time or anew, or because somebody else changed it.
    fn note(&self, family: Family, chain: &Chain) {
        let mut written = self.written.borrow_mut();
        let name = &self.name;
        if written.iter().any(|(f, c)| *f == family && c == chain) {
            log::warn!(
                "{family}: somebody changed chain {name} or what leads to it: written again"
            );
            return;
        }
        log::info!("{family}: chain {name} written");
        written.retain(|(f, _)| *f != family);
        written.push((family, chain.clone()));
    }
}

/// Removes the chain `name` and what leads to it, in both families and backends; says what was
/// removed. Connections that netfilter translates already go on.
///
/// # Errors
/// The programs fail.
pub fn remove(name: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in [Family::V4, Family::V6] {
            let iptables = Iptables { family, backend };
            let Ok(table) = iptables.read() else {
                continue;
            };
            if !table.chains.contains_key(name) {
                continue;
            }
            let jumps: Vec<_> = table
                .all()
                .filter(|(_, rule)| rule.text.ends_with(&format!("-j {name}")))
                .map(|(chain, rule)| (chain.to_owned(), rule.text.clone()))
                .collect();
            iptables.remove(&jumps, &[name])?;
            removed.push(format!("chain {name} ({family}, {backend})"));
        }
    }
    Ok(removed)
}
