//! Conntrack entries of flows that the datapath translates. Conntrack sees pods' packets before TC
//! egress and replies after TC ingress: it records such flows as answered and untranslated. Once
//! the datapath is gone, they would leave untranslated for as long as they last, and the next agent
//! could not distinguish them from flows that need no translation (docs/adr/0041).

use super::{Maps, batch, handover};
use crate::nf_conntrack::{Conntrack, Flow, NfTuple};
use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use netdp_common::layout::{Action, Addr, Mapping, Tuple, proto};
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

/// Returns the tuples by which the connection leaves the node, whichever side initiated it, with an
/// address that is not the node's own: netfilter does not translate them.
#[must_use]
pub fn untranslated_tuples(flow: &Flow, local: &BTreeSet<IpAddr>) -> Vec<NfTuple> {
    let ways = [flow.translated_original(), flow.original.reversed()];
    ways.into_iter()
        .filter(|ends| !flow.is_mark() && !local.contains(&ends.source))
        .filter(|ends| !local.contains(&ends.destination))
        .collect()
}

/// Reports whether the datapath may have translated packets that leave as `way`, one of those of
/// [`untranslated_tuples`], after conntrack saw them. It never translates connections that began outside.
/// For all but TCP connections tracked from their start, the direction of the entry proves nothing:
/// conntrack may have dropped the flow in between and recorded it again from a reply.
#[must_use]
pub fn may_be_translated(flow: &Flow, way: &NfTuple) -> bool {
    let is_tcp = u32::from(flow.protocol) == proto::TCP;
    let from_outside = *way == flow.original.reversed();
    !(is_tcp && from_outside && !flow.picked_up)
}

/// Deletes the conntrack entries of flows that `is_ours` selects by one of the tuples by which they
/// leave, and the mark that there may be such flows. Flows that netfilter translates stay. Returns
/// the number of deleted entries.
///
/// # Errors
/// Returns an error if conntrack can't be queried.
pub fn delete_entries(
    local: &BTreeSet<IpAddr>,
    mut is_ours: impl FnMut(&Flow, &NfTuple) -> bool,
) -> Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let mut deleted = 0;
    for flow in conntrack.dump()? {
        let netfilters = flow.is_masqueraded() || local.contains(&flow.original.destination);
        let mut ways = untranslated_tuples(&flow, local).into_iter();
        if !netfilters
            && ways.any(|way| is_ours(&flow, &way))
            && conntrack.delete_if_present(&flow)?
        {
            deleted += 1;
        }
    }
    conntrack.delete_if_present(&Flow::mark())?;
    Ok(deleted)
}

/// Reports whether the mark is set: programs of netdp have translated, and their conntrack entries
/// have not been deleted. `false` if there is no conntrack.
#[must_use]
pub fn is_marked() -> bool {
    let flows = Conntrack::open().and_then(|mut conntrack| conntrack.dump());
    flows.is_ok_and(|flows| flows.iter().any(Flow::is_mark))
}

impl Maps {
    /// Deletes the conntrack entries of flows that these maps, whose programs are detached by now,
    /// have translated or would have translated with the next packet. Returns the number of those
    /// flows.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read, or conntrack can't be queried. Then the mark
    /// stays.
    pub(super) fn delete_conntrack_entries(&self) -> Result<usize> {
        let mut mapped = HashSet::new();
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, _| {
            mapped.insert(*tuple);
        })
        .context("reading the snat map")?;
        let settings = self.settings()?;
        let policy = &self.policy[usize::from(settings.active_policy != 0)];
        let masquerades = |destination: IpAddr| {
            let key = Key::new(128, Addr::from(destination));
            let value = policy.get(&key, 0);
            value.map_or(true, |value| {
                Action::from_raw(value.action) != Action::Bypass
            })
        };
        let pods = self.pods()?;
        let local = self.local_addresses()?;
        delete_entries(&local, |flow, way| {
            let tuple = handover::tuple(flow.protocol, way);
            let keeps_address = || pods.inbound_live.get(&tuple, 0).is_ok();
            mapped.contains(&tuple)
                || may_be_translated(flow, way) && masquerades(way.destination) && !keeps_address()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{may_be_translated, proto, untranslated_tuples};
    use crate::nf_conntrack::{Flow, NfTuple};
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    fn ends(source: &str, destination: &str) -> NfTuple {
        NfTuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_id: 1000,
            destination_id: 80,
        }
    }

    fn flow(original: NfTuple, reply: NfTuple) -> Flow {
        Flow {
            protocol: u8::try_from(proto::TCP).unwrap(),
            original,
            reply,
            answered: true,
            timeout: 1,
            tcp: None,
            picked_up: false,
        }
    }

    #[test]
    fn either_side_may_have_begun() {
        let local = BTreeSet::from(["192.0.2.9".parse::<IpAddr>().unwrap()]);
        let out = ends("10.0.0.1", "198.51.100.1");
        // Not translated: both tuples may leave by an uplink.
        let found = untranslated_tuples(&flow(out, out.reversed()), &local);
        assert_eq!(found, [out, out.reversed()]);
        // Masqueraded: packets leave with the node's address, and replies go to the pod.
        let seen = ends("192.0.2.9", "198.51.100.1");
        let found = untranslated_tuples(&flow(out, seen.reversed()), &local);
        assert_eq!(found, [out.reversed()]);
        // To a port of the node that leads to a pod: replies leave with the node's address.
        let node_port = ends("198.51.100.1", "192.0.2.9");
        let to_pod = ends("198.51.100.1", "10.0.0.1");
        let found = untranslated_tuples(&flow(node_port, to_pod.reversed()), &local);
        assert_eq!(found, [to_pod]);
        assert_eq!(untranslated_tuples(&Flow::mark(), &local), []);
    }

    #[test]
    fn only_a_connection_that_began_outside_was_surely_not_translated() {
        let out = ends("10.0.0.1", "198.51.100.1");
        let (inward, outward) = (out.reversed(), out);
        let began_outside = flow(inward, inward.reversed());
        assert!(!may_be_translated(&began_outside, &outward));
        assert!(may_be_translated(&flow(out, out.reversed()), &outward));
        let picked_up = Flow {
            picked_up: true,
            ..began_outside
        };
        assert!(may_be_translated(&picked_up, &outward));
        let datagrams = Flow {
            protocol: u8::try_from(proto::UDP).unwrap(),
            ..began_outside
        };
        assert!(may_be_translated(&datagrams, &outward));
    }
}
