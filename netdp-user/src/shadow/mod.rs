//! `--mode shadow`: compares, for each new connection, netdp's decision with netfilter's.
//!
//! Connections and netfilter's decisions come from connection tracking (`observe`); `judge` decides
//! as the datapath would; `netfilter` finds the rule behind netfilter's decision.

mod judge;
mod netfilter;
mod observe;
mod report;
mod routes;

#[cfg(test)]
mod tests;

pub use judge::Node;
pub use observe::Shadow;
pub use report::{Verdict, print};
