//! Hardware addresses that the node sends from at its uplinks: a packet with another source address
//! is bridged there.

use std::collections::BTreeSet;

use super::model::{LinkLayer, Snapshot};
use super::stacked::upper_devices;
use super::uplink::Uplink;

/// A hardware address of the node at an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac {
    /// Index of the uplink.
    pub link: u32,
    /// The address; all zeros: the addresses of this uplink are known.
    pub mac: [u8; 6],
}

/// Returns the hardware addresses of each uplink and of the node's upper devices on it. None for
/// uplinks without an Ethernet header.
pub(super) fn macs(snapshot: &Snapshot, uplinks: &[Uplink]) -> BTreeSet<Mac> {
    let mut found = BTreeSet::new();
    let ethernet = uplinks
        .iter()
        .filter(|it| it.link_layer == LinkLayer::Ethernet);
    for uplink in ethernet {
        let link = uplink.ifindex;
        if snapshot.link(link).is_none_or(|own| own.mac.is_none()) {
            continue;
        }
        let macs = upper_devices(snapshot, link).filter_map(|upper| upper.mac);
        found.extend(macs.chain([[0; 6]]).map(|mac| Mac { link, mac }));
    }
    found
}
