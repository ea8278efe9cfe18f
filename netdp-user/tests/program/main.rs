//! The eBPF programs as the kernel runs them, over packets of our own
//! (`BPF_PROG_TEST_RUN`): no interface, no traffic. Needs root.
//!
//! Every test has pinned maps and a network namespace to itself.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is test; clippy only knows it of the functions marked so"
)]

mod checksums;
mod drops;
mod errors;
mod fragments;
mod headers;
mod known;
mod lifetime;
mod limits;
mod model_walks;
mod node;
mod random;
mod refusals;
mod reload;
mod restart;
mod sockets;
mod test_run;
mod translation;
mod tries;

use testkit::{build, model};
