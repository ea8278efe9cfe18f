//! Library of netdp's agent and command line.
//!
//! A configuration change passes through [`sources`] → `config` → [`reconcile`] → [`datapath`];
//! [`uplinks`] supplies the state of the node's network. [`agent`] runs the event loop.

pub mod agent;
pub mod cli;
mod config;
pub mod control;
pub mod datapath;
pub mod fleet;
mod foreign;
mod iptables;
pub mod limits;
pub mod misspelling;
pub mod nf_conntrack;
pub mod node;
pub mod pod;
pub mod prefixes;
pub mod private;
pub mod programs;
pub mod reconcile;
pub mod report;
pub mod rights;
pub mod rollback;
mod shadow;
pub mod sources;
pub mod state_dir;
pub mod terminal;
pub mod time;
pub mod uplinks;
mod upstream;
