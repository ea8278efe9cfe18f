//! The eBPF object: checks the pinned maps, creates the missing ones, loads the programs.

use super::hook::{EGRESS, HAIRPIN, INGRESS};
use super::setup::Setup;
use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Map, MapData, MapInfo, MapType, PerCpuArray, PerCpuValues};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use netdp_common::layout;
use netdp_common::layout::{
    Addr, Counters, DropReason, PortMapBits, PortMapOwner, Share, ShareEnded, Tuple, pins,
};
use std::path::Path;

/// Program without effect, for a link that is being moved.
pub const STAND_IN: &str = "stand_in";

/// Program at TC egress of an interface that is being set up: drops forwarded packets.
pub const SHUT: &str = "shut";

/// The least entries of the map of what was carried over from mappings.
const TRAFFIC_LEAST: u32 = 1024;

/// The object built by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdp-ebpf"));

/// Loads the programs over the pinned maps.
pub fn load(bpffs: &Path, setup: &Setup) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries("SNAT", setup.max_flows)
        .map_max_entries("REV_SNAT", setup.max_flows)
        .map_max_entries("TRAFFIC", (setup.max_flows / 4).max(TRAFFIC_LEAST));
    if !setup.hairpin {
        loader.map_max_entries("WIRE_ENDPOINTS", 1);
    }
    for (file, map) in pins::ALL {
        loader.map_pin_path(map, bpffs.join(file));
    }
    let mut object = loader.load(OBJECT).context("creating maps")?;
    let mut names = vec![EGRESS, INGRESS];
    names.extend(setup.hairpin.then_some(HAIRPIN));
    for name in names {
        loaded(&mut object, name)?;
    }
    Ok(object)
}

/// Returns one of the object's programs, loaded into the kernel.
///
/// # Errors
/// Returns an error if the kernel rejects it.
pub fn loaded<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = program(object, name)?;
    if program.fd().is_err() {
        program
            .load()
            .with_context(|| format!("loading the program {name}"))?;
    }
    Ok(program)
}

/// Returns one of the object's programs.
pub fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    object
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is not a TC program"))
}

/// Returns the expected layout of each pinned map: file, type, key bytes, value bytes.
fn layout() -> [(&'static str, MapType, usize, usize); 29] {
    let mapping = (size_of::<Tuple>(), size_of::<layout::Mapping>());
    let policy = (4 + size_of::<Addr>(), size_of::<layout::PolicyValue>());
    [
        (pins::SNAT, MapType::Hash, mapping.0, mapping.1),
        (pins::REV_SNAT, MapType::Hash, mapping.0, mapping.1),
        (pins::POLICY_0, MapType::LpmTrie, policy.0, policy.1),
        (pins::POLICY_1, MapType::LpmTrie, policy.0, policy.1),
        (pins::UPLINKS, MapType::Hash, 4, size_of::<layout::Uplink>()),
        (pins::LOCAL_ADDRS, MapType::Hash, size_of::<Addr>(), 4),
        (
            pins::INBOUND,
            MapType::LruHash,
            size_of::<Tuple>(),
            size_of::<layout::Inbound>(),
        ),
        (
            pins::FRAGMENTS,
            MapType::LruHash,
            size_of::<Tuple>(),
            size_of::<layout::Fragment>(),
        ),
        (
            pins::SETTINGS,
            MapType::Array,
            4,
            size_of::<layout::Settings>(),
        ),
        (
            pins::COUNTERS,
            MapType::PerCpuArray,
            4,
            size_of::<Counters>(),
        ),
        (pins::RESERVED_PORTS, MapType::Array, 4, 8),
        (pins::NODE_PORTS, MapType::Array, 4, 4),
        (
            pins::NODE_PROTOCOLS,
            MapType::Hash,
            size_of::<layout::NodeProtocol>(),
            4,
        ),
        (
            pins::INBOUND_LIVE,
            MapType::Hash,
            size_of::<Tuple>(),
            size_of::<layout::Live>(),
        ),
        (pins::INBOUND_USED, MapType::Array, 4, 4),
        (
            pins::FRAGMENTS_IN,
            MapType::LruHash,
            size_of::<Tuple>(),
            size_of::<layout::Fragment>(),
        ),
        (
            pins::NODE_FLOWS,
            MapType::LruHash,
            size_of::<Tuple>(),
            size_of::<layout::NodeFlow>(),
        ),
        (
            pins::NODE_FLOW_PORTS,
            MapType::Array,
            4,
            size_of::<layout::NodeFlowPorts>(),
        ),
        (pins::LIMITS, MapType::Array, 4, size_of::<layout::Limits>()),
        (pins::SHARES, MapType::Array, 4, size_of::<Share>()),
        (
            pins::SHARES_ENDED,
            MapType::Array,
            4,
            size_of::<ShareEnded>(),
        ),
        (pins::RECENT, MapType::Array, 4, size_of::<Tuple>()),
        (
            pins::RECENT_AT,
            MapType::Array,
            4,
            size_of::<layout::RecentAt>(),
        ),
        (
            pins::PORT_MAP_OWNERS,
            MapType::Array,
            4,
            size_of::<PortMapOwner>(),
        ),
        (pins::PORT_MAPS, MapType::Array, 4, size_of::<PortMapBits>()),
        (
            pins::TRAFFIC,
            MapType::Hash,
            size_of::<Tuple>(),
            size_of::<layout::Traffic>(),
        ),
        (
            pins::COUNTERS_BEFORE,
            MapType::Array,
            4,
            size_of::<Counters>(),
        ),
        (
            pins::RULE_HITS,
            MapType::Array,
            4,
            size_of::<layout::RuleHits>(),
        ),
        (
            pins::BYPASS_CACHE,
            MapType::PerCpuArray,
            4,
            size_of::<layout::Pair>(),
        ),
    ]
}

/// Number of 8-byte counters in layout 1, whose versions appended drop reasons: without those for
/// forged sources, protocols of the node and limits of pods; without the one for IPsec policies;
/// with all.
const FEWER_COUNTERS: [usize; 3] = [23, 26, 27];

/// Counters of an earlier version, for each CPU.
pub struct EarlierCounters(Vec<Counters>);

impl EarlierCounters {
    /// Reads and unpins the counters of an earlier version, whose programs go on counting in a map
    /// of their own until they are replaced. Returns `None` if there are none.
    ///
    /// # Errors
    /// Returns an error if the map can't be read, or its pin can't be removed.
    pub fn take(bpffs: &Path) -> Result<Option<Self>> {
        let path = bpffs.join(pins::COUNTERS);
        if !path.exists() {
            return Ok(None);
        }
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("reading the pinned map {}", path.display()))?;
        let size = info.value_size() as usize;
        let earlier = if size == FEWER_COUNTERS[0] * 8 {
            Self::read::<{ FEWER_COUNTERS[0] }>(&path)?
        } else if size == FEWER_COUNTERS[1] * 8 {
            Self::read::<{ FEWER_COUNTERS[1] }>(&path)?
        } else if size == FEWER_COUNTERS[2] * 8 {
            Self::read::<{ FEWER_COUNTERS[2] }>(&path)?
        } else {
            return Ok(None);
        };
        std::fs::remove_file(&path)
            .with_context(|| format!("removing the pin {}", path.display()))?;
        Ok(Some(earlier))
    }

    fn read<const N: usize>(path: &Path) -> Result<Self> {
        let map = Map::PerCpuArray(MapData::from_pin(path)?);
        let before: PerCpuArray<_, [u64; N]> = map.try_into()?;
        let counted = before.get(&0, 0).context("reading the counters")?;
        Ok(Self(counted.iter().map(|cpu| of_layout_1(cpu)).collect()))
    }

    /// Continues counting from these values, as those of no interface in particular. No program
    /// counts in the new map yet.
    ///
    /// # Errors
    /// Returns an error if the new map can't be written.
    pub fn put(self, bpffs: &Path) -> Result<()> {
        let map = Map::PerCpuArray(MapData::from_pin(bpffs.join(pins::COUNTERS))?);
        let mut counters: PerCpuArray<_, Counters> = map.try_into()?;
        counters
            .set(0, PerCpuValues::try_from(self.0)?, 0)
            .context("writing the counters")
    }
}

/// Returns counters of layout 1, which has no bytes: eight outcomes, four other counters, and the
/// drop reasons.
fn of_layout_1(words: &[u64]) -> Counters {
    let mut counters = Counters::default();
    let outcomes = [
        &mut counters.egress_masqueraded,
        &mut counters.egress_bypassed,
        &mut counters.egress_host,
        &mut counters.egress_replies,
        &mut counters.egress_untouched,
        &mut counters.ingress_translated,
        &mut counters.ingress_passed,
        &mut counters.egress_let_out,
    ];
    let mut words = words.iter();
    for (outcome, word) in outcomes.into_iter().zip(&mut words) {
        outcome.packets = *word;
    }
    let others = [
        &mut counters.errors_translated,
        &mut counters.fragments_held,
        &mut counters.mappings_created,
        &mut counters.ports_changed,
    ];
    for (counter, word) in others.into_iter().zip(&mut words) {
        *counter = *word;
    }
    for (reason, word) in DropReason::ALL.iter().zip(words) {
        *counters.drops.get_mut(*reason) = *word;
    }
    counters
}

/// Checks the maps that are pinned already; aya opens them as they are, except [`EarlierCounters`].
/// Reports whether there are any.
pub fn check_pins(bpffs: &Path) -> Result<bool> {
    let mut found = false;
    for (file, kind, key, value) in layout() {
        let path = bpffs.join(file);
        if !path.exists() {
            continue;
        }
        found = true;
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("reading the pinned map {}", path.display()))?;
        let seen = (
            info.map_type().ok(),
            info.key_size() as usize,
            info.value_size() as usize,
        );
        let is_earlier = file == pins::COUNTERS && FEWER_COUNTERS.contains(&(seen.2 / 8));
        if seen != (Some(kind), key, value) && !is_earlier {
            bail!(
                "the pinned map {} has another layout (type {:?}, key {} bytes, value {} bytes) \
                 than this netdp uses ({kind:?}, {key}, {value}). It belongs to another version. \
                 To continue, run `netdp detach --bpffs {}` (live mappings are lost), or start the \
                 version that made it",
                path.display(),
                seen.0,
                seen.1,
                seen.2,
                bpffs.display()
            );
        }
    }
    Ok(found)
}
