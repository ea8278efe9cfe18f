//! Library of netdp's agent and command line.
//!
//! A configuration change passes through [`sources`] → `config` → [`reconcile`] → [`datapath`];
//! [`uplinks`] supplies the state of the node's network. `agent` runs the event loop.
//!
//! Public are the command line and what tests and benchmarks of other crates use.

pub mod cli;
pub mod datapath;
pub mod explain;
pub mod nf_conntrack;
pub mod node;
pub mod reconcile;
pub mod sources;
pub mod terminal;
pub mod uplinks;

mod agent;
mod bundle;
mod codes;
mod config;
mod control;
mod ends;
mod events;
mod fleet;
mod flows;
mod forecast;
mod foreign;
mod format;
mod http;
mod iptables;
mod kubectl;
mod limits;
mod logging;
mod machine;
mod metrics;
mod misspelling;
mod monitor;
mod mounts;
mod nat_log;
mod page;
mod pod;
mod pods;
mod policy;
mod prefixes;
mod private;
mod programs;
mod reach;
mod report;
mod requirements;
mod rights;
mod rollback;
mod routes;
mod shadow;
mod state_dir;
mod time;
mod top;
mod upstream;
mod version;
#[cfg(test)]
mod visibility;
mod who;
