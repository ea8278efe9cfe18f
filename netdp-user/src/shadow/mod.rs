//! `--mode shadow`: for each new connection, what netdp would do and what netfilter did.
//!
//! Connections come from connection tracking, with netfilter's decision (`observe`); `judge`
//! decides anew as the datapath would; `netfilter` finds the rule behind what netfilter did.

mod judge;
mod netfilter;
mod observe;
mod report;
mod routes;

#[cfg(test)]
mod tests;

pub use judge::Node;
pub use observe::Shadow;
pub use report::{Difference, Example, ShadowReport, Verdict, print};
