//! File names of the pinned maps below the `--bpffs` directory.

/// [`super::Tuple`] → [`super::Mapping`], original direction.
pub const SNAT: &str = "snat";
/// [`super::Tuple`] → [`super::Mapping`], reply direction.
pub const REV_SNAT: &str = "rev_snat";
/// Prefix → [`super::PolicyValue`]; in force while `active_policy` is 0.
pub const POLICY_0: &str = "policy_0";
/// Prefix → [`super::PolicyValue`]; in force while `active_policy` is 1.
pub const POLICY_1: &str = "policy_1";
/// Interface index → [`super::Uplink`].
pub const UPLINKS: &str = "uplinks";
/// [`super::Addr`] → 1, every address of the node.
pub const LOCAL_ADDRS: &str = "local_addrs";
/// [`super::Tuple`] → [`super::Inbound`].
pub const INBOUND: &str = "inbound";
/// [`super::Tuple`] → [`super::Fragment`].
pub const FRAGMENTS: &str = "fragments";
/// 0 → [`super::Settings`].
pub const SETTINGS: &str = "settings";
/// Number of an interface → [`super::Counters`], per CPU.
pub const COUNTERS: &str = "uplink_counters";
/// Counters of layout 1, which has them under this name; programs of that layout count in them
/// until they are replaced. They stay, and are added wherever counters are read.
pub const EARLIER_COUNTERS: &str = "counters";
/// Port / 64 → bitmap word.
pub const RESERVED_PORTS: &str = "reserved_ports";

/// Port → `NODE_PORT_*` bits.
pub const NODE_PORTS: &str = "node_ports";
/// [`super::NodeProtocol`] → 1.
pub const NODE_PROTOCOLS: &str = "node_protocols";

/// [`super::Tuple`] → [`super::Live`].
pub const INBOUND_LIVE: &str = "inbound_live";
/// 0 → 1 once anything has been written to `inbound` or `inbound_live`.
pub const INBOUND_USED: &str = "inbound_used";
/// [`super::Tuple`] → [`super::Fragment`], on ingress.
pub const FRAGMENTS_IN: &str = "fragments_in";
/// [`super::Tuple`] → [`super::NodeFlow`].
pub const NODE_FLOWS: &str = "node_flows";
/// 0 → [`super::NodeFlowPorts`].
pub const NODE_FLOW_PORTS: &str = "node_flow_ports";
/// 0 → [`super::Limits`].
pub const LIMITS: &str = "limits";
/// Bucket → [`super::Share`].
pub const SHARES: &str = "shares";
/// Bucket → [`super::ShareEnded`].
pub const SHARES_ENDED: &str = "shares_ended";
/// Number → [`super::Tuple`] of a mapping.
pub const RECENT: &str = "recent";
/// 0 → [`super::RecentAt`].
pub const RECENT_AT: &str = "recent_at";
/// Number → [`super::PortMapOwner`].
pub const PORT_MAP_OWNERS: &str = "port_map_owners";
/// Number → [`super::PortMapBits`].
pub const PORT_MAPS: &str = "port_maps";
/// A half's key ([`super::Half::traffic_key`]) → [`super::Traffic`] that was carried over.
pub const TRAFFIC: &str = "traffic";
/// Number of an interface → the [`super::Counters`] that the number had when it was given to that
/// interface, summed over CPUs.
pub const COUNTERS_BEFORE: &str = "counters_before";
/// Rule → [`super::RuleHits`].
pub const RULE_HITS: &str = "rule_hits";
/// Rule → [`super::RuleEnded`].
pub const RULE_ENDED: &str = "rule_ended";
/// Slot of a CPU ([`super::pair_index`]) → [`super::Pair`].
pub const BYPASS_CACHE: &str = "bypass_cache";

/// Network of a destination ([`super::network_of`]) → [`super::Reach`].
pub const REACH: &str = "reach";
/// 0 → [`super::NewMappings`], per CPU.
pub const PORT_SEARCHES: &str = "port_searches";
/// Bucket → refusals of its pods.
pub const REFUSALS: &str = "refusals";
/// Ring buffer of [`super::BeginEvent`] and [`super::DropEvent`].
pub const EVENTS: &str = "events";
/// Kind of an event (`EVENT_*`) → [`super::EventCount`], per CPU.
pub const EVENT_COUNTS: &str = "event_counts";
/// Ring buffer of [`super::Ended`].
pub const ENDED: &str = "ended";
/// 0 → the number of [`super::Ended`] for which there was no room, per CPU.
pub const ENDED_LOST: &str = "ended_lost";

/// All maps: pin file name and the name in the eBPF object.
pub const ALL: &[(&str, &str)] = &[
    (SNAT, "SNAT"),
    (REV_SNAT, "REV_SNAT"),
    (POLICY_0, "POLICY_0"),
    (POLICY_1, "POLICY_1"),
    (UPLINKS, "UPLINKS"),
    (LOCAL_ADDRS, "LOCAL_ADDRS"),
    (INBOUND, "INBOUND"),
    (FRAGMENTS, "FRAGMENTS"),
    (SETTINGS, "SETTINGS"),
    (COUNTERS, "UPLINK_COUNTERS"),
    (RESERVED_PORTS, "RESERVED_PORTS"),
    (NODE_PORTS, "NODE_PORTS"),
    (NODE_PROTOCOLS, "NODE_PROTOCOLS"),
    (INBOUND_LIVE, "INBOUND_LIVE"),
    (INBOUND_USED, "INBOUND_USED"),
    (FRAGMENTS_IN, "FRAGMENTS_IN"),
    (NODE_FLOWS, "NODE_FLOWS"),
    (NODE_FLOW_PORTS, "NODE_FLOW_PORTS"),
    (LIMITS, "LIMITS"),
    (SHARES, "SHARES"),
    (SHARES_ENDED, "SHARES_ENDED"),
    (RECENT, "RECENT"),
    (RECENT_AT, "RECENT_AT"),
    (PORT_MAP_OWNERS, "PORT_MAP_OWNERS"),
    (PORT_MAPS, "PORT_MAPS"),
    (TRAFFIC, "TRAFFIC"),
    (COUNTERS_BEFORE, "COUNTERS_BEFORE"),
    (RULE_HITS, "RULE_HITS"),
    (RULE_ENDED, "RULE_ENDED"),
    (BYPASS_CACHE, "BYPASS_PAIRS"),
    (REACH, "REACH"),
    (PORT_SEARCHES, "PORT_SEARCHES"),
    (REFUSALS, "REFUSALS"),
    (EVENTS, "EVENTS"),
    (EVENT_COUNTS, "EVENT_COUNTS"),
    (ENDED, "ENDED"),
    (ENDED_LOST, "ENDED_LOST"),
];

/// Maps of earlier layouts: pin file name and the name in their eBPF object.
pub const EARLIER: &[(&str, &str)] = &[(EARLIER_COUNTERS, "COUNTERS")];

/// Maps of this layout that the one before does not have.
pub const NEW: &[&str] = &[
    COUNTERS,
    COUNTERS_BEFORE,
    TRAFFIC,
    RULE_HITS,
    RULE_ENDED,
    BYPASS_CACHE,
    NODE_FLOW_PORTS,
    REACH,
    PORT_SEARCHES,
    REFUSALS,
    EVENTS,
    EVENT_COUNTS,
    ENDED,
    ENDED_LOST,
];
