//! Attacks on the datapath by a pod or an outsider, with real sockets and forged packets: they must
//! not affect others. The effect on ip-masq-agent's rules in the same situation is recorded beside
//! it ([`site::both`]). [`field`] has the problems that operators report about NAT.
//!
//! Bounded in packets and time, in namespaces of their own. Needs root.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "all of this is test code, functions that tests call included"
)]

#[path = "../common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of nodes have the rest")]
mod common;

#[path = "../wire/build.rs"]
#[allow(dead_code, reason = "attacks use a part of this")]
mod build;
#[path = "../wire/checksum.rs"]
mod checksum;
#[path = "../wire/octets.rs"]
#[allow(dead_code, reason = "attacks use a part of this")]
mod octets;
#[path = "../wire/packet.rs"]
#[allow(dead_code, reason = "attacks use a part of this")]
mod packet;
#[path = "../wire/socket.rs"]
#[allow(dead_code, reason = "attacks use a part of this")]
mod socket;

mod errors;
mod fairness;
mod field;
mod flood;
mod forged;
#[allow(dead_code, reason = "benches/hostile.rs has the rest")]
mod good;
mod inbound;
#[allow(dead_code, reason = "benches/hostile.rs has the rest")]
mod kinds;
mod node_flows;
mod predicted;
mod search;
mod services;
mod shadowing;
mod site;
mod talk;
mod tunnels;
