//! The trie of source addresses. It is created with the programs and not pinned: an agent fills it
//! before it attaches them.

use super::maps::ignore_missing;
use super::object;
use crate::uplinks::{SourceChoice, SourceQuery};
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::IpNet;
use netdp_common::layout::{Addr, SOURCE_NAMED, Source, SourceKey};

/// The map's name in the eBPF object.
const NAME: &str = "SOURCES";

/// Writes the source for a query.
///
/// # Errors
/// Returns an error if the map is full, or there is none.
pub(super) fn set(object: &mut Ebpf, asked: &SourceQuery, given: &SourceChoice) -> Result<()> {
    let source = Source {
        addr: Addr::from(given.addr),
        via: given.via,
    };
    open(object)?
        .insert(&key(asked), source, 0)
        .with_context(|| format!("writing the source {} for {}", given.addr, asked.net))
}

/// Removes a source, if it is there.
///
/// # Errors
/// Returns an error if the kernel refuses.
pub(super) fn remove(object: &mut Ebpf, asked: &SourceQuery) -> Result<()> {
    ignore_missing(open(object)?.remove(&key(asked)))
        .with_context(|| format!("removing the source for {}", asked.net))
}

fn open(object: &mut Ebpf) -> Result<LpmTrie<&mut MapData, SourceKey, Source>> {
    Ok(object::map_mut(object, NAME)?.try_into()?)
}

/// Returns the key; all bits of the interface index are significant.
fn key(asked: &SourceQuery) -> Key<SourceKey> {
    let bits = match asked.net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    let named = if asked.named { SOURCE_NAMED } else { 0 };
    let key = SourceKey {
        link: asked.link | named,
        addr: Addr::from(asked.net.network()),
    };
    Key::new(32 + bits, key)
}
