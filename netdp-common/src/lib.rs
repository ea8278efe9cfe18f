//! Every decision of netdp's datapath about a packet: `no_std`, without I/O, tested on the host.
//! `netdp-ebpf` supplies the packet bytes and the maps.
//!
//! A packet walks [`packet`] → [`nat`] ([`policy`](tables), [`port`], [`conntrack`]) → [`verdict`].
//! [`spare`] selects the mappings to evict when a port or a table entry is needed, [`sweep`] those that
//! the agent ends.
//!
//! Terms are those of `docs/glossary.md`.

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod addr;
pub mod checksum;
pub mod conntrack;
pub mod nat;
pub mod packet;
pub mod port;
pub mod port_map;
pub mod share;
pub mod siphash;
pub mod slot;
pub mod spare;
pub mod sweep;
pub mod tables;
pub mod timeouts;
pub mod tuple;
pub mod verdict;
