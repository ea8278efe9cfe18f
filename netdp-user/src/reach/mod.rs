//! Which bypassed networks answer pods, and which answer the node: what the programs count
//! ([`netdp_common::layout::Reach`]), over the last minutes, and what follows from it.
//!
//! A bypassed destination sees the pods' own addresses. If it has no route back to them, connections
//! of pods hang, while the node's own work, and nothing reports an error. `netdp suggest` names the
//! networks to masquerade instead; nothing here changes the policy.

mod counts;
mod judge;
mod probe;
mod read;
mod suggest;
mod window;

#[cfg(test)]
mod tests;

pub(crate) use counts::{Counts, Observed, network};
pub use judge::Finding;
pub(crate) use judge::{Verdict, findings, reported};
pub(crate) use probe::probe;
pub(crate) use read::{lately, read};
pub(crate) use suggest::{Answer, Format, output, print};
pub(crate) use window::{FILE, Window};
