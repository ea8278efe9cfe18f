//! What operators report of NAT in the field: with real sockets, and beside ip-masq-agent's
//! rules in the same situation ([`site::both`]).
//!
//! In namespaces of its own. Needs root.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "all of this is test code, functions that tests call included"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../security/site.rs"]
#[allow(dead_code, reason = "attacks use the rest")]
mod site;
#[path = "../security/talk.rs"]
#[allow(dead_code, reason = "attacks use the rest")]
mod talk;

mod moves;
mod ports;
