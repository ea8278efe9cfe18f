//! Counts of attempts to reach the destinations of a network, and of answers.

use ipnet::IpNet;
use netdp_common::layout::{Addr, network_bits, network_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Attempts towards a network and their answers. An attempt is a TCP SYN, repeated ones included,
/// or an ICMP query; an answer is a SYN-ACK, a reset of a SYN, or a reply to a query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Attempts of pods.
    pub pod_new: u64,
    /// Answers to pods.
    pub pod_answered: u64,
    /// Packets that pods have sent, attempts included.
    #[serde(default)]
    pub pod_packets: u64,
    /// Attempts of the node itself.
    pub node_new: u64,
    /// Answers to the node itself.
    pub node_answered: u64,
}

/// Counts by network, as read at one time.
pub(crate) type Observed = BTreeMap<IpNet, Counts>;

impl Counts {
    /// Adds to all counts.
    pub(crate) const fn add(&mut self, more: &Self) {
        self.pod_new += more.pod_new;
        self.pod_answered += more.pod_answered;
        self.pod_packets += more.pod_packets;
        self.node_new += more.node_new;
        self.node_answered += more.node_answered;
    }

    /// Returns what was counted since `before`. A count that is smaller now has begun anew: the
    /// kernel had replaced its entry.
    pub(super) fn since(&self, before: &Self) -> Self {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        // The kernel replaces an entry as a whole.
        let is_new = self.pod_new < before.pod_new || self.node_new < before.node_new;
        let counts = if is_new { &Self::default() } else { before };
        Self {
            pod_new: more(self.pod_new, counts.pod_new),
            pod_answered: more(self.pod_answered, counts.pod_answered),
            // Packets of pairs that the cache has replaced are no longer there.
            pod_packets: self.pod_packets.saturating_sub(before.pod_packets),
            node_new: more(self.node_new, counts.node_new),
            node_answered: more(self.node_answered, counts.node_answered),
        }
    }

    /// Removes what is known of pods.
    pub(super) const fn forget_pods(&mut self) {
        (self.pod_new, self.pod_answered, self.pod_packets) = (0, 0, 0);
    }

    /// Returns the number of answers to pods, as far as they are known. Whoever goes on sending
    /// after its SYNs was answered, even if the answers come by an interface without programs.
    pub(crate) fn pods_heard(&self) -> u64 {
        let further = self.pod_packets.saturating_sub(self.pod_new);
        self.pod_answered.max(further).min(self.pod_new)
    }
}

/// Returns the network to which a destination counts.
pub(crate) fn network(destination: IpAddr) -> IpNet {
    let destination = Addr::from(destination);
    let (first, bits) = (network_of(&destination), network_bits(&destination));
    let first: IpAddr = first.into();
    // A length that the family does not have is the address alone; there is none.
    IpNet::new(first, bits).unwrap_or_else(|_| first.into())
}
