//! The map statics of the environment: configuration, mappings, and other state. Caches, queues and
//! buffers are beside the only code that uses them.
//!
//! Sizes are defaults; the loader overrides them before the maps are created.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use netdp_common::layout::{
    Addr, Counters, Endpoint, Fragment, Inbound, Limits, Live, MacKey, Mapping, NewMappings,
    NodeFlow, NodeFlowPorts, NodeProtocol, PAIR_BITS, PORT_MAPS as PORT_MAPS_LEN, Pair,
    PolicyValue, PortMapBits, PortMapOwner, REACH as REACH_LEN, RECENT as RECENT_LEN,
    RESERVED_WORDS, RULE_HITS as RULE_HITS_LEN, Reach, RecentAt, RuleEnded, RuleHits,
    SHARE_ENTRIES, Settings, Share, ShareEnded, Source, SourceKey, Traffic, Tuple, UPLINK_NUMBERS,
    Uplink,
};

#[btf_map]
pub static SNAT: HashMap<Tuple, Mapping, 262_144> = HashMap::new();
#[btf_map]
pub static REV_SNAT: HashMap<Tuple, Mapping, 262_144> = HashMap::new();
#[btf_map]
pub static POLICY_0: LpmTrie<Addr, PolicyValue, 1_048_576> = LpmTrie::new();
#[btf_map]
pub static POLICY_1: LpmTrie<Addr, PolicyValue, 1_048_576> = LpmTrie::new();
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, 1024> = HashMap::new();
#[btf_map]
pub static LOCAL_ADDRS: HashMap<Addr, u32, 131_072, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub static INBOUND: LruHashMap<Tuple, Inbound, 131_072> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS: LruHashMap<Tuple, Fragment, 16_384> = LruHashMap::new();
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "UPLINK_COUNTERS")]
pub static COUNTERS: PerCpuArray<Counters, { UPLINK_NUMBERS as usize }> = PerCpuArray::new();
/// Written and read by the agent alone.
#[btf_map]
pub static COUNTERS_BEFORE: Array<Counters, { UPLINK_NUMBERS as usize }> = Array::new();
#[btf_map]
pub static RESERVED_PORTS: Array<u64, RESERVED_WORDS> = Array::new();
#[btf_map]
pub static NODE_PORTS: Array<u32, 65_536> = Array::new();
#[btf_map]
pub static NODE_PROTOCOLS: HashMap<NodeProtocol, u32, 4096> = HashMap::new();
/// 131,072 answered inbound flows; memory is allocated per entry.
#[btf_map]
pub static INBOUND_LIVE: HashMap<Tuple, Live, 131_072, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// 1 once anything has been written to [`INBOUND`] or [`INBOUND_LIVE`]: on most nodes never.
#[btf_map]
pub static INBOUND_USED: Array<u32, 1> = Array::new();
#[btf_map]
pub static FRAGMENTS_IN: LruHashMap<Tuple, Fragment, 16_384> = LruHashMap::new();
#[btf_map]
pub static NODE_FLOWS: LruHashMap<Tuple, NodeFlow, 65_536> = LruHashMap::new();
/// Times at which flows were recorded in [`NODE_FLOWS`], by L4 id.
#[btf_map]
pub static NODE_FLOW_PORTS: Array<NodeFlowPorts, 1> = Array::new();
#[btf_map]
pub static LIMITS: Array<Limits, 1> = Array::new();
#[btf_map]
pub static SHARES: Array<Share, { SHARE_ENTRIES }> = Array::new();
#[btf_map]
pub static SHARES_ENDED: Array<ShareEnded, { SHARE_ENTRIES }> = Array::new();
#[btf_map]
pub static RECENT: Array<Tuple, { RECENT_LEN as usize }> = Array::new();
#[btf_map]
pub static PORT_MAP_OWNERS: Array<PortMapOwner, { PORT_MAPS_LEN as usize }> = Array::new();
#[btf_map]
pub static PORT_MAPS: Array<PortMapBits, { PORT_MAPS_LEN as usize }> = Array::new();
#[btf_map]
pub static PORT_SEARCHES: PerCpuArray<NewMappings, 1> = PerCpuArray::new();
/// Refusals by bucket.
#[btf_map]
pub static REFUSALS: Array<u64, { SHARE_ENTRIES }> = Array::new();
#[btf_map]
pub static RECENT_AT: Array<RecentAt, 1> = Array::new();
/// Wire tuples with the first of their ports → the tick at which all of these were taken.
#[btf_map]
pub static EXHAUSTED: LruHashMap<Tuple, u32, 4096> = LruHashMap::new();
/// Endpoints of pods → their port on the wire.
#[btf_map]
pub static ENDPOINTS: LruHashMap<Tuple, u32, 65_536> = LruHashMap::new();
/// Endpoints on the wire → the remote endpoint of a mapping with it. Only used with
/// `--hairpin-interface`; the loader makes it small otherwise.
#[btf_map]
pub static WIRE_ENDPOINTS: LruHashMap<Tuple, Endpoint, 65_536> = LruHashMap::new();
/// The traffic that was carried over from halves of mappings. The loader makes it a quarter of the mapping
/// tables; memory is allocated per entry.
#[btf_map]
pub static TRAFFIC: HashMap<Tuple, Traffic, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub static RULE_HITS: Array<RuleHits, { RULE_HITS_LEN as usize }> = Array::new();
/// Written and read by the agent alone; memory is allocated per entry.
#[btf_map]
pub static RULE_ENDED: HashMap<
    u32,
    RuleEnded,
    { RULE_HITS_LEN as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// Not named as its pin: layout 1 has a map of that name and another size, which is not pinned. Not a
/// per-CPU map: the kernel would reach each value by a pointer in an array of pointers, and values would
/// not begin at cache lines; that costs another two lines for each pair (ADR 0049). The loader makes
/// room for all CPUs.
#[btf_map]
pub static BYPASS_PAIRS: Array<Pair, { 1 << PAIR_BITS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
/// The number of slots of each CPU in [`BYPASS_PAIRS`], as a power of two. Set by the loader before the program is
/// verified, which makes it a constant.
#[unsafe(no_mangle)]
pub static BYPASS_PAIR_BITS: u32 = PAIR_BITS;
/// Which bypassed networks answer.
#[btf_map]
pub static REACH: LruHashMap<Addr, Reach, { REACH_LEN as usize }> = LruHashMap::new();
/// The last IPv4 identifications of each sequence.
#[btf_map]
pub static IP_IDS: Array<u32, { IP_ID_SEQUENCES as usize }> = Array::new();
/// A power of two. Address pairs that share a sequence only skip more numbers.
pub const IP_ID_SEQUENCES: u32 = 4096;
/// The hardware addresses by which the node sends at each uplink; recreated by each agent, which
/// fills it before programs are attached.
#[btf_map]
pub static MACS: HashMap<MacKey, u32, 4096> = HashMap::new();
/// The sources with which packets may leave, by interface; recreated by each agent, which fills it
/// before programs are attached.
#[btf_map]
pub static SOURCES: LpmTrie<SourceKey, Source, 65_536> = LpmTrie::new();
/// Length of a complete [`SourceKey`], in bits.
pub const SOURCE_BITS: u32 = 160;
