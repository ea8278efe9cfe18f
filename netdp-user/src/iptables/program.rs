//! The distribution's iptables programs: choice of the backend, and how they are run.

use super::{Chain, Table, has_table, jump_rule, restore_input};
use crate::programs;
use anyhow::Result;
use netdp_common::layout::Family;

/// Time that the programs wait for their shared lock, in seconds.
const LOCK_SECONDS: &str = "5";

/// A chain without a jump to it. Its rule keeps connection tracking active in the kernel, and with
/// it the translation of connections that are already translated: when the last rule that needs
/// tracking is removed, tracking stops (Linux 6.18, nf_ct_netns_put).
pub(crate) const KEEP_CHAIN: &str = "NETDP-KEEP";
const KEEP_COMMENT: &str = "netdp: connections that netfilter translates go on";

/// Chains of the mangle table that show which backend the kubelet uses.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// Kernel interface of the iptables programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The nf_tables interface.
    Nft,
    /// The older x_tables interface.
    Legacy,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

impl Backend {
    /// Detects the backend in use on the node as the wrappers of kubernetes-sigs/iptables-wrappers
    /// do: the one with the kubelet's hint chain, otherwise the one with more rules, otherwise nft.
    #[must_use]
    pub fn detect() -> Self {
        for backend in [Self::Nft, Self::Legacy] {
            let hinted = [Family::V4, Family::V6].into_iter().any(|family| {
                let mangle = Iptables { family, backend }.save("mangle");
                mangle.is_ok_and(|text| {
                    let chains = Table::parse(&text).chains;
                    KUBELET_CHAINS.iter().any(|name| chains.contains_key(*name))
                })
            });
            if hinted {
                return backend;
            }
        }
        let rules = |backend| -> usize {
            [Family::V4, Family::V6]
                .into_iter()
                .map(|family| Iptables { family, backend })
                .flat_map(|iptables| ["nat", "filter", "mangle"].map(|table| iptables.save(table)))
                .map(|text| Table::parse(&text.unwrap_or_default()).all().count())
                .sum()
        };
        if rules(Self::Legacy) > rules(Self::Nft) {
            Self::Legacy
        } else {
            Self::Nft
        }
    }
}

/// The programs of one family and backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Iptables {
    /// Address family of the programs.
    pub family: Family,
    /// Kernel interface of the programs.
    pub backend: Backend,
}

impl Iptables {
    fn name(self, what: &str) -> String {
        let family = match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{family}-{}{what}", self.backend)
    }

    fn run(self, what: &str, arguments: &[&str], input: &str) -> Result<String> {
        let name = self.name(what);
        let program = programs::find(&name)?.ok_or_else(|| {
            programs::absent(format!(
                "{name} is not installed; install the package iptables, or use an image that has it"
            ))
        })?;
        Ok(program.run(arguments, input)?.output)
    }

    /// Returns the output of iptables-save for a table.
    fn save(self, table: &str) -> Result<String> {
        if self.backend == Backend::Legacy && !has_table(self.family, table) {
            return Ok(String::new());
        }
        let arguments = ["--counters", "--table", table];
        self.run("-save", &arguments, "")
    }

    /// Reads the nat table.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails.
    pub(crate) fn read(self) -> Result<Table> {
        self.read_table("nat")
    }

    /// Reads a table; empty for a legacy table that is not in use.
    ///
    /// # Errors
    /// Returns an error if the program is missing or fails.
    pub(crate) fn read_table(self, table: &str) -> Result<Table> {
        Ok(Table::parse(&self.save(table)?))
    }

    /// Reports whether MASQUERADE supports `--random-fully`, as the programs do since 1.6.2.
    #[must_use]
    pub(crate) fn has_random_fully(self) -> bool {
        let help = self.run("", &["-j", "MASQUERADE", "--help"], "");
        help.is_ok_and(|help| help.contains("--random-fully"))
    }

    /// Writes the chain and the jump to it atomically. Writes nothing if both are up to date.
    /// Returns whether something was written.
    ///
    /// # Errors
    /// Returns an error if the programs fail, or another process holds their lock for too long.
    /// Nothing has changed then.
    pub(crate) fn apply(self, chain: &Chain) -> Result<bool> {
        let table = self.read()?;
        let jumps = has_jump(&table, &chain.name);
        let texts: Vec<_> = table.rules(&chain.name).iter().map(|r| &r.text).collect();
        if jumps && texts.iter().copied().eq(&chain.rules) {
            return Ok(false);
        }
        self.restore(&restore_input(chain, !jumps))?;
        Ok(true)
    }

    /// Writes the chain without a jump to it. If there is a jump already, does nothing.
    ///
    /// # Errors
    /// Returns an error as [`apply`](Self::apply) does.
    pub(crate) fn prepare(self, chain: &Chain) -> Result<()> {
        if has_jump(&self.read()?, &chain.name) {
            return Ok(());
        }
        // Referencing the built-in chain registers its netfilter hook.
        let text = restore_input(chain, false);
        self.restore(&text.replacen("*nat\n", "*nat\n:POSTROUTING ACCEPT [0:0]\n", 1))
    }

    /// Removes rules from any chain and then, once no jump refers to them, the named chains. With
    /// `keep`, connections that netfilter already translates continue: see [`KEEP_CHAIN`].
    ///
    /// # Errors
    /// Returns an error as [`apply`](Self::apply) does.
    pub(crate) fn remove(
        self,
        rules: &[(String, String)],
        chains: &[&str],
        keep: bool,
    ) -> Result<()> {
        let mut text = String::from("*nat\n");
        if keep {
            text.push_str(&format!(
                ":{KEEP_CHAIN} - [0:0]\n-A {KEEP_CHAIN} -m conntrack --ctstate NEW -m comment --comment \"{KEEP_COMMENT}\" -j RETURN\n"
            ));
        }
        for (chain, rule) in rules {
            text.push_str(&format!("-D {chain} {rule}\n"));
        }
        for chain in chains {
            text.push_str(&format!("-F {chain}\n-X {chain}\n"));
        }
        text.push_str("COMMIT\n");
        self.restore(&text)
    }

    fn restore(self, text: &str) -> Result<()> {
        let arguments = ["--noflush", "--counters", "--wait", LOCK_SECONDS];
        self.run("-restore", &arguments, text)?;
        Ok(())
    }
}

/// Reports whether POSTROUTING jumps to the chain.
fn has_jump(table: &Table, chain: &str) -> bool {
    let jump = jump_rule(chain);
    table
        .rules("POSTROUTING")
        .iter()
        .any(|rule| jump.strip_prefix("-A POSTROUTING ") == Some(rule.text.as_str()))
}
