//! The policy as iptables chains: those that ip-masq-agent writes.
//!
//! The rules are made as text (`render`), read back ([`Table`]) and brought into the kernel by the
//! distribution's own programs ([`Iptables`]).

mod chains;
mod legacy;
mod monitor;
mod program;
mod render;
mod save;

#[cfg(test)]
mod tests;

pub use chains::{ChainOptions, ChainReport, Chains, Found, Removed, find, remove};
pub use legacy::{LegacyState, has_legacy_nat};
pub use monitor::RuleMonitor;
pub use program::{Backend, Iptables, KEEP_CHAIN};
pub use render::{Chain, JUMP_COMMENT, Ports, jump, restore};
pub use save::{Rule, Table};

/// The chain that ip-masq-agent writes unless told otherwise.
pub const MASQ_CHAIN: &str = "IP-MASQ-AGENT";

/// The chain that netdp writes in the place of k8s-custom-iptables' script: ip-masq-agent's may be there,
/// too.
pub const CUSTOM_CHAIN: &str = "NETDP-CUSTOM";

/// An address family, which has programs and a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
