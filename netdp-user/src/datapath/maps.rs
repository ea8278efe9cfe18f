//! Typed access to the pinned maps.

use super::counters::CounterMaps;
use super::earlier;
use super::entries::Entries;
use super::mapping_log::SharedLog;
use super::refusals::RefusalMaps;
use super::rule_counts::RuleMaps;
use super::setup::Setup;
use super::sweep::now;
use super::traffic::TrafficMap;
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::flow::stamp;
use netdp_common::layout::Addr;
use netdp_common::layout::Inbound;
use netdp_common::layout::LAYOUT;
use netdp_common::layout::Limits;
use netdp_common::layout::Live;
use netdp_common::layout::Mapping;
use netdp_common::layout::NodeFlowPorts;
use netdp_common::layout::PORT_RANGES;
use netdp_common::layout::PolicyValue;
use netdp_common::layout::PortMapBits;
use netdp_common::layout::PortRange;
use netdp_common::layout::RESERVED_WORDS;
use netdp_common::layout::SETTING_ANY_SOURCE;
use netdp_common::layout::SETTING_BYPASS_CACHE_VALID;
use netdp_common::layout::SETTING_SEVERAL_UPLINKS;
use netdp_common::layout::Settings;
use netdp_common::layout::ShareEnded;
use netdp_common::layout::Tuple;
use netdp_common::layout::UPLINK_OBSERVED;
use netdp_common::layout::Uplink;
use netdp_common::layout::pins;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Error message if a map that earlier versions lack is missing.
pub(super) const NOT_UP_TO_DATE: &str =
    "the pinned maps are of an earlier version; netdp run brings them up to date";

/// Capacity of `inbound_live`, as netdp-ebpf declares it.
const INBOUND_CAPACITY: u32 = 131_072;

/// The check of a packet's source against the interface it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceCheck {
    /// A source that is not routed to that interface is forged.
    Enabled,
    /// Any source may come in by any interface.
    Disabled,
}

/// A trie of the policy.
pub type Trie = LpmTrie<MapData, Addr, PolicyValue>;

/// Every map of the datapath.
pub struct Maps {
    pub(super) snat: HashMap<MapData, Tuple, Mapping>,
    pub(super) rev_snat: HashMap<MapData, Tuple, Mapping>,
    /// Second handles of the two mapping tables, for batched reads.
    pub(super) snat_data: MapData,
    pub(super) rev_snat_data: MapData,
    pub(super) policy: [Trie; 2],
    /// Second handles of the tries, for batched writes.
    pub(super) policy_data: [MapData; 2],
    /// True if the kernel supports batched writes to tries.
    pub(super) batches: bool,
    /// Cached contents of the tries, once they have been read: reading a large one takes long, and
    /// there is no other writer.
    pub(super) policy_entries: [Option<Arc<Entries>>; 2],
    /// True if packets may still query the standby trie.
    pub(super) has_readers: bool,
    uplinks: HashMap<MapData, u32, Uplink>,
    local_addrs: HashMap<MapData, Addr, u32>,
    /// Capacity of `local_addrs`, in addresses.
    address_capacity: usize,
    settings: Array<MapData, Settings>,
    /// `None` if the pins are of layout 1 only.
    pub(super) counters: Option<CounterMaps>,
    /// `None` if the pins are of layout 1 only.
    pub(super) traffic: Option<TrafficMap>,
    /// `None` if the pins are of a version without these maps.
    pub(super) rules: Option<RuleMaps>,
    /// `None` if the pins are of a version without these maps.
    pub(super) refusals: Option<RefusalMaps>,
    /// The lowest number that no rule has had; `None` until a policy is put in force.
    pub(super) next_rule: Option<u32>,
    /// Time at which the policy in force came into force by this handle, in ticks.
    pub(super) swapped_at: Option<u32>,
    pub(super) reserved_ports: Array<MapData, u64>,
    /// `None` if the pins are of a version without this map.
    node_flow_ports: Option<Array<MapData, NodeFlowPorts>>,
    /// `None` if the pins are of a version without these maps.
    pods: Option<PodMaps>,
    /// Whoever is told when mappings end.
    pub(super) log: Option<SharedLog>,
}

/// Maps for the accounting and the limits of pods.
pub(super) struct PodMaps {
    pub(super) limits: Array<MapData, Limits>,
    pub(super) inbound_live: HashMap<MapData, Tuple, Live>,
    /// A second handle, for batched reads.
    pub(super) inbound_live_data: MapData,
    inbound: HashMap<MapData, Tuple, Inbound>,
    /// `None` if the pins are of a version without this map.
    inbound_used: Option<Array<MapData, u32>>,
    /// Handle for batched reads.
    pub(super) shares_data: MapData,
    pub(super) shares_ended: Array<MapData, ShareEnded>,
    /// A second handle, for batched reads.
    pub(super) shares_ended_data: MapData,
    /// Handle for batched reads.
    pub(super) port_map_owners_data: MapData,
    pub(super) port_maps: Array<MapData, PortMapBits>,
}

/// Returns the interfaces that programs were attached to, whichever version pinned the other maps.
///
/// # Errors
/// Returns an error if the map is missing or can't be read.
pub fn pinned_uplinks(bpffs: &Path) -> Result<Vec<u32>> {
    let map = bpffs::open_map(bpffs, pins::UPLINKS)?;
    let uplinks: HashMap<_, u32, Uplink> = Map::HashMap(map).try_into()?;
    Ok(uplinks.keys().collect::<Result<_, _>>()?)
}

impl Maps {
    /// Opens the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if a map is missing or has another type or size.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        let hash = |file: &str| Ok::<_, anyhow::Error>(Map::HashMap(pinned(file)?));
        let trie = |file: &str| Ok::<_, anyhow::Error>(Map::LpmTrie(pinned(file)?));
        let array = |file: &str| Ok::<_, anyhow::Error>(Map::Array(pinned(file)?));
        let maps = Self {
            snat: hash(pins::SNAT)?.try_into()?,
            rev_snat: hash(pins::REV_SNAT)?.try_into()?,
            snat_data: pinned(pins::SNAT)?,
            rev_snat_data: pinned(pins::REV_SNAT)?,
            policy: [
                trie(pins::POLICY_0)?.try_into()?,
                trie(pins::POLICY_1)?.try_into()?,
            ],
            batches: batch::takes_writes(&pinned(pins::POLICY_0)?)?,
            policy_data: [pinned(pins::POLICY_0)?, pinned(pins::POLICY_1)?],
            policy_entries: [None, None],
            has_readers: false,
            uplinks: hash(pins::UPLINKS)?.try_into()?,
            address_capacity: pinned(pins::LOCAL_ADDRS)?
                .info()
                .context("querying the local_addrs map")?
                .max_entries() as usize,
            local_addrs: hash(pins::LOCAL_ADDRS)?.try_into()?,
            settings: array(pins::SETTINGS)?.try_into()?,
            counters: CounterMaps::open(bpffs)?,
            traffic: TrafficMap::open(bpffs)?,
            rules: RuleMaps::open(bpffs)?,
            refusals: RefusalMaps::open(bpffs)?,
            next_rule: None,
            swapped_at: None,
            reserved_ports: array(pins::RESERVED_PORTS)?.try_into()?,
            node_flow_ports: match bpffs.join(pins::NODE_FLOW_PORTS).exists() {
                true => Some(array(pins::NODE_FLOW_PORTS)?.try_into()?),
                false => None,
            },
            pods: match bpffs.join(pins::LIMITS).exists() {
                true => Some(PodMaps {
                    limits: array(pins::LIMITS)?.try_into()?,
                    inbound_live: hash(pins::INBOUND_LIVE)?.try_into()?,
                    inbound_live_data: pinned(pins::INBOUND_LIVE)?,
                    inbound: Map::LruHashMap(pinned(pins::INBOUND)?).try_into()?,
                    inbound_used: match bpffs.join(pins::INBOUND_USED).exists() {
                        true => Some(array(pins::INBOUND_USED)?.try_into()?),
                        false => None,
                    },
                    shares_data: pinned(pins::SHARES)?,
                    shares_ended: array(pins::SHARES_ENDED)?.try_into()?,
                    shares_ended_data: pinned(pins::SHARES_ENDED)?,
                    port_map_owners_data: pinned(pins::PORT_MAP_OWNERS)?,
                    port_maps: array(pins::PORT_MAPS)?.try_into()?,
                }),
                false => None,
            },
            log: None,
        };
        earlier::check_layout(maps.settings()?.layout, bpffs)?;
        Ok(maps)
    }

    /// Tells a log, from now on, of mappings that end by this handle.
    pub(crate) fn tell(&mut self, log: SharedLog) {
        self.log = Some(log);
    }

    /// Reports whether the kernel takes the policy in batches.
    pub const fn takes_batches(&self) -> bool {
        self.batches
    }

    /// Writes the settings that are fixed for the agent's run. The policy in force stays.
    pub(super) fn prepare(&mut self, setup: &Setup) -> Result<()> {
        let mut words = [0u64; RESERVED_WORDS];
        for &port in &setup.reserved_ports {
            words[usize::from(port) / 64] |= 1 << (port % 64);
        }
        for (index, word) in (0..).zip(words) {
            self.reserved_ports
                .set(index, word, 0)
                .context("writing the reserved ports")?;
        }
        let mut settings = self.settings()?;
        // Until a sweep has shown otherwise, mappings may be older than the policy.
        settings.flags = setup.flags();
        if self.interfaces()?.len() > 1 {
            settings.flags |= SETTING_SEVERAL_UPLINKS;
        }
        settings.no_leak = setup.no_leak.raw();
        settings.ports = [PortRange::EMPTY; PORT_RANGES];
        for (slot, range) in settings.ports.iter_mut().zip(&setup.to_ports) {
            *slot = *range;
        }
        settings.events = 0; // Nobody listens to this agent yet.
        // The bypass cache may be of an agent with another setup, or of another version.
        settings.epoch = settings.epoch.wrapping_add(1);
        self.set_settings(&settings)?;
        let mut limits = self.limits()?;
        if limits.secret == [0; 2] {
            limits.secret = setup.secret;
        }
        limits.capacity = u32::try_from(self.capacity()?)?;
        limits.inbound_capacity = INBOUND_CAPACITY;
        limits.flows = setup.pod_flows;
        limits.rate = setup.pod_new_flows;
        limits.burst = setup.pod_new_flows.saturating_mul(2);
        self.pods_mut()?
            .limits
            .set(0, limits, 0)
            .context("writing the limits map")
    }

    /// Makes the programs look up flows of the node on every port: programs of layout 1 record such
    /// flows without a stamp.
    fn stamp_all_ports(&mut self) -> Result<()> {
        let stamp = stamp(now(self)?);
        (self.node_flow_ports.as_mut())
            .context(NOT_UP_TO_DATE)?
            .set(0, NodeFlowPorts([stamp; 65_536]), 0)
            .context("writing the node_flow_ports map")
    }

    /// Records that the maps may hold from here on what programs of this layout write. To be called
    /// before the first of them is attached, and not earlier: until then an agent of the layout
    /// before continues as if nothing had happened, afterwards it refuses.
    ///
    /// # Errors
    /// Returns an error if the settings can't be read or written.
    pub(super) fn begin_layout(&mut self) -> Result<()> {
        let mut settings = self.settings()?;
        if settings.layout == LAYOUT {
            return Ok(());
        }
        if settings.layout != 0 {
            log::info!(
                "upgrading the pinned maps from layout {} to {LAYOUT}; mappings stay, and versions \
                 with the earlier layout refuse them from here on",
                settings.layout
            );
            self.stamp_all_ports()?;
        }
        settings.layout = LAYOUT;
        self.set_settings(&settings)
    }

    /// Returns the limits of pods, and the node's secret.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn limits(&self) -> Result<Limits> {
        (self.pods()?.limits)
            .get(&0, 0)
            .context("reading the limits map")
    }

    /// Makes the programs look up flows that keep the pod's address, if there are any: programs of a
    /// version without `inbound_used` record them without setting it.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read or written.
    pub(super) fn enable_inbound_if_used(&mut self) -> Result<()> {
        let pods = self.pods()?;
        let used = pods.inbound_used.as_ref().context(NOT_UP_TO_DATE)?;
        let is_used = used.get(&0, 0).context("reading the inbound_used map")? != 0;
        let is_empty =
            pods.inbound_live.keys().next().is_none() && pods.inbound.keys().next().is_none();
        if is_used || is_empty {
            return Ok(());
        }
        self.enable_inbound()
    }

    /// Makes the programs look up flows that keep the pod's address.
    ///
    /// # Errors
    /// Returns an error if the map can't be written.
    pub(super) fn enable_inbound(&mut self) -> Result<()> {
        (self.pods_mut()?.inbound_used.as_mut())
            .context(NOT_UP_TO_DATE)?
            .set(0, 1, 0)
            .context("writing the inbound_used map")
    }

    pub(super) fn pods(&self) -> Result<&PodMaps> {
        self.pods.as_ref().context(NOT_UP_TO_DATE)
    }

    pub(super) fn pods_mut(&mut self) -> Result<&mut PodMaps> {
        self.pods.as_mut().context(NOT_UP_TO_DATE)
    }

    /// Enables or disables the check of a packet's source against the interface it came from.
    ///
    /// # Errors
    /// Returns an error if the settings can't be read or written.
    pub fn set_source_check(&mut self, check: SourceCheck) -> Result<()> {
        let flags = self.settings()?.flags;
        self.set_flags(match check {
            SourceCheck::Enabled => flags & !SETTING_ANY_SOURCE,
            SourceCheck::Disabled => flags | SETTING_ANY_SOURCE,
        })
    }

    /// Returns the capacity of the mapping tables, in mappings.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report it.
    pub fn capacity(&self) -> Result<usize> {
        let info = self.snat_data.info().context("querying the snat map")?;
        Ok(info.max_entries() as usize)
    }

    /// Returns the capacity for the node's addresses: a map that an earlier version created keeps
    /// its size.
    pub const fn address_capacity(&self) -> usize {
        self.address_capacity
    }

    /// Returns the settings in force.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("reading the settings map")
    }

    pub(super) fn set_settings(&mut self, settings: &Settings) -> Result<()> {
        self.settings
            .set(0, settings, 0)
            .context("writing the settings map")
    }

    /// Invalidates everything that the programs have cached. To be called after the change.
    pub(super) fn next_epoch(&mut self) -> Result<()> {
        let mut settings = self.settings()?;
        settings.epoch = settings.epoch.wrapping_add(1);
        self.set_settings(&settings)
    }

    /// Lets the programs cache bypassed pairs: no live mapping has a destination that the policy
    /// bypasses.
    pub(super) fn enable_bypass_cache(&mut self) -> Result<()> {
        let flags = self.settings()?.flags;
        self.set_flags(flags | SETTING_BYPASS_CACHE_VALID)
    }

    /// Keeps the programs from caching bypassed pairs until the next sweep has found no such
    /// mapping.
    pub(super) fn disable_bypass_cache(&mut self) -> Result<()> {
        let flags = self.settings()?.flags;
        self.set_flags(flags & !SETTING_BYPASS_CACHE_VALID)
    }

    /// Writes the flags if they differ.
    fn set_flags(&mut self, flags: u32) -> Result<()> {
        let mut settings = self.settings()?;
        if settings.flags == flags {
            return Ok(());
        }
        settings.flags = flags;
        self.set_settings(&settings)
    }

    pub(super) fn add_local(&mut self, ip: IpAddr) -> Result<()> {
        self.local_addrs
            .insert(Addr::from(ip), 1, 0)
            .with_context(|| format!("adding the node's address {ip}"))?;
        self.next_epoch()
    }

    pub(super) fn remove_local(&mut self, ip: IpAddr) -> Result<()> {
        ignore_missing(self.local_addrs.remove(&Addr::from(ip)))
            .with_context(|| format!("removing the node's address {ip}"))?;
        self.next_epoch()
    }

    /// Returns the addresses that the datapath treats as the node's own.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn local_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        self.local_addrs
            .keys()
            .map(|key| key.map(IpAddr::from).context("reading local_addrs"))
            .collect()
    }

    pub(super) fn set_uplink(&mut self, ifindex: u32, uplink: &Uplink) -> Result<()> {
        let mut settings = self.settings()?;
        if settings.flags & SETTING_SEVERAL_UPLINKS == 0
            && self.interfaces()?.iter().any(|other| *other != ifindex)
        {
            // The flag is never cleared: packets that came in by one of them may still be in
            // flight.
            settings.flags |= SETTING_SEVERAL_UPLINKS;
            self.set_settings(&settings)?;
        }
        let uplink = self.numbered(ifindex, uplink)?;
        // Without a change the programs' caches stay valid.
        if self.uplinks.get(&ifindex, 0).is_ok_and(|now| now == uplink) {
            return Ok(());
        }
        self.uplinks
            .insert(ifindex, uplink, 0)
            .with_context(|| format!("writing the uplink with index {ifindex}"))?;
        self.next_epoch()
    }

    pub(super) fn remove_uplink(&mut self, ifindex: u32) -> Result<()> {
        ignore_missing(self.uplinks.remove(&ifindex))
            .with_context(|| format!("removing the uplink with index {ifindex}"))?;
        self.next_epoch()
    }

    /// Returns the interface indexes of the uplinks.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn uplinks(&self) -> Result<Vec<u32>> {
        let mut found = self.interfaces()?;
        found.retain(|ifindex| {
            let uplink = self.uplinks.get(ifindex, 0);
            uplink.is_ok_and(|uplink| uplink.flags & UPLINK_OBSERVED == 0)
        });
        Ok(found)
    }

    /// Returns the indexes of all interfaces with programs, except hairpin ones.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn interfaces(&self) -> Result<Vec<u32>> {
        self.uplinks
            .keys()
            .map(|key| key.context("reading the uplinks map"))
            .collect()
    }

    /// Returns the entry of an uplink.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn uplink(&self, ifindex: u32) -> Result<Uplink> {
        self.uplinks
            .get(&ifindex, 0)
            .with_context(|| format!("reading the uplink with index {ifindex}"))
    }
}

/// Treats a missing key as success: it was to be removed.
pub(super) fn ignore_missing(
    result: Result<(), aya::maps::MapError>,
) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(err))
            if err.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
