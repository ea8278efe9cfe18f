//! The datapath's maps, opened so that the kernel refuses every write through them.

use crate::datapath::{bpffs, syscall};
use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use aya::programs::loaded_programs;
use netdp_common::layout::{
    Addr, Endpoint, Fragment, Inbound, LAYOUT, Limits, Live, MacKey, Mapping, NodeFlow,
    NodeFlowPorts, NodeProtocol, PolicyValue, PortMapBits, PortMapOwner, RecentAt, Settings, Share,
    ShareEnded, Source, SourceKey, Traffic, Tuple, Uplink, pins,
};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h, Linux 6.12).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;

/// A descriptor through which the map can't be written (`BPF_F_RDONLY`, same file).
const BPF_F_RDONLY: u32 = 1 << 3;

/// Name of the program that has every map of the decisions.
const PROGRAM: &str = "egress_snat";

/// The maps that decisions are made by. Look-ups only: no question costs a walk.
pub struct LiveMaps {
    pub(super) settings: Array<MapData, Settings>,
    pub(super) limits: Array<MapData, Limits>,
    pub(super) uplinks: HashMap<MapData, u32, Uplink>,
    pub(super) local_addrs: HashMap<MapData, Addr, u32>,
    pub(super) policy: [LpmTrie<MapData, Addr, PolicyValue>; 2],
    pub(super) snat: HashMap<MapData, Tuple, Mapping>,
    pub(super) rev_snat: HashMap<MapData, Tuple, Mapping>,
    pub(super) traffic: HashMap<MapData, Tuple, Traffic>,
    pub(super) shares: Array<MapData, Share>,
    pub(super) shares_ended: Array<MapData, ShareEnded>,
    pub(super) recent: Array<MapData, Tuple>,
    pub(super) recent_at: Array<MapData, RecentAt>,
    pub(super) inbound: HashMap<MapData, Tuple, Inbound>,
    pub(super) inbound_live: HashMap<MapData, Tuple, Live>,
    pub(super) inbound_used: Array<MapData, u32>,
    pub(super) node_flows: HashMap<MapData, Tuple, NodeFlow>,
    pub(super) node_flow_ports: Array<MapData, NodeFlowPorts>,
    pub(super) node_ports: Array<MapData, u32>,
    pub(super) node_protocols: HashMap<MapData, NodeProtocol, u32>,
    pub(super) reserved_ports: Array<MapData, u64>,
    pub(super) port_map_owners: Array<MapData, PortMapOwner>,
    pub(super) port_maps: Array<MapData, PortMapBits>,
    pub(super) fragments: HashMap<MapData, Tuple, Fragment>,
    pub(super) fragments_in: HashMap<MapData, Tuple, Fragment>,
    /// Slots of the bypass cache, as a power of two.
    pub(super) pair_bits: u32,
    pub(super) unpinned: Unpinned,
    /// Another policy to decide by than the one in force.
    pub(super) other_policy: Option<OtherPolicy>,
}

/// A policy that is not in force: an address's entry.
pub(super) type OtherPolicy = Box<dyn Fn(&Addr) -> Option<PolicyValue>>;

/// The maps that each agent creates anew, as the loaded programs have them. Each is `None` if no
/// program is loaded over the pinned maps, or this process may not ask for it.
#[derive(Default)]
pub(super) struct Unpinned {
    pub(super) macs: Option<HashMap<MapData, MacKey, u32>>,
    pub(super) sources: Option<LpmTrie<MapData, SourceKey, Source>>,
    pub(super) exhausted: Option<HashMap<MapData, Tuple, u32>>,
    pub(super) endpoints: Option<HashMap<MapData, Tuple, u32>>,
    pub(super) wire_endpoints: Option<HashMap<MapData, Tuple, Endpoint>>,
}

impl LiveMaps {
    /// Opens the maps pinned below `dir`, and those of the programs loaded over them.
    ///
    /// # Errors
    /// Returns an error that names the directory if no datapath is pinned there, or it is of
    /// another layout.
    pub fn open(dir: &Path) -> Result<Self> {
        ensure!(
            bpffs::is_pinned(dir),
            "no maps of netdp in {}: no agent has run on this node, or it runs with another --bpffs",
            dir.display()
        );
        let settings = pinned(dir, pins::SETTINGS)?;
        let settings_id = settings.info().context("querying the settings map")?.id();
        let settings: Array<_, Settings> = Map::Array(settings).try_into()?;
        let layout = settings
            .get(&0, 0)
            .context("reading the settings map")?
            .layout;
        // 0: no program has been attached yet.
        ensure!(
            matches!(layout, 0 | LAYOUT),
            "the maps in {} have layout {layout}, and this version of netdp explains {LAYOUT}: \
             run the netdp that the agent runs",
            dir.display()
        );
        let pairs = pinned(dir, pins::BYPASS_CACHE)?;
        let pair_slots = pairs.info().context("querying the bypass cache")?;
        Ok(Self {
            limits: array(dir, pins::LIMITS)?.try_into()?,
            uplinks: hash(dir, pins::UPLINKS)?.try_into()?,
            local_addrs: hash(dir, pins::LOCAL_ADDRS)?.try_into()?,
            policy: [
                trie(dir, pins::POLICY_0)?.try_into()?,
                trie(dir, pins::POLICY_1)?.try_into()?,
            ],
            snat: hash(dir, pins::SNAT)?.try_into()?,
            rev_snat: hash(dir, pins::REV_SNAT)?.try_into()?,
            traffic: hash(dir, pins::TRAFFIC)?.try_into()?,
            shares: array(dir, pins::SHARES)?.try_into()?,
            shares_ended: array(dir, pins::SHARES_ENDED)?.try_into()?,
            recent: array(dir, pins::RECENT)?.try_into()?,
            recent_at: array(dir, pins::RECENT_AT)?.try_into()?,
            inbound: lru(dir, pins::INBOUND)?.try_into()?,
            inbound_live: hash(dir, pins::INBOUND_LIVE)?.try_into()?,
            inbound_used: array(dir, pins::INBOUND_USED)?.try_into()?,
            node_flows: lru(dir, pins::NODE_FLOWS)?.try_into()?,
            node_flow_ports: array(dir, pins::NODE_FLOW_PORTS)?.try_into()?,
            node_ports: array(dir, pins::NODE_PORTS)?.try_into()?,
            node_protocols: hash(dir, pins::NODE_PROTOCOLS)?.try_into()?,
            reserved_ports: array(dir, pins::RESERVED_PORTS)?.try_into()?,
            port_map_owners: array(dir, pins::PORT_MAP_OWNERS)?.try_into()?,
            port_maps: array(dir, pins::PORT_MAPS)?.try_into()?,
            fragments: lru(dir, pins::FRAGMENTS)?.try_into()?,
            fragments_in: lru(dir, pins::FRAGMENTS_IN)?.try_into()?,
            pair_bits: pair_slots.max_entries().max(2).ilog2(),
            unpinned: Unpinned::find(settings_id),
            settings,
            other_policy: None,
        })
    }

    /// Decides by another policy than the one in force.
    pub(in crate::explain) fn set_policy(&mut self, policy: OtherPolicy) {
        self.other_policy = Some(policy);
    }

    /// Returns the settings in force.
    pub(super) fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("reading the settings map")
    }

    /// Returns the entry of an interface; `None` if it has no programs.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn uplink(&self, ifindex: u32) -> Result<Option<Uplink>> {
        match self.uplinks.get(&ifindex, 0) {
            Ok(uplink) => Ok(Some(uplink)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(err) => Err(err).context("reading the uplinks map"),
        }
    }
}

impl Unpinned {
    /// Finds the maps of the program that was loaded last over the settings map with this id. An
    /// agent fills its maps before it attaches its programs.
    fn find(settings: u32) -> Self {
        let mut newest = None;
        for program in loaded_programs() {
            // Listing programs needs CAP_SYS_ADMIN; one that has ended meanwhile is none.
            let Ok(program) = program else { continue };
            if program.name_as_str() != Some(PROGRAM) {
                continue;
            }
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            if maps.contains(&settings) {
                newest = newest.max(Some((program.id(), maps)));
            }
        }
        let mut found = Self::default();
        for id in newest.map(|(_, maps)| maps).unwrap_or_default() {
            // A map that is gone with its program, or is another version's, is none.
            let Ok(info) = MapInfo::from_id(id) else {
                continue;
            };
            match info.name_as_str() {
                Some("MACS") => found.macs = as_hash(id),
                Some("SOURCES") => {
                    found.sources = by_id(id)
                        .ok()
                        .and_then(|map| Map::LpmTrie(map).try_into().ok());
                }
                Some("EXHAUSTED") => found.exhausted = as_lru(id),
                Some("ENDPOINTS") => found.endpoints = as_lru(id),
                Some("WIRE_ENDPOINTS") => found.wire_endpoints = as_lru(id),
                _ => {}
            }
        }
        found
    }
}

fn as_hash<K: Pod, V: Pod>(id: u32) -> Option<HashMap<MapData, K, V>> {
    Map::HashMap(by_id(id).ok()?).try_into().ok()
}

fn as_lru<K: Pod, V: Pod>(id: u32) -> Option<HashMap<MapData, K, V>> {
    Map::LruHashMap(by_id(id).ok()?).try_into().ok()
}

fn array(dir: &Path, file: &str) -> Result<Map> {
    pinned(dir, file).map(Map::Array)
}

fn hash(dir: &Path, file: &str) -> Result<Map> {
    pinned(dir, file).map(Map::HashMap)
}

fn lru(dir: &Path, file: &str) -> Result<Map> {
    pinned(dir, file).map(Map::LruHashMap)
}

fn trie(dir: &Path, file: &str) -> Result<Map> {
    pinned(dir, file).map(Map::LpmTrie)
}

/// Opens a pinned map for reading.
fn pinned(dir: &Path, file: &str) -> Result<MapData> {
    /// The member of `union bpf_attr` for `BPF_OBJ_GET`.
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = dir.join(file);
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        pathname: name.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: BPF_F_RDONLY,
    };
    // SAFETY: the attribute is that of the command, and the path outlives the call.
    let fd = unsafe { syscall::descriptor(BPF_OBJ_GET, &mut attr) };
    let fd = fd.with_context(|| format!("opening the pinned map {}", path.display()))?;
    Ok(MapData::from_fd(fd)?)
}

/// Opens a map for reading, by its id in the kernel.
fn by_id(id: u32) -> Result<MapData> {
    /// The member of `union bpf_attr` for `BPF_MAP_GET_FD_BY_ID`.
    #[repr(C)]
    struct Attr {
        map_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attr = Attr {
        map_id: id,
        next_id: 0,
        open_flags: BPF_F_RDONLY,
    };
    // SAFETY: the attribute is that of the command.
    let fd = unsafe { syscall::descriptor(BPF_MAP_GET_FD_BY_ID, &mut attr) };
    Ok(MapData::from_fd(
        fd.context("opening a map of the program")?,
    )?)
}
