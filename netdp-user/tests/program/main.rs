//! The eBPF programs run by the kernel on generated packets (`BPF_PROG_TEST_RUN`): no interface, no
//! traffic. Needs root.
//!
//! Every test has its own pinned maps and network namespace.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is test; clippy only knows it of the functions marked so"
)]

mod checksums;
mod counting;
mod drops;
mod errors;
mod events;
mod explain;
mod fragments;
mod headers;
mod known;
mod lifetime;
mod limits;
mod model_walks;
mod node;
mod random;
mod reach;
mod refusals;
mod reload;
mod restart;
mod sockets;
mod test_run;
mod translation;
mod tries;

use testkit::{build, model};
