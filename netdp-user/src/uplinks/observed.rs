//! Observed interfaces: links that are no uplinks, but by which requests to pods may come in.

use std::collections::BTreeSet;

use super::masters::top;
use super::model::{Link, LinkLayer, Snapshot};
use super::route_classes::{leads_out, leads_to_guests, networks};
use super::stacked::{lower_devices, unstack};
use super::uplink::Uplink;

/// Maximum number of observed links: the uplinks map has 1,024 entries.
const MOST: usize = 512;

/// Returns the links by which requests may come in from outside: all that lead out of the machine,
/// have no master, and whose packets no uplink sees. None if there is no uplink.
pub(super) fn observed(snapshot: &Snapshot, uplinks: &[Uplink]) -> Vec<Uplink> {
    if uplinks.is_empty() {
        return Vec::new();
    }
    let uplink = |ifindex| uplinks.iter().find(|uplink| uplink.ifindex == ifindex);
    let networks = networks(snapshot);
    let may_be = |link: &&Link| {
        link.up
            && leads_out(link)
            && link.link_layer != LinkLayer::Other
            && uplink(link.ifindex).is_none()
            && !leads_to_guests(snapshot, link, &networks)
            && top(snapshot, link).ifindex == link.ifindex
            // An uplink beneath sees these packets already.
            && lower_devices(snapshot, link).iter().all(|(lower, tagged)| {
                uplink(lower.ifindex).is_none_or(|lower| *tagged && lower.untagged)
            })
    };
    let links = snapshot.links.iter().filter(may_be);
    let mut found: BTreeSet<u32> = links.map(|link| link.ifindex).collect();
    let mut untagged = BTreeSet::new();
    for uplink in uplinks {
        let Some(link) = snapshot.link(uplink.ifindex) else {
            continue;
        };
        for (lower, tagged) in lower_devices(snapshot, link) {
            if tagged {
                untagged.insert(lower.ifindex);
            } else {
                found.remove(&lower.ifindex);
            }
        }
    }
    untagged.extend(unstack(snapshot, &mut found).untagged);
    let links = snapshot
        .links
        .iter()
        .filter(|link| found.contains(&link.ifindex));
    links
        .take(MOST)
        .map(|link| Uplink {
            ifindex: link.ifindex,
            name: link.name.clone(),
            link_layer: link.link_layer,
            v4: None,
            v6: None,
            up: link.up && link.running,
            untagged: untagged.contains(&link.ifindex),
            only_v4: false,
            only_v6: false,
        })
        .collect()
}
