//! The agent and its programs on nodes in network namespaces, with real clients: one module per
//! topic. `cargo test -p netdp-user --test node TOPIC::` runs one.
//!
//! Needs root.

#[path = "../common/mod.rs"]
mod common;

mod ahead;
mod answers;
mod auto;
mod bundle;
mod check;
mod clients;
mod cluster_networks;
mod codes;
mod config;
mod detach;
mod detours;
mod drop_in;
mod environment;
mod exhaustion;
mod explain;
mod flags;
mod floods;
mod flows;
mod foreign;
mod hairpin;
mod hooks;
mod inspect;
mod inspect_doc;
mod ipsec;
mod iptables;
mod iptables_golden;
mod kernel_features;
mod layer2;
mod lifecycle;
mod limits;
mod log;
mod many_flows;
mod masquerade;
mod metrics;
mod migration;
mod monitor;
mod monitoring;
mod nat_log;
mod no_address;
mod node_ports;
mod offload;
mod one_reading;
mod orphans;
mod outside;
mod page;
mod policy;
mod ports;
mod private_files;
mod reach;
mod reload;
mod shadow;
mod sources;
mod survival;
mod takeover;
mod top;
mod unattached;
mod upgrade;
mod uplinks;
mod ways_out;
mod who_was_it;
mod xtables_lock;
