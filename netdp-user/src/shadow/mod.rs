//! `--mode shadow`: compares, for each new connection, netdp's decision with netfilter's.
//!
//! Connections and netfilter's decisions come from connection tracking (`observe`); `compare` asks
//! the datapath's own decision, in the environment of `env`; `netfilter` finds the rule behind
//! netfilter's decision.

mod compare;
mod env;
mod netfilter;
mod observe;
mod reach;
mod report;
mod routes;

#[cfg(test)]
mod tests;

pub(crate) use compare::Node;
pub(crate) use observe::Shadow;
pub(crate) use report::{Summary, print};
