//! Network address translation: the decision for one packet.
//!
//! [`egress`] and [`ingress`] decide, after [`lookup::fast_path`] for most packets; [`hairpin`]
//! decides about packets between pods.

pub(crate) mod admission;
mod allocate;
mod candidate;
mod claim;
pub mod egress;
pub mod endpoints;
pub(crate) mod established;
mod evict;
pub(crate) mod fragment;
pub mod hairpin;
mod icmp_error;
mod inbound;
pub mod ingress;
pub mod lookup;
mod node;
mod origin;
pub(crate) mod policy;
pub mod ports;
mod reach;
mod scope;
pub mod scratch;
mod search;
mod settle;
mod source;
mod traffic;
