//! Ports of the node's address towards one destination.

use super::ask::Case;
use super::node::Node;
use super::{is_for_room, uplink_address};
use crate::explain::{Explained, Question, Verdict};
use anyhow::Result;
use netdp_common::flow::{SEEN_FIN, SEEN_OTHERS_FIN, SEEN_RST};
use netdp_common::layout::{Addr, Family, Tuple, proto};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Number of ports up to which they are counted although the packet is served: each costs a look-up.
const FEW: usize = 2048;

/// [`Mapping::seen`](netdp_common::layout::Mapping::seen) of connections that end.
const ENDING: u32 = SEEN_FIN | SEEN_OTHERS_FIN | SEEN_RST;

/// Use of the ports towards a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortUse {
    /// The node's address.
    pub(super) address: IpAddr,
    /// Number of ports that mappings may take.
    pub(super) capacity: usize,
    /// Number of ports that mappings have.
    pub(super) used: usize,
    /// The pods that have them, with the number of all and of those that are closing.
    pub(super) pods: Vec<(IpAddr, usize, usize)>,
}

impl PortUse {
    /// Counts the ports, if there are few, or none is left.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(super) fn count(
        node: &Node<'_>,
        case: &Case,
        explained: &Explained,
    ) -> Result<Option<Self>> {
        let protocol = u32::from(case.protocol);
        if !matches!(protocol, proto::TCP | proto::UDP) {
            return Ok(None);
        }
        let is_refused =
            matches!(explained.verdict, Verdict::Dropped(reason) if is_for_room(reason));
        let maps = &node.explainer.maps;
        let ports = maps.ports()?;
        if !is_refused && ports.len() > FEW {
            return Ok(None);
        }
        let Some(address) = address(explained, Family::of(case.dst)) else {
            return Ok(None);
        };
        let (mut used, mut pods) = (0, BTreeMap::<IpAddr, (usize, usize)>::new());
        for port in &ports {
            let wire = Tuple::new(case.dst.into(), address, case.dst_port, *port, protocol);
            let Some(owner) = maps.owner(&wire)? else {
                continue;
            };
            used += 1;
            let (all, closing) = pods.entry(owner.addr.into()).or_default();
            *all += 1;
            if protocol == proto::TCP && owner.seen() & ENDING != 0 {
                *closing += 1;
            }
        }
        let mut pods: Vec<_> = pods.into_iter().map(|(pod, n)| (pod, n.0, n.1)).collect();
        pods.sort_by_key(|(_, all, _)| std::cmp::Reverse(*all));
        Ok(Some(Self {
            address: address.into(),
            capacity: ports.len(),
            used,
            pods,
        }))
    }
}

/// Returns the node's address that the packet gets, or would.
fn address(explained: &Explained, family: Family) -> Option<Addr> {
    if let Verdict::Rewritten(by) = explained.verdict {
        return Some(by.to.addr);
    }
    let named = explained.questions.iter().find_map(|it| match it {
        Question::Source { found, .. } => *found,
        _ => None,
    });
    named.or_else(|| uplink_address(explained, family))
}
