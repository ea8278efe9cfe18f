//! What connection tracking makes of flows that the datapath translates. It sees pods' packets before
//! TC egress and answers after TC ingress: it takes such flows for answered ones that nobody
//! translates. Once the datapath is gone it would have them leave so for as long as they speak, and
//! the next agent could not tell them from flows that do without translation (docs/adr/0041).

use super::{Maps, batch, handover};
use crate::conntrack::{Conntrack, Ends, Flow};
use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use netdp_common::abi::{Action, Mapping};
use netdp_common::addr::Addr;
use netdp_common::tuple::{Tuple, proto};
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

/// Where the connection leaves the node, whichever side began it, with an address that is not
/// the node's own: netfilter does not translate it there.
#[must_use]
pub fn untranslated(flow: &Flow, local: &BTreeSet<IpAddr>) -> Vec<Ends> {
    let ways = [flow.leaves(), flow.original.reversed()];
    ways.into_iter()
        .filter(|ends| !flow.is_mark() && !local.contains(&ends.source))
        .filter(|ends| !local.contains(&ends.destination))
        .collect()
}

/// Whether the datapath may have translated what leaves as `way`, one of [`untranslated`]'s, after
/// tracking saw it. It never did so with connections that began outside. Of all else what came first
/// tells nothing: tracking may have forgotten the flow in between, and met it again by an answer.
#[must_use]
pub fn may_be_translated(flow: &Flow, way: &Ends) -> bool {
    let is_tcp = u32::from(flow.protocol) == proto::TCP;
    let from_outside = *way == flow.original.reversed();
    !(is_tcp && from_outside && !flow.picked_up)
}

/// Has tracking forget the flows of which `is_ours` says so by one of the ways in which they leave,
/// and the mark that there may be some. What netfilter translates stays. Gives how many there were.
///
/// # Errors
/// Tracking can't be asked.
pub fn forget(
    local: &BTreeSet<IpAddr>,
    mut is_ours: impl FnMut(&Flow, &Ends) -> bool,
) -> Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let mut forgotten = 0;
    for flow in conntrack.dump()? {
        let netfilters = flow.is_masqueraded() || local.contains(&flow.original.destination);
        let mut ways = untranslated(&flow, local).into_iter();
        if !netfilters && ways.any(|way| is_ours(&flow, &way)) && conntrack.forget(&flow)? {
            forgotten += 1;
        }
    }
    conntrack.forget(&Flow::mark())?;
    Ok(forgotten)
}

/// Whether the mark is there: programs of netdp's have translated, and nobody has cleared up after
/// them. `false` where there is no tracking.
#[must_use]
pub fn is_marked() -> bool {
    let flows = Conntrack::open().and_then(|mut conntrack| conntrack.dump());
    flows.is_ok_and(|flows| flows.iter().any(Flow::is_mark))
}

impl Maps {
    /// Has tracking forget what these maps, whose programs are off by now, have translated, and what
    /// they would have with its next packet. Gives how many flows that were.
    ///
    /// # Errors
    /// The maps can't be read, or tracking can't be asked. Then the mark stays.
    pub(super) fn forget_tracked(&self) -> Result<usize> {
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
        forget(&local, |flow, way| {
            let tuple = handover::tuple(flow.protocol, way);
            let keeps_address = || pods.inbound_live.get(&tuple, 0).is_ok();
            mapped.contains(&tuple)
                || may_be_translated(flow, way) && masquerades(way.destination) && !keeps_address()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{may_be_translated, proto, untranslated};
    use crate::conntrack::{Ends, Flow};
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_id: 1000,
            destination_id: 80,
        }
    }

    fn flow(original: Ends, reply: Ends) -> Flow {
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
        // Nobody translates: both ways may leave by an uplink.
        let found = untranslated(&flow(out, out.reversed()), &local);
        assert_eq!(found, [out, out.reversed()]);
        // Masqueraded: what leaves is the node's, and its answers go to the pod.
        let seen = ends("192.0.2.9", "198.51.100.1");
        let found = untranslated(&flow(out, seen.reversed()), &local);
        assert_eq!(found, [out.reversed()]);
        // To a port of the node that leads to a pod: the answers leave as the node's.
        let node_port = ends("198.51.100.1", "192.0.2.9");
        let to_pod = ends("198.51.100.1", "10.0.0.1");
        let found = untranslated(&flow(node_port, to_pod.reversed()), &local);
        assert_eq!(found, [to_pod]);
        assert_eq!(untranslated(&Flow::mark(), &local), []);
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
