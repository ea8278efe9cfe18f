//! The distribution's iptables programs: which of the two kinds, and how they are run.

use super::{Chain, Family, Table, jump, restore};
use crate::programs;
use anyhow::Result;

/// How long the programs wait for the lock that they share, in seconds.
const LOCK_SECONDS: &str = "5";

/// A chain that nothing leads to. Its rule makes the kernel go on tracking connections, and
/// with that translating those that it translates already: when the last rule that needs tracking
/// goes, so does tracking (Linux 6.18, nf_ct_netns_put).
pub const KEEP_CHAIN: &str = "NETDP-KEEP";
const KEEP_COMMENT: &str = "netdp: connections that netfilter translates go on";

/// Which kernel interface the programs speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// The older x_tables.
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
    /// The backend that the node already uses, as the wrappers of kubernetes-sigs/iptables-wrappers
    /// find it: that in which the kubelet left its hint, else that which holds more rules, else nft.
    #[must_use]
    pub fn detect() -> Self {
        for backend in [Self::Nft, Self::Legacy] {
            let hinted = [Family::V4, Family::V6].into_iter().any(|family| {
                let mangle = Iptables { family, backend }.save("mangle");
                mangle.is_ok_and(|text| {
                    text.lines().any(|line| {
                        line.starts_with(":KUBE-IPTABLES-HINT ")
                            || line.starts_with(":KUBE-KUBELET-CANARY ")
                    })
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
pub struct Iptables {
    /// The family.
    pub family: Family,
    /// The backend.
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
                "there is no {name} here; install the package iptables, or use an image that has it"
            ))
        })?;
        Ok(program.run(arguments, input)?.output)
    }

    /// The tables that the older interface has in this network namespace. Asking for another one
    /// would bring it to life, and connection tracking with it.
    fn legacy_has(self, table: &str) -> bool {
        let path = match self.family {
            Family::V4 => "/proc/net/ip_tables_names",
            Family::V6 => "/proc/net/ip6_tables_names",
        };
        let names = std::fs::read_to_string(path).unwrap_or_default();
        names.lines().any(|name| name == table)
    }

    /// What iptables-save prints of a table.
    fn save(self, table: &str) -> Result<String> {
        if self.backend == Backend::Legacy && !self.legacy_has(table) {
            return Ok(String::new());
        }
        let arguments = ["--counters", "--table", table];
        self.run("-save", &arguments, "")
    }

    /// The nat table as it is.
    ///
    /// # Errors
    /// No such program, or it fails.
    pub fn read(self) -> Result<Table> {
        self.read_table("nat")
    }

    /// A table as it is; nothing of the older kind's where it is not in use.
    ///
    /// # Errors
    /// No such program, or it fails.
    pub fn read_table(self, table: &str) -> Result<Table> {
        Ok(Table::parse(&self.save(table)?))
    }

    /// Whether MASQUERADE knows `--random-fully`: the programs since 1.6.2.
    #[must_use]
    pub fn has_random_fully(self) -> bool {
        let help = self.run("", &["-j", "MASQUERADE", "--help"], "");
        help.is_ok_and(|help| help.contains("--random-fully"))
    }

    /// Makes the chain what it is to be, in one step, and leads to it. Touches nothing where all of
    /// it is there already. Whether something was written.
    ///
    /// # Errors
    /// The programs fail, or another one keeps their lock for too long. Then nothing has changed.
    pub fn apply(self, chain: &Chain) -> Result<bool> {
        let table = self.read()?;
        let led = leads_to(&table, &chain.name);
        let is: Vec<_> = table.rules(&chain.name).iter().map(|r| &r.text).collect();
        if led && is.iter().copied().eq(&chain.rules) {
            return Ok(false);
        }
        self.restore(&restore(chain, !led))?;
        Ok(true)
    }

    /// Writes the chain without leading to it. Where something does already, nothing is to prepare.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn prepare(self, chain: &Chain) -> Result<()> {
        if leads_to(&self.read()?, &chain.name) {
            return Ok(());
        }
        // Naming the built-in chain brings its hook to life.
        let text = restore(chain, false);
        self.restore(&text.replacen("*nat\n", "*nat\n:POSTROUTING ACCEPT [0:0]\n", 1))
    }

    /// Removes rules of any chain and, once nothing leads there any more, the chains named.
    /// With `keep`, connections that netfilter translates already go on: see [`KEEP_CHAIN`].
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn remove(self, rules: &[(String, String)], chains: &[&str], keep: bool) -> Result<()> {
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

/// Whether POSTROUTING leads to the chain.
fn leads_to(table: &Table, chain: &str) -> bool {
    let jump = jump(chain);
    table
        .rules("POSTROUTING")
        .iter()
        .any(|rule| jump.strip_prefix("-A POSTROUTING ") == Some(rule.text.as_str()))
}
