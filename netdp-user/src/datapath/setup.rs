//! Settings of the datapath that are fixed at the agent's start, and the features of the kernel.

use super::hook::Mechanism;
use netdp_common::layout::NO_LEAK_ADDRESS;
use netdp_common::layout::NO_LEAK_DROP;
use netdp_common::layout::NO_LEAK_PASS;
use netdp_common::layout::PortRange;
use netdp_common::layout::SETTING_DRAIN;
use netdp_common::layout::SETTING_HAIRPIN;
use netdp_common::layout::SETTING_HASH_PORTS;
use netdp_common::layout::SETTING_IPV6;
use netdp_common::layout::SETTING_LOG_ENDS;
use netdp_common::layout::SETTING_PORTS;
use netdp_common::layout::SETTING_RANDOM_PORTS;
use netdp_common::layout::SETTING_UDP_ENDPOINTS;
use netdp_common::layout::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Settings of the datapath that are fixed at the agent's start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// True to translate IPv6 as well.
    pub enable_ipv6: bool,
    /// Capacity of the mapping tables, in mappings. Maps that are pinned already keep their size.
    pub max_flows: u32,
    /// The only ports from which TCP and UDP mappings get theirs; at most [`netdp_common::layout::PORT_RANGES`]
    /// ranges. Empty: all ports.
    pub to_ports: Vec<PortRange>,
    /// Allocation of external ports.
    pub port_mode: PortMode,
    /// True to use one external port per UDP port of a pod, whatever the destination.
    pub udp_endpoints: bool,
    /// Treatment of packets that can't be translated.
    pub no_leak: NoLeak,
    /// Effect of a policy change on live flows.
    pub on_reload: OnReload,
    /// Maximum number of mappings of one pod, for each family; 0: its share of the tables
    /// ([`netdp_common::slot::share::limit`]).
    pub pod_flows: u32,
    /// Maximum rate of new mappings of one pod, in mappings per second; 0: unlimited.
    pub pod_new_flows: u32,
    /// Secret key of the node, which makes its hashes unpredictable. Pinned maps keep theirs.
    pub secret: Secret,
    /// Ports that are never allocated to a mapping.
    pub reserved_ports: BTreeSet<u16>,
    /// True if pods may reach each other by their external endpoints.
    pub hairpin: bool,
    /// True if programs report the mappings that they end, for a log.
    pub log_ends: bool,
    /// Mechanism by which programs are attached.
    pub mechanism: Mechanism,
}

impl Setup {
    /// Returns the bits of [`netdp_common::layout::Settings::flags`].
    pub(super) fn flags(&self) -> u32 {
        let mut flags = match self.port_mode {
            PortMode::Keep => 0,
            PortMode::Hash => SETTING_HASH_PORTS,
            PortMode::Random => SETTING_RANDOM_PORTS,
        };
        for (set, flag) in [
            (self.enable_ipv6, SETTING_IPV6),
            (!self.to_ports.is_empty(), SETTING_PORTS),
            (self.udp_endpoints, SETTING_UDP_ENDPOINTS),
            (self.hairpin, SETTING_HAIRPIN),
            (self.log_ends, SETTING_LOG_ENDS),
            (self.on_reload == OnReload::Drain, SETTING_DRAIN),
        ] {
            if set {
                flags |= flag;
            }
        }
        flags
    }
}

/// Allocation of external ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PortMode {
    /// The pod's own port if it is free, else a random one.
    Keep,
    /// A port chosen by a hash of the tuple.
    Hash,
    /// Always a random one.
    Random,
}

/// Effect of a policy change on live flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReload {
    /// Flows keep their translation.
    Sticky,
    /// Flows that the new policy treats differently end at once.
    Cutover,
    /// Flows that the new policy treats differently end after 30 s of silence.
    Drain,
}

/// Treatment of packets that can't be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NoLeak {
    /// Drop them.
    Drop,
    /// Let them leave with the pod's address.
    Pass,
    /// Let them leave with the node's address; replies do not reach the pod.
    AddressOnly,
}

impl NoLeak {
    pub(super) const fn raw(self) -> u32 {
        match self {
            Self::Drop => NO_LEAK_DROP,
            Self::Pass => NO_LEAK_PASS,
            Self::AddressOnly => NO_LEAK_ADDRESS,
        }
    }
}

/// Optional kernel features, as detected at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// TCX (Linux 6.6); without it programs are attached by clsact.
    pub tcx: bool,
    /// Batched writes to tries (Linux 5.13); without them the policy is written entry by entry.
    pub trie_batches: bool,
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let attach = if self.tcx { "TCX" } else { "no TCX" };
        let write = if self.trie_batches {
            "batches"
        } else {
            "no batches"
        };
        write!(f, "{attach}, {write} for tries")
    }
}
