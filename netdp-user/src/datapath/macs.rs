//! The map of the node's hardware (MAC) addresses. Like [`super::sources`], it is created with the
//! programs and not pinned.

use super::maps::ignore_missing;
use super::object;
use crate::uplinks::Mac;
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use netdp_common::layout::MacKey;

/// The map's name in the eBPF object.
const NAME: &str = "MACS";

/// Adds a MAC address.
///
/// # Errors
/// Returns an error if the map is full, or there is none.
pub(super) fn add(object: &mut Ebpf, mac: &Mac) -> Result<()> {
    open(object)?
        .insert(key(mac), 1, 0)
        .with_context(|| format!("adding a hardware address of interface {}", mac.link))
}

/// Removes a MAC address, if it is there.
///
/// # Errors
/// Returns an error if the kernel refuses.
pub(super) fn remove(object: &mut Ebpf, mac: &Mac) -> Result<()> {
    ignore_missing(open(object)?.remove(&key(mac)))
        .with_context(|| format!("removing a hardware address of interface {}", mac.link))
}

fn open(object: &mut Ebpf) -> Result<HashMap<&mut MapData, MacKey, u32>> {
    Ok(object::map_mut(object, NAME)?.try_into()?)
}

const fn key(mac: &Mac) -> MacKey {
    MacKey {
        link: mac.link,
        mac: mac.mac,
        pad: 0,
    }
}
