//! Counts of the policy's prefixes, and the command `netdp policy` that shows them.
//!
//! The programs count by number of a rule. [`ledger::Ledger`] records which prefix has which number, and what
//! a prefix had before its numbers or its mappings changed; the agent keeps it ([`Keeper`]) in the
//! state directory. All counts themselves are in pinned maps, so that a killed agent loses none.

mod changes;
pub(crate) mod diff;
mod gather;
pub(crate) mod history;
mod json;
mod keeper;
mod ledger;
mod prefixes;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use changes::summary as change;
#[cfg(test)]
pub(crate) use gather::tests::{row, view};
pub(crate) use gather::{Query, Row, View, output, print};
pub(crate) use json::action;
pub(crate) use keeper::Keeper;
pub(crate) use ledger::FILE as COUNTS_FILE;
pub(crate) use prefixes::{PrefixUse, prefixes};
pub(crate) use text::{headline, last_hit};
