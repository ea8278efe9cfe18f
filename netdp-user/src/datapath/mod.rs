//! User-space side of the datapath: loads and attaches the programs, and is the only user-space
//! writer of the maps.
//!
//! Maps and links are pinned below one bpffs directory and outlive the agent.

mod batch;
pub mod bpffs;
mod clsact;
mod endpoints;
mod entries;
mod filter;
mod flows;
mod front;
mod handover;
mod history;
mod links;
mod macs;
pub mod maps;
mod mounts;
mod node;
mod object;
mod orphans;
mod placed;
mod policy;
mod self_check;
mod sources;
mod sweep;
mod tap;
mod tcx;
mod tracked;

pub use bpffs::is_pinned;
pub use clsact::remove_filters;
pub use flows::FlowRecord;
pub(crate) use flows::protocol_name;
pub use handover::Handover;
pub use history::History;
pub use links::{Attached, Hook, Mechanism};
pub use maps::Maps;
pub use node::NodeMaps;
pub use orphans::{Traces, adopt, traces};
pub use placed::{Ahead, Findings, Found, Placed, Watched};
pub use policy::PolicyChange;
pub use sweep::{SweepRules, Sweeper, Swept};
pub use tap::{Effect, Rules, Tap};
pub use tracked::{forget, is_marked, may_be_translated, untranslated};

use crate::conntrack::Conntrack;
use crate::limits;
use crate::reconcile::Change;
use crate::uplinks::{LinkLayer, Uplink};
use anyhow::{Context as _, Result, bail};
use aya::programs::SchedClassifier;
use aya_log::EbpfLogger;
use netdp_common::layout;
use netdp_common::layout::{
    Addr, NO_LEAK_ADDRESS, NO_LEAK_DROP, NO_LEAK_PASS, PortRange, SETTING_DRAIN, SETTING_HAIRPIN,
    SETTING_HASH_PORTS, SETTING_IPV6, SETTING_PORTS, SETTING_RANDOM_PORTS, SETTING_UDP_ENDPOINTS,
    Secret, UPLINK_OBSERVED, UPLINK_UNTAGGED, UPLINK_V4, UPLINK_V6,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Settings of the datapath that are fixed at the agent's start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// True to translate IPv6 as well.
    pub enable_ipv6: bool,
    /// Capacity of the mapping tables, in mappings. Maps that are pinned already keep their size.
    pub max_flows: u32,
    /// The only ports from which TCP and UDP mappings get theirs; at most [`layout::PORT_RANGES`]
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
    /// Mechanism by which programs are attached.
    pub mechanism: Mechanism,
}

impl Setup {
    /// Returns the bits of [`layout::Settings::flags`].
    fn flags(&self) -> u32 {
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
    /// By a hash of the tuple.
    Hash,
    /// Always a random one.
    Random,
}

/// Effect of a policy change on live flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReload {
    /// They live on as they were made.
    Sticky,
    /// Those that the policy would not make any more end at once.
    Cutover,
    /// Those end when they have been idle for half a minute.
    Drain,
}

/// Treatment of packets that can't be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NoLeak {
    /// They are dropped.
    Drop,
    /// They leave with the pod's address.
    Pass,
    /// They leave with the node's address; answers do not come back.
    AddressOnly,
}

impl NoLeak {
    const fn raw(self) -> u32 {
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

/// The loaded programs with their maps and links.
pub struct Datapath {
    /// Kernel features that were detected at the start.
    kernel: Kernel,
    object: aya::Ebpf,
    maps: Maps,
    node: NodeMaps,
    links: links::Links,
    on_reload: OnReload,
    /// True if maps of an earlier agent were adopted.
    adopted: bool,
    bpffs: PathBuf,
    /// Reason why pins and maps end with this mount namespace, if they do.
    fleeting: Option<String>,
}

impl Datapath {
    /// Loads the programs, over the maps pinned below `bpffs` if there are any. Attaches nothing
    /// yet.
    ///
    /// # Errors
    /// Returns an error if the bpffs can't be mounted, the pinned maps have another layout,
    /// privileges are missing, or the kernel rejects the programs.
    pub fn load(bpffs: &Path, setup: &Setup) -> Result<Self> {
        let mounted = bpffs::ensure(bpffs)?;
        let fleeting = bpffs::is_fleeting(bpffs, mounted);
        adopt(bpffs)?;
        let counted = object::Carried::take(bpffs)?;
        let adopted = object::check_pins(bpffs)?;
        if !adopted {
            limits::check_memory(setup.max_flows)?;
        }
        let mut object = object::load(bpffs, setup)?;
        if let Some(counted) = counted {
            counted.put(bpffs)?;
        }
        let mut maps = Maps::open(bpffs)?;
        maps.prepare(setup)?;
        maps.note_inbound()?;
        if setup.hairpin {
            endpoints::fill(&mut object, &maps)?;
        }
        let capacity = maps.capacity()?;
        if capacity != setup.max_flows as usize {
            log::warn!(
                "the pinned maps hold {capacity} mappings and keep that size, not --max-flows {}; \
                 it changes after `netdp detach`",
                setup.max_flows
            );
        }
        let kernel = Kernel {
            tcx: tcx::is_known().context("asking whether the kernel has TCX")?,
            trie_batches: maps.takes_batches(),
        };
        Ok(Self {
            kernel,
            object,
            maps,
            node: NodeMaps::open(bpffs)?,
            links: links::Links::new(bpffs, setup.mechanism, kernel.tcx)?,
            on_reload: setup.on_reload,
            adopted,
            bpffs: bpffs.to_owned(),
            fleeting,
        })
    }

    /// Returns the log of the programs. To be called once.
    ///
    /// # Errors
    /// Returns an error if it was taken already.
    pub fn take_log(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.object).context("opening the programs' log")
    }

    /// Reports whether maps of an earlier agent were adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Returns the kernel features that were detected.
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Treats uplinks that are attached to from here on as new interfaces.
    pub const fn set_started(&mut self) {
        self.links.set_started();
    }

    /// Returns the reason why the pins end with the agent's mount namespace, if they do.
    pub fn fleeting(&self) -> Option<&str> {
        self.fleeting.as_deref()
    }

    /// Returns the maps, for reading.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Returns the maps, for writing.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Returns the maps of ports and protocols that the node itself receives.
    pub fn node_mut(&mut self) -> &mut NodeMaps {
        &mut self.node
    }

    /// Returns the attached programs.
    pub fn attached(&self) -> Vec<Attached> {
        self.links.attached()
    }

    /// Returns the links and pins that should exist, to be checked on another thread.
    pub fn watched(&self) -> Watched {
        let maps = layout::pins::ALL
            .iter()
            .map(|(file, _)| self.bpffs.join(file));
        Watched {
            placed: self.links.placed(),
            bpffs: self.bpffs.clone(),
            pins: maps.chain(self.links.pins()).collect(),
        }
    }

    /// Returns the places where programs should be.
    pub fn placed(&self) -> Vec<Placed> {
        self.links.placed()
    }

    /// Moves an uplink's program ahead of third-party ones.
    ///
    /// # Errors
    /// Returns an error if no place is left ahead of them, or the kernel refuses; nothing has
    /// changed then.
    pub fn overtake(&mut self, placed: &Placed) -> Result<()> {
        self.links
            .overtake(&mut self.object, placed)
            .with_context(|| format!("on {}", placed.interface))
    }

    /// Returns the reason why a link could not be pinned when it was created.
    pub fn unpinned(&self) -> Option<&str> {
        self.links.unpinned()
    }

    /// Restores missing pins, and mounts the bpffs again if necessary. Returns the number of
    /// objects pinned.
    ///
    /// # Errors
    /// Returns an error that names the object that can't be pinned, and the reason. It stays in
    /// force as long as this process lives.
    pub fn pin(&mut self) -> Result<usize> {
        bpffs::ensure(&self.bpffs)?;
        let mut pinned = 0;
        for (file, name) in layout::pins::ALL {
            let pin = self.bpffs.join(file);
            if pin.exists() {
                continue;
            }
            let map = self.object.map(name);
            map.with_context(|| format!("the eBPF object has no map {name}"))?
                .pin(&pin)
                .with_context(|| format!("pinning the map {}", pin.display()))?;
            pinned += 1;
        }
        Ok(pinned + self.links.pin()?)
    }

    /// Detaches programs of netdp whose pins are out of reach. Returns what was removed, a line
    /// each.
    ///
    /// # Errors
    /// Returns an error if the kernel does not list its programs, or refuses to detach one.
    pub fn remove_orphans(&self) -> Result<Vec<String>> {
        let placed = self.links.placed();
        let keep = placed.iter().map(|it| (it.ifindex, it.hook, it.program));
        let mut removed = Vec::new();
        orphans::remove(&keep.collect(), &mut removed)?;
        Ok(removed)
    }

    /// Detaches all programs, and removes pins and maps. Returns what was removed, a line each.
    ///
    /// # Errors
    /// Returns an error that names what could not be removed.
    pub fn remove(&mut self) -> Result<Vec<String>> {
        let mut removed = self.links.detach_all();
        let taken = take_off(&self.bpffs)?;
        removed.extend(taken.clear_up(std::iter::once(&self.maps)));
        Ok(removed)
    }

    /// Applies one change to the datapath.
    ///
    /// # Errors
    /// Returns an error that names the object if the kernel refuses the change.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::SetPolicy(rules) => {
                let history = match self.on_reload {
                    OnReload::Sticky | OnReload::Drain => History::Keep,
                    OnReload::Cutover => History::Forget,
                };
                self.maps.set_policy(rules, history).map(drop)
            }
            Change::AddLocal(ip) => self.maps.add_local(*ip),
            Change::RemoveLocal(ip) => self.maps.remove_local(*ip),
            Change::AddMac(mac) => macs::add(&mut self.object, mac),
            Change::RemoveMac(mac) => macs::remove(&mut self.object, mac),
            Change::SetSource(asked, given) => sources::set(&mut self.object, asked, given),
            Change::RemoveSource(asked) => sources::remove(&mut self.object, asked),
            Change::SetUplink(uplink) => self.maps.set_uplink(uplink.ifindex, &entry(uplink)),
            Change::Attach(uplink) if uplink.link_layer == LinkLayer::Other => bail!(
                "{} is of a kind whose packets netdp can't parse: they begin neither with Ethernet nor \
                 with bare IP, as InfiniBand's do, or those of GRE without `remote`; give that one, or \
                 name other uplinks with --uplink",
                uplink.name
            ),
            Change::Attach(uplink) => {
                self.links
                    .attach(&mut self.object, uplink)
                    .with_context(|| format!("attaching to uplink {}", uplink.name))?;
                // The replaced programs may have recorded inbound flows meanwhile.
                self.maps.note_inbound()
            }
            Change::SetObserved(link) => {
                let mut entry = entry(link);
                entry.flags |= UPLINK_OBSERVED;
                self.maps.set_uplink(link.ifindex, &entry)
            }
            Change::Observe(link) => self
                .links
                .observe(&mut self.object, link)
                .with_context(|| format!("looking at what comes in by {}", link.name)),
            Change::Detach { ifindex, name } => {
                self.links.detach(*ifindex, name)?;
                self.maps.remove_uplink(*ifindex)
            }
            Change::AttachPods { ifindex, name } => self
                .links
                .attach_pods(&mut self.object, *ifindex, name)
                .with_context(|| format!("attaching hairpin to {name}")),
            Change::DetachPods { ifindex, name } => self.links.detach_pods(*ifindex, name),
        }
    }

    /// Discards the record of destinations that earlier policies bypassed: connections of that time
    /// have ended, or count as new ones now.
    ///
    /// # Errors
    /// Returns an error if the policy can't be read or written.
    pub fn forget_earlier_policies(&mut self) -> Result<()> {
        self.maps.forget_earlier_policies()
    }

    /// Prepares the standby trie for the next policy change, so that little remains to be written
    /// then. Returns the number of writes.
    ///
    /// # Errors
    /// Returns an error if the standby trie can't be written; the policy in force is not affected.
    pub fn prepare_policy(&mut self) -> Result<usize> {
        self.maps.prepare_policy()
    }

    /// Publishes a result of a sweep to the programs: that no mapping lives whose destination the
    /// policy bypasses. Does so only if nothing has changed since the sweep began.
    ///
    /// # Errors
    /// Returns an error if the settings map can't be read or written.
    pub fn settle(&mut self, swept: &Swept) -> Result<()> {
        match swept.none_sticky {
            Some(epoch) if epoch == self.maps.settings()?.epoch => self.maps.set_none_sticky(true),
            _ => Ok(()),
        }
    }

    /// Returns the loaded program of a hook, for test runs.
    ///
    /// # Errors
    /// Returns an error if the eBPF object has no such program.
    pub fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        object::program(&mut self.object, hook.program())
    }

    /// Sets the datapath's clock, and the sweep's, `ticks` (see [`netdp_common::flow`]) ahead
    /// of the monotonic clock. For tests.
    ///
    /// # Errors
    /// Returns an error if the settings map can't be read or written.
    pub fn set_clock_offset(&mut self, ticks: u32) -> Result<()> {
        let mut settings = self.maps.settings()?;
        settings.clock_offset = ticks;
        self.maps.set_settings(&settings)
    }

    /// Detaches the hairpin program of an earlier agent from all interfaces except these.
    ///
    /// # Errors
    /// Returns an error if a pin can't be removed.
    pub fn detach_pods_except(&mut self, keep: &BTreeMap<u32, String>) -> Result<()> {
        let uplinks = self.maps.interfaces()?;
        self.links
            .detach_pods_where(|ifindex| !keep.contains_key(&ifindex), &uplinks)
    }

    /// Returns the uplinks that an earlier agent attached to.
    ///
    /// # Errors
    /// Returns an error if the uplinks map can't be read.
    pub fn known_uplinks(&self) -> Result<Vec<u32>> {
        self.maps.uplinks()
    }

    /// Returns all interfaces that an earlier agent attached to.
    ///
    /// # Errors
    /// Returns an error if the uplinks map can't be read.
    pub fn known_interfaces(&self) -> Result<Vec<u32>> {
        self.maps.interfaces()
    }
}

/// Removes programs, pins and maps below `bpffs`, and the bpffs itself if it is mounted there. Also
/// detaches programs of netdp on the node's hooks whose pins are out of reach, and deletes the
/// conntrack entries of flows that any of them have translated. Returns what was removed, a line
/// each.
///
/// # Errors
/// Returns an error that names what could not be removed.
pub fn detach(bpffs: &Path) -> Result<Vec<String>> {
    let mut taken = take_off(bpffs)?;
    let maps = std::mem::take(&mut taken.maps);
    Ok(taken.clear_up(maps.iter()))
}

/// Objects that were removed, and their maps.
#[derive(Default)]
struct TakenOff {
    /// Removed objects, a line each.
    removed: Vec<String>,
    /// Maps that were pinned.
    maps: Vec<Maps>,
    /// True if the flows that some of the programs have translated can't be determined.
    unknown: bool,
}

impl TakenOff {
    /// Deletes the conntrack entries of flows translated by these maps, whose programs are
    /// detached. Where that fails, a mark notifies the next agent. Returns what was removed.
    fn clear_up<'a>(mut self, maps: impl Iterator<Item = &'a Maps>) -> Vec<String> {
        for maps in maps {
            match maps.forget_tracked() {
                Ok(0) => {}
                Ok(n) => self.removed.push(format!(
                    "{n} flows that were translated, from connection tracking"
                )),
                Err(err) => {
                    log::debug!("connection tracking: {err:#}");
                    self.unknown = true;
                }
            }
        }
        if self.unknown
            && let Err(err) = Conntrack::open().and_then(|mut conntrack| conntrack.mark())
        {
            log::debug!("connection tracking: {err:#}");
        }
        self.removed
    }
}

/// Removes everything that [`detach`] does, but for conntrack entries.
fn take_off(bpffs: &Path) -> Result<TakenOff> {
    let mut taken = TakenOff::default();
    let mut before = None;
    // Unmounting one bpffs may uncover another.
    while bpffs::is_bpffs(bpffs) && before.replace(taken.removed.len()) != Some(taken.removed.len())
    {
        let pinned = bpffs.join(layout::pins::SNAT).exists();
        match Maps::open(bpffs) {
            Ok(maps) => taken.maps.push(maps),
            Err(_) => taken.unknown |= pinned,
        }
        let removed = &mut taken.removed;
        // With pins of another version, or an incomplete set, links and files are removed all the
        // same.
        let uplinks = maps::pinned_uplinks(bpffs).unwrap_or_default();
        links::remove_all(bpffs, &uplinks, removed)?;
        for (file, _) in layout::pins::ALL {
            bpffs::remove_pin(&bpffs.join(file), removed)?;
        }
        bpffs::remove_dir(bpffs, removed)?;
    }
    let pinned = taken.removed.len();
    if let Err(err) = orphans::remove(&BTreeSet::new(), &mut taken.removed) {
        log::warn!("looking for programs whose pins are out of reach: {err:#}");
    }
    taken.unknown |= taken.removed.len() > pinned;
    Ok(taken)
}

/// Returns the map entry of an uplink.
fn entry(uplink: &Uplink) -> layout::Uplink {
    let mut flags = 0;
    if uplink.v4.is_some() {
        flags |= UPLINK_V4;
    }
    if uplink.v6.is_some() {
        flags |= UPLINK_V6;
    }
    if uplink.untagged {
        flags |= UPLINK_UNTAGGED;
    }
    layout::Uplink {
        v4: Addr::from(IpAddr::V4(uplink.v4.unwrap_or(Ipv4Addr::UNSPECIFIED))),
        v6: Addr::from(IpAddr::V6(uplink.v6.unwrap_or(Ipv6Addr::UNSPECIFIED))),
        l2_len: match uplink.link_layer {
            LinkLayer::None => 0,
            LinkLayer::Ethernet | LinkLayer::Other => 14,
        },
        flags,
    }
}
