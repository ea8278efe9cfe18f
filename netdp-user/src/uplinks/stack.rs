//! Uplinks that stand on each other: a packet passes the hooks of both, and
//! must be translated once.

use std::collections::BTreeSet;

use super::address::carries_addresses;
use super::model::{Link, Snapshot};
use super::select::Uplink;

/// What becomes of chosen links that stand on each other.
#[derive(Debug, Default)]
pub(super) struct Stack {
    /// Links that see tagged packets of a chosen VLAN device.
    pub untagged: BTreeSet<u32>,
    /// What was decided, a sentence each.
    pub told: Vec<String>,
}

/// Takes links out of `chosen` so that each packet meets one of them:
///
/// - a VLAN device and what it stands on both stay: its packets have a tag
///   there, by which the lower one lets them be;
/// - of a macvlan or ipvlan device and what it stands on, the lower one stays
///   if it has addresses, because traffic may leave by it directly; packets of
///   the upper one pass its hooks too. Without addresses nothing is routed by
///   it, and the upper one stays.
///
/// Bonds and bridges are not looked at: their members were left out before. A
/// tunnel stands on another device too, but what leaves there is its own.
pub(super) fn unstack(snapshot: &Snapshot, chosen: &mut BTreeSet<u32>) -> Stack {
    let mut stack = Stack::default();
    for upper in snapshot.links.iter() {
        // Of thousands of links few are chosen, and to look beneath one is to look at all.
        if !chosen.contains(&upper.ifindex) {
            continue;
        }
        for (lower, tagged) in beneath(snapshot, upper) {
            if !chosen.contains(&upper.ifindex) || !chosen.contains(&lower.ifindex) {
                continue;
            }
            let (up, low) = (&upper.name, &lower.name);
            if tagged {
                stack.untagged.insert(lower.ifindex);
                stack.told.push(format!(
                    "{up} stands on {low}: packets with a VLAN tag are left alone at {low}"
                ));
            } else if carries_addresses(snapshot, lower) {
                chosen.remove(&upper.ifindex);
                stack.told.push(format!(
                    "{up} stands on {low}, which masquerades for both with its own address"
                ));
            } else {
                chosen.remove(&lower.ifindex);
                stack.told.push(format!(
                    "{up} stands on {low}, which has no address: {up} alone masquerades"
                ));
            }
        }
    }
    stack
}

/// Whether one of these uplinks translates what leaves by a link, further down.
pub(super) fn is_translated_beneath(snapshot: &Snapshot, link: &Link, uplinks: &[Uplink]) -> bool {
    beneath(snapshot, link).iter().any(|(lower, tagged)| {
        let mut here = (uplinks.iter()).filter(|uplink| uplink.ifindex == lower.ifindex);
        here.any(|uplink| !(*tagged && uplink.untagged))
    })
}

/// A link and those whose packets pass its hooks too: the reverse of [`beneath`].
pub(super) fn above(snapshot: &Snapshot, ifindex: u32) -> impl Iterator<Item = &Link> {
    let mut found: Vec<&Link> = snapshot.link(ifindex).into_iter().collect();
    let mut at = 0;
    while let Some(&lower) = found.get(at) {
        at += 1;
        let master = lower.master.filter(|_| snapshot.vrf(lower).is_none());
        for upper in snapshot.links.iter() {
            let stands = shares(upper) && upper.below == Some(lower.ifindex);
            // A snapshot taken during a change could hold a loop.
            let is_new = found.iter().all(|seen| seen.ifindex != upper.ifindex);
            if (stands || master == Some(upper.ifindex)) && is_new {
                found.push(upper);
            }
        }
    }
    found.into_iter()
}

/// Whether a link sends by the link that it stands on, and not as something that the node makes.
fn shares(link: &Link) -> bool {
    let kind = link.kind.as_deref().unwrap_or_default();
    matches!(kind, "vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap")
}

/// The links whose hooks a link's packets pass after its own, and whether the
/// packets have a VLAN tag there.
pub(super) fn beneath<'a>(snapshot: &'a Snapshot, upper: &Link) -> Vec<(&'a Link, bool)> {
    let mut found: Vec<(&Link, bool)> = Vec::new();
    let mut todo = vec![(upper.ifindex, false)];
    while let Some((ifindex, tagged)) = todo.pop() {
        let Some(link) = snapshot.link(ifindex) else {
            continue;
        };
        let kind = link.kind.as_deref().unwrap_or_default();
        let shares = shares(link);
        let tagged = tagged || kind == "vlan";
        let is_lower = |lower: &&Link| {
            let is_port = kind != "vrf" && lower.master == Some(ifindex);
            is_port || shares && link.below == Some(lower.ifindex)
        };
        for lower in snapshot.links.iter().filter(is_lower) {
            // A snapshot taken during a change could hold a loop.
            let is_new = found.iter().all(|(seen, _)| seen.ifindex != lower.ifindex);
            if is_new && lower.ifindex != upper.ifindex {
                found.push((lower, tagged));
                todo.push((lower.ifindex, tagged));
            }
        }
    }
    found
}
