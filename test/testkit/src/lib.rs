//! Test environment for netdp's decisions: [`fake`], the datapath's environment as ordinary maps;
//! [`build`], a packet builder; [`model`], an independent model of the life of flows.

#![expect(
    missing_docs,
    reason = "the fields of the fake are those of the datapath"
)]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is test; clippy only knows it of the functions marked so"
)]

pub mod build;
pub mod fake;
pub mod model;
