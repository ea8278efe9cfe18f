//! Attaching the programs to interfaces: TCX links, held and pinned, where the
//! kernel has them (6.6), clsact filters otherwise. Other programs there are let be.

use super::object::{EGRESS, HAIRPIN, INGRESS};
use super::placed::Placed;
use super::tcx::TcxLink;
use super::{bpffs, clsact, object};
use crate::uplinks::Uplink;
use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TcAttachType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// One of the two hooks on an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Packets that leave.
    Egress,
    /// Packets that come in.
    Ingress,
    /// Packets that pods send, at their interface's end in the node.
    Pod,
}

impl Hook {
    pub(super) const UPLINK: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Egress => EGRESS,
            Self::Ingress => INGRESS,
            Self::Pod => HAIRPIN,
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            Self::Ingress | Self::Pod => TcAttachType::Ingress,
        }
    }

    /// As people call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Pod => "hairpin",
        }
    }

    pub(super) fn pin(self, bpffs: &Path, ifindex: u32) -> PathBuf {
        bpffs
            .join("links")
            .join(format!("{}_{ifindex}", self.name()))
    }
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// A program on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// The interface.
    pub uplink: String,
    /// Its index.
    pub ifindex: u32,
    /// `tcx` or `clsact`.
    pub mechanism: Mechanism,
}

/// An interface to attach to.
#[derive(Clone, Copy)]
pub(super) struct Device<'a> {
    pub(super) ifindex: u32,
    pub(super) name: &'a str,
}

/// What is attached where.
pub struct Links {
    pub(super) bpffs: PathBuf,
    pub(super) mechanism: Mechanism,
    attached: BTreeMap<u32, Attached>,
    /// Where programs are to be, once they were attached there.
    pub(super) places: BTreeMap<(u32, Hook), Place>,
    /// Why links could not be pinned when they were made; another's pin may be in the place.
    unpinned: BTreeMap<(u32, Hook), String>,
    /// Whether interfaces that are attached to by now are new ones.
    pub(super) started: bool,
}

/// A program's place.
pub(super) struct Place {
    pub(super) placed: Placed,
    /// Held besides the pin: losing that takes nothing off. None with clsact.
    pub(super) link: Option<TcxLink>,
}

impl Links {
    /// `tcx`: whether the kernel has that.
    pub fn new(bpffs: &Path, mechanism: Mechanism, tcx: bool) -> Result<Self> {
        let mechanism = match (mechanism, tcx) {
            (Mechanism::Tcx, false) => bail!(
                "--attach tcx: this kernel has no TCX, which came with Linux 6.6; use --attach auto or \
                 clsact"
            ),
            (Mechanism::Tcx | Mechanism::Auto, true) => Mechanism::Tcx,
            (Mechanism::Auto, false) => {
                log::info!("no TCX here, using clsact");
                Mechanism::Clsact
            }
            (Mechanism::Clsact, _) => Mechanism::Clsact,
        };
        Ok(Self {
            bpffs: bpffs.to_owned(),
            mechanism,
            attached: BTreeMap::new(),
            places: BTreeMap::new(),
            unpinned: BTreeMap::new(),
            started: false,
        })
    }

    pub fn attached(&self) -> Vec<Attached> {
        self.attached.values().cloned().collect()
    }

    /// Where programs are to be.
    pub fn placed(&self) -> Vec<Placed> {
        let places = self.places.values();
        places.map(|place| place.placed.clone()).collect()
    }

    /// The pins that are to be there.
    pub fn pins(&self) -> Vec<PathBuf> {
        let pinned = self.places.iter().filter(|(_, place)| place.link.is_some());
        pinned
            .map(|((ifindex, hook), _)| hook.pin(&self.bpffs, *ifindex))
            .collect()
    }

    /// Pins links whose pins are gone. Tells how many.
    pub fn pin(&mut self) -> Result<usize> {
        let mut pinned = 0;
        for (at, place) in &self.places {
            let pin = at.1.pin(&self.bpffs, at.0);
            if let Some(link) = &place.link
                && (self.unpinned.contains_key(at) || !pin.exists())
            {
                bpffs::remove_pin(&pin, &mut Vec::new())?;
                link.pin(&pin)
                    .with_context(|| format!("pinning the link {}", pin.display()))?;
                pinned += 1;
            }
        }
        self.unpinned.clear();
        Ok(pinned)
    }

    /// Why a link could not be pinned when it was made.
    pub fn unpinned(&self) -> Option<&str> {
        self.unpinned.values().next().map(String::as_str)
    }

    /// From here on, interfaces are new ones, by which nothing has left yet: until both programs are
    /// attached, nothing that is forwarded leaves.
    pub const fn set_started(&mut self) {
        self.started = true;
    }

    /// Attaches both programs of an uplink; ones that are there already, of this
    /// or an earlier agent, are replaced in place. Ingress first: from the first
    /// packet that leaves translated on, replies find their way back.
    pub fn attach(&mut self, object: &mut Ebpf, uplink: &Uplink) -> Result<()> {
        let device = Device {
            ifindex: uplink.ifindex,
            name: &uplink.name,
        };
        let mut mechanism = self.mechanism;
        let mut shut = self.shut(object, device);
        for hook in Hook::UPLINK {
            let made = shut.take_if(|_| hook == Hook::Egress);
            mechanism = match self.attach_one(object, hook, device, mechanism, made) {
                Ok(mechanism) => mechanism,
                Err(err) => {
                    if let Some(shut) = shut {
                        // It fails where the interface is gone, which is as good.
                        let _ = shut.detach();
                    }
                    return Err(err);
                }
            };
        }
        self.attached.insert(
            uplink.ifindex,
            Attached {
                uplink: uplink.name.clone(),
                ifindex: uplink.ifindex,
                mechanism,
            },
        );
        Ok(())
    }

    /// Attaches the hairpin program to an interface towards pods.
    pub fn attach_pods(&mut self, object: &mut Ebpf, ifindex: u32, name: &str) -> Result<()> {
        let device = Device { ifindex, name };
        self.attach_one(object, Hook::Pod, device, self.mechanism, None)
            .map(drop)
    }

    /// `made` is a link that was just made for it.
    fn attach_one(
        &mut self,
        object: &mut Ebpf,
        hook: Hook,
        device: Device<'_>,
        mechanism: Mechanism,
        made: Option<TcxLink>,
    ) -> Result<Mechanism> {
        let program = object::loaded(object, hook.program())?;
        let (mechanism, link) = match mechanism {
            Mechanism::Clsact => {
                // Never both: a packet would be translated twice.
                bpffs::remove_pin(&hook.pin(&self.bpffs, device.ifindex), &mut Vec::new())?;
                clsact::attach(program, hook, device)?;
                (Mechanism::Clsact, None)
            }
            // What `new` has made of auto.
            Mechanism::Tcx | Mechanism::Auto => (
                Mechanism::Tcx,
                Some(self.attach_tcx(program, hook, device, made)?),
            ),
        };
        let placed = Placed {
            ifindex: device.ifindex,
            interface: device.name.to_owned(),
            hook,
            mechanism,
            program: program.info().context("asking for a program's id")?.id(),
        };
        let place = Place { placed, link };
        self.places.insert((device.ifindex, hook), place);
        Ok(mechanism)
    }

    /// Pins a link that was just made. Attached is what matters; what can't be pinned now is tried
    /// again.
    pub(super) fn pin_anew(&mut self, link: &TcxLink, at: (u32, Hook)) {
        let pin = at.1.pin(&self.bpffs, at.0);
        let pinned = bpffs::remove_pin(&pin, &mut Vec::new()).and_then(|()| {
            link.pin(&pin)
                .with_context(|| format!("pinning the link {}", pin.display()))
        });
        match pinned {
            Ok(()) => drop(self.unpinned.remove(&at)),
            Err(err) => drop(self.unpinned.insert(at, format!("{err:#}"))),
        }
    }

    fn attach_tcx(
        &mut self,
        program: &SchedClassifier,
        hook: Hook,
        device: Device<'_>,
        made: Option<TcxLink>,
    ) -> Result<TcxLink> {
        let program = program.fd()?.as_fd();
        let pin = hook.pin(&self.bpffs, device.ifindex);
        let at = (device.ifindex, hook);
        if let Some(link) = made {
            link.update(program)
                .with_context(|| format!("adding the {} program by TCX", hook.name()))?;
            self.pin_anew(&link, at);
            return Ok(link);
        }
        let place = self.places.get_mut(&at);
        let link = match place.and_then(|place| place.link.take()) {
            Some(held) => Some(held),
            None if pin.exists() => Some(
                TcxLink::open(&pin)
                    .with_context(|| format!("opening the pinned link {}", pin.display()))?,
            ),
            None => {
                // An earlier agent may have used clsact. Never both.
                clsact::remove(device.name, hook);
                None
            }
        };
        if let Some(link) = link {
            match link.update(program) {
                Ok(()) => return Ok(link),
                // The interface went away and the kernel gave its index to
                // another, or somebody has detached it: make a new one.
                Err(err) => {
                    log::info!("{}: the {} link is dead ({err})", device.name, hook.name());
                }
            }
        }
        let link = TcxLink::create(program, device.ifindex, hook)
            .with_context(|| format!("adding the {} program by TCX", hook.name()))?;
        self.pin_anew(&link, at);
        Ok(link)
    }

    pub fn detach(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.attached.remove(&ifindex);
        // Egress first: as long as packets leave translated, replies come back.
        self.release(|at, hook| at == ifindex && hook == Hook::Egress);
        self.release(|at, hook| at == ifindex && hook == Hook::Ingress);
        remove(&self.bpffs, ifindex, Some(name), &mut Vec::new())
    }

    pub fn detach_pods(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.release(|at, hook| at == ifindex && hook == Hook::Pod);
        remove_hook(&self.bpffs, Hook::Pod, ifindex, Some(name), &mut Vec::new())
    }

    /// Takes the hairpin program off every interface that is to lose it and is no
    /// uplink, whichever agent attached it.
    pub fn detach_pods_where(
        &mut self,
        loses: impl Fn(u32) -> bool,
        uplinks: &[u32],
    ) -> Result<()> {
        self.release(|at, hook| hook == Hook::Pod && loses(at));
        remove_pods(&self.bpffs, loses, uplinks, &mut Vec::new())
    }

    /// Takes every program off, pinned or not. Says of which interfaces.
    pub fn detach_all(&mut self) -> Vec<String> {
        let mut removed = Vec::new();
        for (ifindex, hook) in self.places.keys() {
            if let Some(name) = name_of(*ifindex)
                && clsact::remove(&name, *hook)
            {
                removed.push(format!("clsact {hook:?} filter on {name}"));
            }
        }
        self.release(|_, hook| hook == Hook::Egress);
        self.release(|_, _| true);
        self.attached.clear();
        removed
    }

    /// Forgets places. Links that are held are taken off at once.
    fn release(&mut self, which: impl Fn(u32, Hook) -> bool) {
        self.places.retain(|(ifindex, hook), place| {
            let goes = which(*ifindex, *hook);
            if goes {
                self.unpinned.remove(&(*ifindex, *hook));
            }
            if goes && let Some(link) = &place.link {
                // Fails where the interface is gone, and the program with it.
                let _ = link.detach();
            }
            !goes
        });
    }
}

/// Removes what is pinned for an interface, and its filters if it still exists.
fn remove(bpffs: &Path, ifindex: u32, name: Option<&str>, removed: &mut Vec<String>) -> Result<()> {
    // Egress first: as long as packets leave translated, replies come back.
    for hook in [Hook::Egress, Hook::Ingress] {
        remove_hook(bpffs, hook, ifindex, name, removed)?;
    }
    Ok(())
}

fn remove_hook(
    bpffs: &Path,
    hook: Hook,
    ifindex: u32,
    name: Option<&str>,
    removed: &mut Vec<String>,
) -> Result<()> {
    take_off(&hook.pin(bpffs, ifindex), removed)?;
    // A new interface may have the name by now.
    if let Some(name) = name
        && name_of(ifindex).as_deref() == Some(name)
        && clsact::remove(name, hook)
    {
        removed.push(format!("clsact {hook:?} filter on {name}"));
    }
    Ok(())
}

/// Removes hairpin pins, and filters of interfaces that are no uplinks. Nothing
/// tells where filters are: all interfaces are asked.
fn remove_pods(
    bpffs: &Path,
    loses: impl Fn(u32) -> bool,
    uplinks: &[u32],
    removed: &mut Vec<String>,
) -> Result<()> {
    let dir = bpffs.join("links");
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    for entry in entries {
        let file = entry.file_name();
        let index = file.to_str().and_then(|name| name.strip_prefix("hairpin_"));
        if index
            .and_then(|index| index.parse().ok())
            .is_some_and(&loses)
        {
            take_off(&entry.path(), removed)?;
        }
    }
    let interfaces = nix::net::if_::if_nameindex().context("listing the interfaces")?;
    for interface in &interfaces {
        let (ifindex, name) = (interface.index(), interface.name().to_string_lossy());
        if loses(ifindex) && !uplinks.contains(&ifindex) && clsact::remove(&name, Hook::Pod) {
            removed.push(format!("clsact hairpin filter on {name}"));
        }
    }
    Ok(())
}

/// Removes every link below `bpffs`, and the filters on `uplinks`.
pub fn remove_all(bpffs: &Path, uplinks: &[u32], removed: &mut Vec<String>) -> Result<()> {
    for &ifindex in uplinks {
        remove(bpffs, ifindex, name_of(ifindex).as_deref(), removed)?;
    }
    remove_pods(bpffs, |_| true, uplinks, removed)?;
    let dir = bpffs.join("links");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(|err| anyhow!("reading {}: {err}", dir.display()))?;
        take_off(&entry.path(), removed)?;
    }
    Ok(())
}

/// Takes a pinned link's program off its hook and removes the pin; none there
/// is fine.
fn take_off(pin: &Path, removed: &mut Vec<String>) -> Result<()> {
    // Where that fails, because the interface is gone or somebody has taken
    // the program off already, the link goes with its pin.
    let _ = TcxLink::open(pin).and_then(|link| link.detach());
    bpffs::remove_pin(pin, removed)
}

/// The name of an interface of this namespace.
pub fn name_of(ifindex: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that if_indextoname(3) asks for.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: on success the buffer holds a NUL-terminated string.
    let name = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) };
    name.to_str().ok().map(str::to_owned)
}
