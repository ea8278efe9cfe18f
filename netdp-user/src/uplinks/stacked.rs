//! Stacked uplinks (VLAN or macvlan over a lower device): a packet passes the hooks of both, and
//! must be translated once.

use std::collections::BTreeSet;

use super::address::carries_addresses;
use super::model::{Link, Snapshot};
use super::uplink::Uplink;

/// Decisions about selected links that are stacked.
#[derive(Debug, Default)]
pub(super) struct Stacking {
    /// Lower devices that see tagged packets of a selected VLAN device.
    pub untagged: BTreeSet<u32>,
    /// Decisions, a sentence each.
    pub decisions: Vec<String>,
}

/// Removes links from `chosen` so that each packet is translated by one of them:
///
/// - a VLAN device and its lower device both stay: packets have a tag there, by which the lower one
///   passes them;
/// - of a macvlan or ipvlan device and its lower device, the lower one stays if it has addresses,
///   because traffic may leave by it directly; packets of the upper one pass its hooks too. Without
///   addresses nothing is routed by it, and the upper one stays.
///
/// Bonds and bridges are not handled here: their members were left out before. A tunnel has a lower
/// device too, but packets that leave there are its own.
pub(super) fn unstack(snapshot: &Snapshot, chosen: &mut BTreeSet<u32>) -> Stacking {
    let mut stack = Stacking::default();
    for upper in snapshot.links.iter() {
        // Of thousands of links few are selected, and finding the devices beneath one scans them
        // all.
        if !chosen.contains(&upper.ifindex) {
            continue;
        }
        for (lower, tagged) in lower_devices(snapshot, upper) {
            if !chosen.contains(&upper.ifindex) || !chosen.contains(&lower.ifindex) {
                continue;
            }
            let (up, low) = (&upper.name, &lower.name);
            if tagged {
                stack.untagged.insert(lower.ifindex);
                stack.decisions.push(format!(
                    "{up} is stacked on {low}: VLAN-tagged packets pass {low} untranslated"
                ));
            } else if carries_addresses(snapshot, lower) {
                chosen.remove(&upper.ifindex);
                stack.decisions.push(format!(
                    "{up} is stacked on {low}, which masquerades for both with its own address"
                ));
            } else {
                chosen.remove(&lower.ifindex);
                stack.decisions.push(format!(
                    "{up} is stacked on {low}, which has no address: {up} alone masquerades"
                ));
            }
        }
    }
    stack
}

/// Reports whether one of these uplinks, beneath a link, translates the packets that leave by the
/// link.
pub(super) fn is_translated_below(snapshot: &Snapshot, link: &Link, uplinks: &[Uplink]) -> bool {
    lower_devices(snapshot, link).iter().any(|(lower, tagged)| {
        let mut here = (uplinks.iter()).filter(|uplink| uplink.ifindex == lower.ifindex);
        here.any(|uplink| !(*tagged && uplink.untagged))
    })
}

/// Returns a link and the links whose packets pass its hooks too: the reverse of [`lower_devices`].
pub(super) fn upper_devices(snapshot: &Snapshot, ifindex: u32) -> impl Iterator<Item = &Link> {
    let mut found: Vec<&Link> = snapshot.link(ifindex).into_iter().collect();
    let mut at = 0;
    while let Some(&lower) = found.get(at) {
        at += 1;
        let master = lower.master.filter(|_| snapshot.vrf(lower).is_none());
        for upper in snapshot.links.iter() {
            let stands = sends_through_lower(upper) && upper.below == Some(lower.ifindex);
            // A snapshot taken during a change could contain a loop.
            let is_new = found.iter().all(|seen| seen.ifindex != upper.ifindex);
            if (stands || master == Some(upper.ifindex)) && is_new {
                found.push(upper);
            }
        }
    }
    found.into_iter()
}

/// Reports whether a link sends its packets by its lower device as they are, not inside packets of
/// the node.
fn sends_through_lower(link: &Link) -> bool {
    let kind = link.kind.as_deref().unwrap_or_default();
    matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap")
}

/// Returns the links whose hooks a link's packets pass after its own, and for each whether the
/// packets have a VLAN tag there.
pub(super) fn lower_devices<'a>(snapshot: &'a Snapshot, upper: &Link) -> Vec<(&'a Link, bool)> {
    let mut found: Vec<(&Link, bool)> = Vec::new();
    let mut todo = vec![(upper.ifindex, false)];
    while let Some((ifindex, tagged)) = todo.pop() {
        let Some(link) = snapshot.link(ifindex) else {
            continue;
        };
        let kind = link.kind.as_deref().unwrap_or_default();
        let through_lower = sends_through_lower(link);
        let tagged = tagged || kind == "vlan";
        let is_lower = |lower: &&Link| {
            let is_port = kind != "vrf" && lower.master == Some(ifindex);
            is_port || through_lower && link.below == Some(lower.ifindex)
        };
        for lower in snapshot.links.iter().filter(is_lower) {
            // A snapshot taken during a change could contain a loop.
            let is_new = found.iter().all(|(seen, _)| seen.ifindex != lower.ifindex);
            if is_new && lower.ifindex != upper.ifindex {
                found.push((lower, tagged));
                todo.push((lower.ifindex, tagged));
            }
        }
    }
    found
}
