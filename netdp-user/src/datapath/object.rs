//! The eBPF object: checks the pinned maps, creates the missing ones, loads the programs.

use super::hook::{EGRESS, HAIRPIN, INGRESS};
use super::setup::Setup;
use crate::limits;
use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Map, MapInfo, MapType};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netdp_common::layout;
use netdp_common::layout::{
    Addr, Counters, PortMapBits, PortMapOwner, Share, ShareEnded, Tuple, pins,
};
use std::io::ErrorKind;
use std::path::Path;

/// Program without effect, for a link that is being moved.
pub const STAND_IN: &str = "stand_in";

/// Program at TC egress of an interface that is being set up: drops forwarded packets.
pub const SHUT: &str = "shut";

/// Times that loading a program is tried again, as by libbpf.
const LOAD_TRIES: u32 = 5;

/// Minimum number of entries of `traffic`.
const TRAFFIC_LEAST: u32 = 1024;

/// The object built by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdp-ebpf"));

/// Loads the programs over the pinned maps.
pub fn load(bpffs: &Path, setup: &Setup) -> Result<Ebpf> {
    let cpus = limits::cpus()?;
    let pair_bits = pair_bits(bpffs, cpus)?;
    let pairs = u32::try_from(cpus << pair_bits).context("too many CPUs for the bypass cache")?;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("BYPASS_PAIR_BITS", &pair_bits, true)
        .map_max_entries("BYPASS_PAIRS", pairs)
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

/// Returns a map of the object, which need not be pinned.
///
/// # Errors
/// Returns an error if the object has no map of this name.
pub fn map_mut<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    let map = object.map_mut(name);
    map.with_context(|| format!("the eBPF object has no map {name}"))
}

/// Returns the number of slots of each CPU in the bypass cache, as a power of two: in the one that is
/// pinned, or by the number of CPUs.
fn pair_bits(bpffs: &Path, cpus: u64) -> Result<u32> {
    let pin = bpffs.join(pins::BYPASS_CACHE);
    if pin.exists() {
        let info = MapInfo::from_pin(&pin)
            .with_context(|| format!("reading the pinned map {}", pin.display()))?;
        let of_cpu = u64::from(info.max_entries()) / cpus.max(1);
        return Ok(of_cpu.max(1).ilog2());
    }
    Ok(limits::pair_bits(cpus))
}

/// Returns one of the object's programs, loaded into the kernel.
///
/// # Errors
/// Returns an error if the kernel rejects it.
pub fn loaded<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = program(object, name)?;
    if program.fd().is_err() {
        let mut loaded = program.load();
        for _ in 0..LOAD_TRIES {
            if !loaded.as_ref().is_err_and(is_interrupted) {
                break;
            }
            loaded = program.load();
        }
        loaded.with_context(|| format!("loading the program {name}"))?;
    }
    Ok(program)
}

/// Reports whether the verifier gave up because a signal was pending (`do_check`, kernel/bpf/verifier.c).
fn is_interrupted(err: &ProgramError) -> bool {
    matches!(err, ProgramError::LoadError { io_error, .. } if io_error.kind() == ErrorKind::WouldBlock)
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
fn layout() -> [(&'static str, MapType, usize, usize); 37] {
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
            pins::RULE_ENDED,
            MapType::Hash,
            4,
            size_of::<layout::RuleEnded>(),
        ),
        (
            pins::BYPASS_CACHE,
            MapType::Array,
            4,
            size_of::<layout::Pair>(),
        ),
        (
            pins::REACH,
            MapType::LruHash,
            size_of::<Addr>(),
            size_of::<layout::Reach>(),
        ),
        (
            pins::PORT_SEARCHES,
            MapType::PerCpuArray,
            4,
            size_of::<layout::NewMappings>(),
        ),
        (pins::REFUSALS, MapType::Array, 4, 8),
        (pins::EVENTS, MapType::RingBuf, 0, 0),
        (
            pins::EVENT_COUNTS,
            MapType::PerCpuArray,
            4,
            size_of::<layout::EventCount>(),
        ),
        (pins::ENDED, MapType::RingBuf, 0, 0),
        (pins::ENDED_LOST, MapType::PerCpuArray, 4, 8),
    ]
}

/// Checks the maps that are pinned already; aya opens them as they are. Reports whether there are
/// any.
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
        if seen != (Some(kind), key, value) {
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
