//! Attachment of the programs to interfaces: TCX links, held and pinned, where the kernel has them
//! (6.6), clsact filters otherwise. Other programs on the hook are left untouched.

use super::hook::{Device, Hook, Mechanism, name_of};
use super::placed::Placed;
use super::tcx::TcxLink;
use super::{bpffs, clsact, object};
use crate::uplinks::Uplink;
use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// A program on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Name of the interface, for messages.
    pub uplink: String,
    /// Index of the interface in this network namespace.
    pub ifindex: u32,
    /// Mechanism of the attachment: `tcx` or `clsact`, never `auto`.
    pub mechanism: Mechanism,
}

/// The attached programs and their places.
pub struct Links {
    pub(super) bpffs: PathBuf,
    pub(super) mechanism: Mechanism,
    attached: BTreeMap<u32, Attached>,
    /// Places where programs should be, once they have been attached there.
    pub(super) placements: BTreeMap<(u32, Hook), Placement>,
    /// Errors of pinning links when they were created; a foreign pin may occupy the place.
    unpinned: BTreeMap<(u32, Hook), String>,
    /// True if interfaces that are attached to from now on are new ones.
    pub(super) started: bool,
}

/// The place of a program.
pub(super) struct Placement {
    pub(super) placed: Placed,
    /// Held in addition to the pin: losing the pin detaches nothing. `None` with clsact.
    pub(super) link: Option<TcxLink>,
}

impl Links {
    /// Creates an empty set; `tcx`: the kernel has TCX.
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
            placements: BTreeMap::new(),
            unpinned: BTreeMap::new(),
            started: false,
        })
    }

    pub fn attached(&self) -> Vec<Attached> {
        self.attached.values().cloned().collect()
    }

    /// Returns the places where programs should be.
    pub fn placed(&self) -> Vec<Placed> {
        let places = self.placements.values();
        places.map(|place| place.placed.clone()).collect()
    }

    /// Returns the pins that should exist.
    pub fn pins(&self) -> Vec<PathBuf> {
        let pinned = self
            .placements
            .iter()
            .filter(|(_, place)| place.link.is_some());
        pinned
            .map(|((ifindex, hook), _)| hook.pin(&self.bpffs, *ifindex))
            .collect()
    }

    /// Pins links whose pins are gone. Returns their number.
    pub fn pin(&mut self) -> Result<usize> {
        let mut pinned = 0;
        for (at, place) in &self.placements {
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

    /// Returns the reason why a link could not be pinned when it was created.
    pub fn unpinned(&self) -> Option<&str> {
        self.unpinned.values().next().map(String::as_str)
    }

    /// Treats interfaces as new from here on, as ones by which nothing has left yet: until both
    /// programs are attached, no forwarded packet leaves.
    pub const fn set_started(&mut self) {
        self.started = true;
    }

    /// Attaches both programs of an uplink; existing ones, of this or an earlier agent, are
    /// replaced in place. Ingress first: from the first translated packet on, replies find their
    /// way back.
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
                        // Fails if the interface is gone, which is fine.
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

    /// Attaches one program. `made` is a link that was just created for it.
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
            // `new` has resolved `Auto` to this.
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
            program: program.info().context("querying a program's id")?.id(),
        };
        let place = Placement { placed, link };
        self.placements.insert((device.ifindex, hook), place);
        Ok(mechanism)
    }

    /// Pins a link that was just created. Attachment is what matters; pinning is retried later if
    /// it fails now.
    pub(super) fn repin(&mut self, link: &TcxLink, at: (u32, Hook)) {
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
            self.repin(&link, at);
            return Ok(link);
        }
        let place = self.placements.get_mut(&at);
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
                // The interface is gone and the kernel reused its index, or somebody has detached
                // the link: create a new one.
                Err(err) => {
                    log::info!("{}: the {} link is dead ({err})", device.name, hook.name());
                }
            }
        }
        let link = TcxLink::create(program, device.ifindex, hook)
            .with_context(|| format!("adding the {} program by TCX", hook.name()))?;
        self.repin(&link, at);
        Ok(link)
    }

    /// Attaches the ingress program to an interface that is no uplink, so that inbound flows are
    /// recorded, or leaves only that one on a former uplink.
    pub fn observe(&mut self, object: &mut Ebpf, link: &Uplink) -> Result<()> {
        let ifindex = link.ifindex;
        let name = link.name.as_str();
        let device = Device { ifindex, name };
        self.attach_one(object, Hook::Ingress, device, self.mechanism, None)?;
        self.attached.remove(&ifindex);
        self.release(|at, hook| at == ifindex && hook == Hook::Egress);
        let bpffs = &self.bpffs;
        remove_hook(bpffs, Hook::Egress, ifindex, Some(name), &mut Vec::new())
    }

    pub fn detach(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.attached.remove(&ifindex);
        // Egress first: as long as translated packets leave, replies come back.
        self.release(|at, hook| at == ifindex && hook == Hook::Egress);
        self.release(|at, hook| at == ifindex && hook == Hook::Ingress);
        remove(&self.bpffs, ifindex, Some(name), &mut Vec::new())
    }

    pub fn detach_pods(&mut self, ifindex: u32, name: &str) -> Result<()> {
        self.release(|at, hook| at == ifindex && hook == Hook::Pod);
        remove_hook(&self.bpffs, Hook::Pod, ifindex, Some(name), &mut Vec::new())
    }

    /// Detaches the hairpin program from every interface that `loses` selects and that is no
    /// uplink, whichever agent attached it.
    pub fn detach_pods_where(
        &mut self,
        loses: impl Fn(u32) -> bool,
        uplinks: &[u32],
    ) -> Result<()> {
        self.release(|at, hook| hook == Hook::Pod && loses(at));
        remove_pods(&self.bpffs, loses, uplinks, &mut Vec::new())
    }

    /// Detaches every program, pinned or not. Returns the names of the interfaces.
    pub fn detach_all(&mut self) -> Vec<String> {
        let mut removed = Vec::new();
        for (ifindex, hook) in self.placements.keys() {
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

    /// Removes places from the set. Links that are held are detached at once.
    fn release(&mut self, which: impl Fn(u32, Hook) -> bool) {
        self.placements.retain(|(ifindex, hook), place| {
            let goes = which(*ifindex, *hook);
            if goes {
                self.unpinned.remove(&(*ifindex, *hook));
            }
            if goes && let Some(link) = &place.link {
                // Fails if the interface is gone, and the program with it.
                let _ = link.detach();
            }
            !goes
        });
    }
}

/// Removes the pins of an interface, and its filters if it still exists.
fn remove(bpffs: &Path, ifindex: u32, name: Option<&str>, removed: &mut Vec<String>) -> Result<()> {
    // Egress first: as long as translated packets leave, replies come back.
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
    unpin(&hook.pin(bpffs, ifindex), removed)?;
    // A new interface may have the name by now.
    if let Some(name) = name
        && name_of(ifindex).as_deref() == Some(name)
        && clsact::remove(name, hook)
    {
        removed.push(format!("clsact {hook:?} filter on {name}"));
    }
    Ok(())
}

/// Removes hairpin pins, and filters of interfaces that are no uplinks. Filters are recorded
/// nowhere, so all interfaces are scanned.
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
            unpin(&entry.path(), removed)?;
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
        unpin(&entry.path(), removed)?;
    }
    Ok(())
}

/// Detaches the program of a pinned link and removes the pin, if there is one.
fn unpin(pin: &Path, removed: &mut Vec<String>) -> Result<()> {
    // If that fails because the interface is gone or somebody has detached the program already, the
    // link goes with its pin.
    let _ = TcxLink::open(pin).and_then(|link| link.detach());
    bpffs::remove_pin(pin, removed)
}
