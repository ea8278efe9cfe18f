//! Every decision of netdp's datapath about a packet: `no_std`, without I/O, tested on the host.
//! `netdp-ebpf` supplies the packet bytes and the maps.
//!
//! The path of a packet is [`pipeline`], from which everything else is called: [`packet`] parses,
//! [`nat`] decides, the [`skb`] is rewritten. [`mod@env`] is the environment of the decisions,
//! [`layout`] the format of the maps, [`slot`] the map values in place, [`flow`] the state and the
//! timeouts of flows. [`sweep`] decides which mappings end.
//!
//! Terms are those of `docs/glossary.md`.

#![cfg_attr(not(test), no_std)]

pub mod direction;
pub mod env;
pub mod flow;
pub mod layout;
pub mod nat;
pub mod packet;
pub mod pipeline;
pub mod skb;
pub mod slot;
pub mod sweep;
pub mod verdict;
