//! The interface between datapath and user space: keys, values and names of maps.
//!
//! Every type is `repr(C)` with its padding named and zeroed; no bool, enum or `Option` crosses the
//! boundary. The layout is versioned by [`LAYOUT`].

mod addr;
mod counters;
mod drops;
mod ended;
mod endpoint;
mod event;
mod fragment;
mod inbound;
mod mapping;
mod new_mappings;
mod node;
pub mod pins;
mod pod;
mod policy;
mod port_map;
mod reach;
mod settings;
mod share;
mod traffic;
mod tuple;
mod uplink;

pub use addr::{Addr, Family};
pub use counters::Counters;
pub use drops::{DropReason, Drops};
pub use ended::{
    ENDED_BYTES, ENDED_FOR_NODE, ENDED_FOR_ROOM, ENDED_MOVED, ENDED_UNTRANSLATED, Ended,
};
pub use endpoint::Endpoint;
pub use event::{
    BeginEvent, CAPTURED, DropEvent, EVENT_BEGIN, EVENT_DROP, EVENT_IN, EVENT_KINDS, EVENT_OUT,
    EVENT_RATE, EVENT_RATE_MAX, EVENT_REFUSED, EVENTS_BEGIN, EVENTS_DROP, EVENTS_END,
    EVENTS_REFUSED, EventCount, event_rate, events_setting,
};
pub use fragment::{FRAGMENT_DROP, FRAGMENT_PASS, FRAGMENT_REWRITE, Fragment};
pub use inbound::{Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, LIVE_ORIGIN_SHIFT, Live};
pub(crate) use mapping::packets;
pub use mapping::{
    MAPPING_BY_INTERFACE, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, MAPPING_HANDED_OVER,
    MAPPING_HANDOVER_PENDING, MAPPING_HOST, MAPPING_ORIGIN, MAPPING_PICKUP, Mapping, RECENT,
    RecentAt, origin_tag,
};
pub use new_mappings::{NewMappings, SEARCH_CLASSES, search_class};
pub use node::{
    NODE_PORT_DCCP, NODE_PORT_SCTP, NODE_PORT_TCP, NODE_PORT_UDP, NODE_PORT_UDP_LITE, NodeFlow,
    NodeFlowPorts, NodeProtocol, RESERVED_WORDS, node_port_bit,
};
pub use policy::{ACTION_MASK, Action, POLICY_NO_RULE, POLICY_WAS_BYPASSED, PolicyValue};
pub use port_map::{PORT_MAP_WORDS, PORT_MAPS, PortMapBits, PortMapOwner};
pub use reach::{REACH, Reach, network_bits, network_of};
pub use settings::{
    Limits, NO_LEAK_ADDRESS, NO_LEAK_DROP, NO_LEAK_PASS, PORT_RANGES, PortRange,
    SETTING_ANY_SOURCE, SETTING_BYPASS_CACHE_VALID, SETTING_DRAIN, SETTING_HAIRPIN,
    SETTING_HASH_PORTS, SETTING_IPV6, SETTING_LOG_ENDS, SETTING_PORTS, SETTING_RANDOM_PORTS,
    SETTING_SEVERAL_UPLINKS, SETTING_UDP_ENDPOINTS, Secret, Settings,
};
pub use share::{SHARE_BUCKETS, SHARE_ENTRIES, SHARE_TOTAL, Share, ShareEnded};
pub use traffic::{
    Half, MIN_PAIR_BITS, PAIR_BITS, Pair, RULE_HITS, RuleEnded, RuleHits, TRAFFIC_FULL,
    TRAFFIC_PLAIN, Traffic, packed, pair_index, rule_index, unpacked,
};
pub use tuple::{Tuple, proto};
pub use uplink::{
    MacKey, SOURCE_ANY_IP, SOURCE_NAMED, Source, SourceKey, UPLINK_NUMBERS, UPLINK_OBSERVED,
    UPLINK_ONLY_V4, UPLINK_ONLY_V6, UPLINK_UNTAGGED, UPLINK_V4, UPLINK_V6, Uplink,
};

/// Version of everything in this folder. Pinned maps of a version below [`EARLIEST_LAYOUT`], or of a
/// later one, are not adopted.
///
/// 2 gives a meaning to bits that were unused in 1 and adds maps; every field keeps its place and
/// its meaning. Programs of both may therefore use the same maps at the same time, and an agent
/// adopts those of 1 as they are.
pub const LAYOUT: u32 = 2;

/// The earliest version whose pinned maps are adopted.
pub const EARLIEST_LAYOUT: u32 = 1;
