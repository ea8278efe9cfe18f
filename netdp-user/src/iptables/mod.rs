//! The policy as iptables chains, as ip-masq-agent writes them.
//!
//! Rules are rendered as text (`render`), read back ([`Table`]) and written to the kernel by the
//! distribution's own programs ([`Iptables`]).

mod chains;
mod legacy;
mod monitor;
mod program;
mod render;
mod rule;
mod save;

#[cfg(test)]
mod tests;

pub(crate) use chains::{ChainOptions, ChainReport, Chains, Removal, find_replaced, remove};
pub(crate) use legacy::LegacyState;
pub(crate) use legacy::has_table;
pub(crate) use monitor::RuleMonitor;
pub(crate) use program::{Backend, Iptables, KEEP_CHAIN};
pub(crate) use render::{Chain, Ports, jump_rule, restore_input};
pub(crate) use rule::{RuleOption, RuleOptions};
pub(crate) use save::{IptablesRule, Table};

/// Chain that netdp writes in place of k8s-custom-iptables' script, because ip-masq-agent's chain
/// may exist as well.
pub(crate) const CUSTOM_CHAIN: &str = "NETDP-CUSTOM";
