//! The kernel side as user space sees it: loads the programs, attaches them,
//! and is the only one that writes the maps.
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
use netdp_common::abi::{
    self, NO_LEAK_ADDRESS, NO_LEAK_DROP, NO_LEAK_PASS, PortRange, SETTING_DRAIN, SETTING_HAIRPIN,
    SETTING_HASH_PORTS, SETTING_IPV6, SETTING_PORTS, SETTING_RANDOM_PORTS, SETTING_UDP_ENDPOINTS,
    UPLINK_OBSERVED, UPLINK_UNTAGGED, UPLINK_V4, UPLINK_V6,
};
use netdp_common::addr::Addr;
use netdp_common::siphash;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// How the datapath is set up once, at the agent's start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Translate IPv6 too.
    pub enable_ipv6: bool,
    /// How many mappings fit. Maps that are pinned already keep their size.
    pub max_flows: u32,
    /// The only ports that TCP and UDP mappings get; at most
    /// [`abi::PORT_RANGES`], none for all.
    pub to_ports: Vec<PortRange>,
    /// How ports are chosen.
    pub port_mode: PortMode,
    /// One wire port for a pod's UDP port, whatever the destination.
    pub udp_endpoints: bool,
    /// What becomes of packets that can't be translated.
    pub no_leak: NoLeak,
    /// What a changed policy means for live flows.
    pub on_reload: OnReload,
    /// Mappings that one pod may have in each family; 0 for its share of the room
    /// ([`netdp_common::share::limit`]).
    pub pod_flows: u32,
    /// New mappings of one pod in a second; 0 for any number.
    pub pod_new_flows: u32,
    /// What only the node knows, for hashes that nobody can foretell. Pinned maps keep
    /// theirs.
    pub secret: siphash::Key,
    /// Ports that no mapping gets.
    pub reserved_ports: BTreeSet<u16>,
    /// Pods may reach each other by their endpoints on the wire.
    pub hairpin: bool,
    /// How programs are attached.
    pub mechanism: Mechanism,
}

impl Setup {
    /// The bits of [`abi::Settings::flags`].
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

/// How wire ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PortMode {
    /// The pod's own port if it is free, else a random one.
    Keep,
    /// By a hash of the tuple.
    Hash,
    /// Always a random one.
    Random,
}

/// What a changed policy means for live flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReload {
    /// They live on as they were made.
    Sticky,
    /// Those that the policy would not make any more end at once.
    Cutover,
    /// Those end when they have been idle for half a minute.
    Drain,
}

/// What becomes of packets that can't be translated.
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

/// What the kernel was found to have, which it need not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// TCX (Linux 6.6); else programs are attached by clsact.
    pub tcx: bool,
    /// Writing tries in batches (Linux 5.13); else the policy is written entry by entry.
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

/// The loaded datapath.
pub struct Datapath {
    /// What was asked for at the start.
    kernel: Kernel,
    object: aya::Ebpf,
    maps: Maps,
    node: NodeMaps,
    links: links::Links,
    on_reload: OnReload,
    /// Whether maps of an earlier agent were found and kept.
    adopted: bool,
    bpffs: PathBuf,
    /// Why all ends with this mount namespace, if it does.
    fleeting: Option<String>,
}

impl Datapath {
    /// Loads the programs, over the maps that are pinned below `bpffs` if there
    /// are any. Nothing is attached yet.
    ///
    /// # Errors
    /// A bpffs that can't be made, maps of another layout, missing privileges,
    /// a kernel that refuses the programs.
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

    /// What the programs have to say, for the log. To be taken once.
    ///
    /// # Errors
    /// It was taken already.
    pub fn take_log(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.object).context("opening the programs' log")
    }

    /// Whether maps of an earlier agent were found and kept.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// What the kernel was found to have.
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// From here on, uplinks that are attached to are new interfaces.
    pub const fn set_started(&mut self) {
        self.links.set_started();
    }

    /// Why the pins end with the agent's mount namespace, if they do.
    pub fn fleeting(&self) -> Option<&str> {
        self.fleeting.as_deref()
    }

    /// The maps, for looking.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to write.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// The maps of what the node itself receives.
    pub fn node_mut(&mut self) -> &mut NodeMaps {
        &mut self.node
    }

    /// What is attached.
    pub fn attached(&self) -> Vec<Attached> {
        self.links.attached()
    }

    /// What is to be attached and pinned, to look at on another thread.
    pub fn watched(&self) -> Watched {
        let maps = abi::pins::ALL.iter().map(|(file, _)| self.bpffs.join(file));
        Watched {
            placed: self.links.placed(),
            bpffs: self.bpffs.clone(),
            pins: maps.chain(self.links.pins()).collect(),
        }
    }

    /// Where programs are to be.
    pub fn placed(&self) -> Vec<Placed> {
        self.links.placed()
    }

    /// Puts an uplink's program before those of others.
    ///
    /// # Errors
    /// There is no place before theirs, or the kernel refused: all is as before.
    pub fn overtake(&mut self, placed: &Placed) -> Result<()> {
        self.links
            .overtake(&mut self.object, placed)
            .with_context(|| format!("on {}", placed.interface))
    }

    /// Why a link could not be pinned when it was made.
    pub fn unpinned(&self) -> Option<&str> {
        self.links.unpinned()
    }

    /// Pins what is not pinned any more, on a bpffs that is mounted anew if need be. Tells how much
    /// that was.
    ///
    /// # Errors
    /// What can't be pinned, and why. It stays in force as long as this process lives.
    pub fn pin(&mut self) -> Result<usize> {
        bpffs::ensure(&self.bpffs)?;
        let mut pinned = 0;
        for (file, name) in abi::pins::ALL {
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

    /// Takes off the programs of netdp's whose pins are out of reach. Gives back what was removed, a line
    /// each.
    ///
    /// # Errors
    /// The kernel does not tell of its programs, or refused.
    pub fn remove_orphans(&self) -> Result<Vec<String>> {
        let placed = self.links.placed();
        let keep = placed.iter().map(|it| (it.ifindex, it.hook, it.program));
        let mut removed = Vec::new();
        orphans::remove(&keep.collect(), &mut removed)?;
        Ok(removed)
    }

    /// Takes all programs off, and removes pins and maps. Gives back what was
    /// removed, a line each.
    ///
    /// # Errors
    /// What could not be removed, by name.
    pub fn remove(&mut self) -> Result<Vec<String>> {
        let mut removed = self.links.detach_all();
        let taken = take_off(&self.bpffs)?;
        removed.extend(taken.clear_up(std::iter::once(&self.maps)));
        Ok(removed)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// The kernel refused it; the message names the object.
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
                // The programs that were replaced may have recorded some meanwhile.
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

    /// Forgets which destinations earlier policies bypassed: connections of that
    /// time have ended, or count as new ones now.
    ///
    /// # Errors
    /// The policy could not be read or written.
    pub fn forget_earlier_policies(&mut self) -> Result<()> {
        self.maps.forget_earlier_policies()
    }

    /// Makes ready for the next change of the policy, so that it has little to
    /// write. Gives the number of writes.
    ///
    /// # Errors
    /// The idle trie could not be written; what is in force is not concerned.
    pub fn prepare_policy(&mut self) -> Result<usize> {
        self.maps.prepare_policy()
    }

    /// Takes note of what a sweep found out for the programs: that no mapping
    /// lives whose destination the policy bypasses. Only if nothing has changed
    /// since it began.
    ///
    /// # Errors
    /// The settings map could not be read or written.
    pub fn settle(&mut self, swept: &Swept) -> Result<()> {
        match swept.none_sticky {
            Some(epoch) if epoch == self.maps.settings()?.epoch => self.maps.set_none_sticky(true),
            _ => Ok(()),
        }
    }

    /// The loaded program of a hook, to run it over packets of one's own.
    ///
    /// # Errors
    /// The eBPF object has no such program.
    pub fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        object::program(&mut self.object, hook.program())
    }

    /// Moves the datapath's clock, and the sweep's with it, to `ticks` (see
    /// [`netdp_common::conntrack`]) after the monotonic clock. For tests.
    ///
    /// # Errors
    /// The settings map could not be read or written.
    pub fn set_clock_offset(&mut self, ticks: u32) -> Result<()> {
        let mut settings = self.maps.settings()?;
        settings.clock_offset = ticks;
        self.maps.set_settings(&settings)
    }

    /// Takes the hairpin program of an earlier agent off all interfaces but these.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_pods_except(&mut self, keep: &BTreeMap<u32, String>) -> Result<()> {
        let uplinks = self.maps.interfaces()?;
        self.links
            .detach_pods_where(|ifindex| !keep.contains_key(&ifindex), &uplinks)
    }

    /// Uplinks that an earlier agent attached to.
    ///
    /// # Errors
    /// The uplinks map could not be read.
    pub fn known_uplinks(&self) -> Result<Vec<u32>> {
        self.maps.uplinks()
    }

    /// All interfaces that an earlier agent attached to.
    ///
    /// # Errors
    /// The uplinks map could not be read.
    pub fn known_interfaces(&self) -> Result<Vec<u32>> {
        self.maps.interfaces()
    }
}

/// Removes programs, pins and maps below `bpffs`, and the bpffs if it is mounted there; and the programs
/// of netdp's on the node's hooks whose pins are out of reach. Has connection tracking forget what they
/// have translated. Gives back what was removed, a line each.
///
/// # Errors
/// What could not be removed, by name.
pub fn detach(bpffs: &Path) -> Result<Vec<String>> {
    let mut taken = take_off(bpffs)?;
    let maps = std::mem::take(&mut taken.maps);
    Ok(taken.clear_up(maps.iter()))
}

/// What was taken off, and what has to be known of it.
#[derive(Default)]
struct TakenOff {
    /// A line each.
    removed: Vec<String>,
    /// The maps that were pinned.
    maps: Vec<Maps>,
    /// What some of it has translated can't be found out.
    unknown: bool,
}

impl TakenOff {
    /// Has connection tracking forget what was translated by these maps, whose programs are off. Where
    /// that can't be, a mark tells the next agent. Gives back what was removed.
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

/// Does as [`detach`] says, but for connection tracking.
fn take_off(bpffs: &Path) -> Result<TakenOff> {
    let mut taken = TakenOff::default();
    let mut before = None;
    // Below one that is unmounted another may come to light.
    while bpffs::is_bpffs(bpffs) && before.replace(taken.removed.len()) != Some(taken.removed.len())
    {
        let pinned = bpffs.join(abi::pins::SNAT).exists();
        match Maps::open(bpffs) {
            Ok(maps) => taken.maps.push(maps),
            Err(_) => taken.unknown |= pinned,
        }
        let removed = &mut taken.removed;
        // Of another version's pins, or half of them, the links and files go all the same.
        let uplinks = maps::pinned_uplinks(bpffs).unwrap_or_default();
        links::remove_all(bpffs, &uplinks, removed)?;
        for (file, _) in abi::pins::ALL {
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

/// The map entry of an uplink.
fn entry(uplink: &Uplink) -> abi::Uplink {
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
    abi::Uplink {
        v4: Addr::from(IpAddr::V4(uplink.v4.unwrap_or(Ipv4Addr::UNSPECIFIED))),
        v6: Addr::from(IpAddr::V6(uplink.v6.unwrap_or(Ipv6Addr::UNSPECIFIED))),
        l2_len: match uplink.link_layer {
            LinkLayer::None => 0,
            LinkLayer::Ethernet | LinkLayer::Other => 14,
        },
        flags,
    }
}
