//! User-space side of the datapath: loads and attaches the programs, and is the only user-space
//! writer of the maps.
//!
//! Maps and links are pinned below one bpffs directory and outlive the agent.

mod batch;
pub mod bpffs;
mod clsact;
mod counters;
mod detach;
mod earlier;
mod ended;
mod endpoints;
mod entries;
mod events;
mod filter;
mod flows;
mod front;
mod handover;
mod history;
mod hook;
mod join;
mod kept;
mod links;
mod macs;
mod mapping_log;
pub mod maps;
mod node;
mod object;
mod orphans;
mod placed;
mod policy;
mod reach;
mod refusal;
mod refusals;
mod rule_counts;
mod self_check;
mod setup;
mod sources;
mod sweep;
pub(crate) mod syscall;
mod tables;
mod tap;
mod tcx;
mod tracked;
mod traffic;
mod usage;

pub use bpffs::is_pinned;
pub(crate) use bpffs::open_map;
pub use detach::detach;
pub(crate) use ended::{EndedBy, EndedMapping, Identity};
pub use flows::FlowRecord;
pub(crate) use flows::protocol_name;
pub(crate) use flows::{Flow, FlowState, seconds};
pub use handover::Handover;
pub use history::History;
pub(crate) use hook::name_of;
pub use hook::{Hook, Mechanism};
pub(crate) use kept::{Kept, KeptReason, KeptState};
pub use links::Attached;
pub(crate) use mapping_log::{EndedReports, MappingLog, Reports, SharedLog, Watch, lock};
pub use maps::{Maps, SourceCheck};
pub use node::NodeMaps;
pub use orphans::{Traces, adopt, traces};
pub use placed::{Ahead, Expected, HookCheck, HookState, Placed, remove_filters};
pub use policy::PolicyChange;
pub(crate) use reach::{for_each_pair, for_each_reach};
pub(crate) use refusal::Refusal;
pub(crate) use rule_counts::{NumberedPolicy, RuleCount, RuleCounts, SHARED_INDEX};
pub(crate) use self_check::is_test;
pub use setup::{Kernel, NoLeak, OnReload, PortMode, Setup};
pub(crate) use sweep::{Peaks, PodChange, cpu_time};
pub use sweep::{SweepRules, SweepStats, Sweeper};
pub(crate) use tables::Capacities;
pub use tap::{Effect, Rules, Tap};
pub use tracked::{delete_entries, is_marked, may_be_translated, untranslated_tuples};
pub(crate) use usage::{ByProtocol, Destination, Usage, Use};

use crate::limits;
use crate::reconcile::Change;
use crate::uplinks::{LinkLayer, Uplink};
use anyhow::{Context as _, Result, bail};
use aya::programs::SchedClassifier;
use aya_log::EbpfLogger;
use netdp_common::layout;
use netdp_common::layout::Addr;
use netdp_common::layout::UPLINK_OBSERVED;
use netdp_common::layout::UPLINK_ONLY_V4;
use netdp_common::layout::UPLINK_ONLY_V6;
use netdp_common::layout::UPLINK_UNTAGGED;
use netdp_common::layout::UPLINK_V4;
use netdp_common::layout::UPLINK_V6;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Opens the maps below `bpffs` for a command.
///
/// # Errors
/// Returns an error that names the directory if there are none, or if they can't be read.
pub(crate) fn open(bpffs: &Path) -> Result<Maps> {
    Maps::open(bpffs).with_context(|| {
        format!(
            "no datapath found in {}; is the agent running, and with this --bpffs?",
            bpffs.display()
        )
    })
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
    ephemeral: Option<String>,
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
        let ephemeral = bpffs::ephemeral_reason(bpffs, mounted);
        adopt(bpffs)?;
        earlier::remove_unfinished(bpffs)?;
        let adopted = object::check_pins(bpffs)?;
        if !adopted {
            limits::check_memory(setup.max_flows)?;
        }
        let mut object = object::load(bpffs, setup)?;
        let mut maps = Maps::open(bpffs)?;
        maps.prepare(setup)?;
        maps.enable_inbound_if_used()?;
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
            tcx: tcx::is_supported().context("probing whether the kernel has TCX")?,
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
            ephemeral,
        })
    }

    /// Returns the log of the programs, which goes to `logger`. To be called once.
    ///
    /// # Errors
    /// Returns an error if it was taken already.
    pub fn take_log<L: log::Log>(&mut self, logger: L) -> Result<EbpfLogger<L>> {
        EbpfLogger::init_with_logger(&mut self.object, logger).context("opening the programs' log")
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
    pub fn ephemeral(&self) -> Option<&str> {
        self.ephemeral.as_deref()
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
    pub fn expected(&self) -> Expected {
        let maps = layout::pins::ALL
            .iter()
            .map(|(file, _)| self.bpffs.join(file));
        Expected {
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
        let removal = detach::remove_pinned(&self.bpffs)?;
        removed.extend(removal.clear_conntrack(std::iter::once(&self.maps)));
        Ok(removed)
    }

    /// Applies one change to the datapath.
    ///
    /// # Errors
    /// Returns an error that names the object if the kernel refuses the change.
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        let attaches = match change {
            Change::Attach(uplink) => uplink.link_layer != LinkLayer::Other,
            Change::Observe(_) | Change::AttachPods { .. } => true,
            _ => false,
        };
        if attaches {
            self.maps.begin_layout()?;
        }
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
            Change::RemoveMac(mac) => {
                macs::remove(&mut self.object, mac)?;
                // Programs cache that the node has it.
                self.maps.next_epoch()
            }
            Change::SetSource(asked, given) => sources::set(&mut self.object, asked, given),
            Change::RemoveSource(asked) => sources::remove(&mut self.object, asked),
            Change::SetUplink(uplink) => self.maps.set_uplink(uplink.ifindex, &entry(uplink)),
            Change::Attach(uplink) if uplink.link_layer == LinkLayer::Other => bail!(
                "netdp can't parse the packets of {}: they begin neither with an Ethernet nor with \
                 an IP header, such as those of InfiniBand or of GRE without `remote`; set \
                 `remote`, or name other uplinks with --uplink",
                uplink.name
            ),
            Change::Attach(uplink) => {
                self.links
                    .attach(&mut self.object, uplink)
                    .with_context(|| format!("attaching to uplink {}", uplink.name))?;
                // The replaced programs may have recorded inbound flows meanwhile.
                self.maps.enable_inbound_if_used()
            }
            Change::SetObserved(link) => {
                let mut entry = entry(link);
                entry.flags |= UPLINK_OBSERVED;
                self.maps.set_uplink(link.ifindex, &entry)
            }
            Change::Observe(link) => self
                .links
                .observe(&mut self.object, link)
                .with_context(|| format!("observing {}", link.name)),
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
    pub fn expire_history(&mut self) -> Result<()> {
        self.maps.expire_history()
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
    pub fn enable_bypass_cache(&mut self, stats: &SweepStats) -> Result<()> {
        match stats.bypass_cache_epoch {
            Some(epoch) if epoch == self.maps.settings()?.epoch => self.maps.enable_bypass_cache(),
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
    pub fn earlier_uplinks(&self) -> Result<Vec<u32>> {
        self.maps.uplinks()
    }

    /// Returns all interfaces that an earlier agent attached to.
    ///
    /// # Errors
    /// Returns an error if the uplinks map can't be read.
    pub fn earlier_interfaces(&self) -> Result<Vec<u32>> {
        self.maps.interfaces()
    }
}

/// Returns the map entry of an uplink.
pub(crate) fn entry(uplink: &Uplink) -> layout::Uplink {
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
    if uplink.only_v4 {
        flags |= UPLINK_ONLY_V4;
    }
    if uplink.only_v6 {
        flags |= UPLINK_ONLY_V6;
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
