//! Uplinks without an address of a family that they have to masquerade with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netdp_common::layout::Family;
use serde::{Deserialize, Serialize};

use super::model::Snapshot;
use super::selection::Selection;
use super::uplink::Uplink;

/// A family of which an uplink has no address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingAddress {
    /// Interface name of the uplink.
    pub uplink: String,
    /// Family of the missing address.
    pub family: Family,
    /// True if it had one before.
    pub lost: bool,
    /// True if routes to masqueraded destinations use the uplink: packets are dropped.
    pub routed: bool,
    /// True if nothing of that family is masqueraded any more that should be: routes use an uplink
    /// that lost its address, or no uplink has an address although the node is known by one, or an
    /// uplink had one.
    pub severe: bool,
}

impl MissingAddress {
    /// Describes the problem to an operator. `by_netfilter`: netfilter translates, not the
    /// programs.
    pub fn describe(&self, by_netfilter: bool) -> String {
        let Self { uplink, family, .. } = self;
        let any_more = if self.lost { " any more" } else { "" };
        let what = match (by_netfilter, self.routed || self.severe) {
            (true, _) => format!(
                "netfilter gives pods' {family} packets that leave there another interface's address, or \
                 drops them"
            ),
            (false, true) => format!(
                "pods' {family} packets that are to be masqueraded are dropped there (no_source_address)"
            ),
            (false, false) => format!("no {family} route leads there"),
        };
        format!(
            "{uplink} has no {family} address{any_more}: {what}; give it one of global scope (ip address show \
             dev {uplink})"
        )
    }
}

/// Families of which uplinks had addresses, by uplink name.
pub(crate) type FormerFamilies = BTreeMap<String, BTreeSet<Family>>;

/// Returns the uplinks that lack an address, for the families that are masqueraded.
///
/// A node need not have both families: one that an uplink never had counts if masqueraded
/// destinations are routed by it without a source of their own.
pub(crate) fn missing_addresses(
    snapshot: &Snapshot,
    selection: &Selection,
    uplinks: &[Uplink],
    had: &FormerFamilies,
) -> Vec<MissingAddress> {
    let mut families = vec![Family::V4];
    if selection.enable_ipv6 {
        families.push(Family::V6);
    }
    let mut found = Vec::new();
    for family in families {
        let has = |uplink: &Uplink| match family {
            Family::V4 => uplink.v4.is_some(),
            Family::V6 => uplink.v6.is_some(),
        };
        let none_has = !uplinks.iter().any(has);
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        // If uplinks are named, the one with the node's known address may have been left out.
        let by_role = selection.patterns.is_empty();
        let expected = (by_role && selection.node_addrs.iter().any(of_family))
            || had.values().any(|families| families.contains(&family));
        for uplink in uplinks.iter().filter(|uplink| !has(uplink)) {
            let lost = (had.get(&uplink.name)).is_some_and(|had| had.contains(&family));
            let mut routes = snapshot.routes.iter();
            let routed = routes.any(|route| {
                let net = route.destination;
                route.ifindex == uplink.ifindex
                    && route.prefsrc.is_none()
                    && Family::of(net.addr()) == family
                    && selection.masqueraded.touches(&net)
            });
            let severe = (lost && routed) || (none_has && expected);
            if lost || routed || severe {
                found.push(MissingAddress {
                    uplink: uplink.name.clone(),
                    family,
                    lost,
                    routed,
                    severe,
                });
            }
        }
    }
    found
}
