//! Programs of netdp whose pins are out of reach: below a bpffs that another one was mounted over,
//! or in a mount namespace that no process can enter any more. They translate by a stale policy,
//! beside the new programs. They are detected by their names and those of their maps.

use super::filter;
use super::hook::{Hook, name_of};
use super::tcx::{self, TcxLink};
use super::{bpffs, clsact};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapInfo};
use aya::programs::{ProgramInfo, loaded_programs};
use netdp_common::layout::pins;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Length of a name as kept by the kernel (`BPF_OBJ_NAME_LEN` without the NUL).
const NAME: usize = 15;

/// Depth to which the directories of a bpffs are scanned for pins.
const DEPTH: usize = 4;

/// A program on a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Index of the interface in this network namespace.
    pub ifindex: u32,
    /// Name of the interface when it was scanned.
    pub interface: String,
    /// Hook of the program.
    pub hook: Hook,
    /// Id of the program in the kernel.
    pub program: u32,
    /// Id of its TCX link; `None` for a clsact filter.
    link: Option<u32>,
    /// Ids of its maps.
    maps: BTreeSet<u32>,
}

impl std::fmt::Display for Orphan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (hook, interface) = (self.hook.name(), &self.interface);
        let mechanism = self.link.map_or("clsact", |_| "tcx");
        write!(
            f,
            "{hook} program {} on {interface} ({mechanism})",
            self.program
        )
    }
}

/// Returns all programs of netdp in this network namespace whose maps are pinned nowhere visible
/// from here, and which no other live process holds; except those in `keep`: interface, hook and
/// program.
///
/// # Errors
/// Returns an error if there are programs whose owner the kernel does not report: that needs
/// `CAP_SYS_ADMIN`.
pub fn find(keep: &BTreeSet<(u32, Hook, u32)>) -> Result<Vec<Orphan>> {
    let mut candidates = candidates()?;
    candidates.retain(|it| !keep.contains(&(it.ifindex, it.hook, it.program)));
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let programs = programs()?;
    let mut found = Vec::new();
    for mut candidate in candidates {
        let Some(info) = programs.get(&candidate.program) else {
            continue;
        };
        let ids = info.map_ids().ok().flatten().unwrap_or_default();
        candidate.maps = ids.into_iter().collect();
        if short(candidate.hook.program()) == info.name_as_str().unwrap_or_default()
            && is_netdps(&candidate.maps)
        {
            found.push(candidate);
        }
    }
    if found.is_empty() {
        return Ok(found);
    }
    let within_reach = pinned();
    found.retain(|orphan| orphan.maps.is_disjoint(&within_reach));
    let held = held(&found);
    for orphan in found.iter().filter(|it| !it.maps.is_disjoint(&held)) {
        log::warn!(
            "the {orphan} belongs to another running netdp: two agents must not translate on one \
             interface. Stop one of them"
        );
    }
    found.retain(|orphan| orphan.maps.is_disjoint(&held));
    Ok(found)
}

/// Traces, on the hooks, of programs whose pins are not where they are expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traces {
    /// No traces of netdp.
    None,
    /// Programs of an earlier agent, which [`adopt`] takes over.
    Adoptable,
    /// Clsact filters of netdp whose objects this process can't reach.
    OutOfReach(Vec<String>),
    /// Interfaces with programs about which the kernel reports nothing to this process.
    Unknown(Vec<String>),
}

/// Scans for an earlier agent's programs. The owner of a filter is visible without privileges.
pub fn traces() -> Traces {
    let problem = match find(&BTreeSet::new()) {
        Ok(found) if found.is_empty() => return Traces::None,
        Ok(_) => return Traces::Adoptable,
        Err(err) => err,
    };
    log::debug!("searching for programs of an earlier agent: {problem:#}");
    let mut seen = candidates().unwrap_or_default();
    seen.retain(|it| it.hook == Hook::Egress);
    let (filters, links): (Vec<_>, Vec<_>) = seen.into_iter().partition(|it| it.link.is_none());
    if !filters.is_empty() {
        return Traces::OutOfReach(filters.iter().map(ToString::to_string).collect());
    }
    let mut interfaces: Vec<_> = links.into_iter().map(|it| it.interface).collect();
    interfaces.dedup();
    if interfaces.is_empty() {
        return Traces::None;
    }
    Traces::Unknown(interfaces)
}

/// Pins the maps and links of such programs below `bpffs`, if none are pinned there, so that they
/// go on translating. Reports whether there were any.
///
/// # Errors
/// Returns an error if an object can't be pinned.
pub fn adopt(bpffs: &Path) -> Result<bool> {
    if bpffs.join(pins::SETTINGS).exists() {
        return Ok(false);
    }
    let found = match find(&BTreeSet::new()) {
        Ok(found) => found,
        Err(err) => {
            log::debug!("searching for programs of an earlier agent: {err:#}");
            return Ok(false);
        }
    };
    // If there are several, the one that has translated last comes first.
    let egress = found.iter().filter(|orphan| orphan.hook == Hook::Egress);
    let Some(first) = egress.max_by_key(|orphan| orphan.program) else {
        return Ok(false);
    };
    let datapath: Vec<_> = found.iter().filter(|it| shares(it, first)).collect();
    let maps = datapath.iter().flat_map(|it| &it.maps).copied().collect();
    bpffs::ensure(bpffs)?;
    let mut pinned = Vec::new();
    if let Err(err) = adopt_maps(bpffs, &maps, &mut pinned) {
        log::warn!("the {first} is of another version, and its pins are out of reach: {err:#}");
        for pin in pinned {
            bpffs::remove_pin(&pin, &mut Vec::new())?;
        }
        return Ok(false);
    }
    for orphan in datapath {
        if let Some(link) = orphan.link {
            let pin = orphan.hook.pin(bpffs, orphan.ifindex);
            TcxLink::by_id(link)
                .and_then(|link| link.pin(&pin))
                .with_context(|| format!("pinning the link {}", pin.display()))?;
        }
        log::warn!(
            "the {orphan} had its pins out of reach: it and its maps are now pinned in {}",
            bpffs.display()
        );
    }
    Ok(true)
}

/// Detaches such programs, except those in `keep`. Adds a line for each to `removed`.
///
/// # Errors
/// Returns the errors of [`find`], or an error if the kernel refuses.
pub fn remove(keep: &BTreeSet<(u32, Hook, u32)>, removed: &mut Vec<String>) -> Result<()> {
    for orphan in find(keep)? {
        match orphan.link {
            Some(link) => TcxLink::by_id(link)
                .and_then(|link| link.detach())
                .with_context(|| format!("detaching the {orphan}"))?,
            None => {
                let gone = clsact::remove_program(&orphan.interface, orphan.hook, orphan.program);
                ensure!(gone, "detaching the {orphan}: the kernel refused");
            }
        }
        removed.push(format!("{orphan}, whose pins were out of reach"));
    }
    Ok(())
}

/// Reports whether two programs belong to one datapath.
fn shares(orphan: &Orphan, other: &Orphan) -> bool {
    !orphan.maps.is_disjoint(&other.maps)
}

/// Returns the programs that may be netdp's, by the hooks they are on.
fn candidates() -> Result<Vec<Orphan>> {
    let interfaces = nix::net::if_::if_nameindex().context("listing the interfaces")?;
    let mut found = Vec::new();
    for interface in &interfaces {
        let ifindex = interface.index();
        let Some(name) = name_of(ifindex) else {
            continue;
        };
        for hook in [Hook::Egress, Hook::Ingress, Hook::Pod] {
            let tcx = tcx::on_hook(ifindex, hook).unwrap_or_default();
            let links = tcx.into_iter().filter(|it| it.link != 0);
            let links = links.map(|it| (it.program, Some(it.link)));
            let filters = filter::list(ifindex, hook).unwrap_or_default();
            let filters = filters.into_iter().filter(filter::Filter::is_ours);
            let filters = filters.filter_map(|it| Some((it.program?, None)));
            for (program, link) in links.chain(filters) {
                found.push(Orphan {
                    ifindex,
                    interface: name.clone(),
                    hook,
                    program,
                    link,
                    maps: BTreeSet::new(),
                });
            }
        }
    }
    Ok(found)
}

/// Returns all loaded BPF programs, by id.
fn programs() -> Result<BTreeMap<u32, ProgramInfo>> {
    let mut found = BTreeMap::new();
    for program in loaded_programs() {
        match program {
            Ok(info) => drop(found.insert(info.id(), info)),
            // It is gone by now, unless the kernel reports none at all.
            Err(err) if found.is_empty() => {
                return Err(err).context(
                    "the owners of the programs on the hooks cannot be identified (this needs \
                     CAP_SYS_ADMIN)",
                );
            }
            Err(_) => {}
        }
    }
    Ok(found)
}

fn short(name: &str) -> &str {
    name.get(..NAME).unwrap_or(name)
}

/// Reports whether these are the maps of a datapath.
fn is_netdps(maps: &BTreeSet<u32>) -> bool {
    let names = maps.iter().filter_map(|id| MapInfo::from_id(*id).ok());
    let names: BTreeSet<_> = names
        .filter_map(|info| info.name_as_str().map(str::to_owned))
        .collect();
    // pod_hairpin has no policy.
    ["SNAT", "REV_SNAT", "SETTINGS"]
        .into_iter()
        .all(|name| names.contains(name))
}

fn adopt_maps(bpffs: &Path, maps: &BTreeSet<u32>, pinned: &mut Vec<PathBuf>) -> Result<()> {
    let mut by_name = BTreeMap::new();
    for id in maps {
        let info = MapInfo::from_id(*id).context("querying a map")?;
        by_name.insert(info.name_as_str().unwrap_or_default().to_owned(), *id);
    }
    for (file, name) in pins::ALL.iter().chain(pins::EARLIER) {
        let pin = bpffs.join(file);
        // A map that no program uses is created anew.
        let Some(id) = by_name.get(short(name)) else {
            continue;
        };
        MapData::from_id(*id)?
            .pin(&pin)
            .with_context(|| format!("pinning the map {}", pin.display()))?;
        pinned.push(pin);
    }
    super::object::check_pins(bpffs).map(drop)
}

/// Returns the ids of maps that are pinned on a bpffs visible from here: the owner of the pins can
/// adopt or remove them.
fn pinned() -> BTreeSet<u32> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = BTreeSet::new();
    for mount in crate::mounts::parse(&mounts).filter(|mount| mount.kind == "bpf") {
        collect(&mount.point, DEPTH, &mut found);
    }
    found
}

fn collect(dir: &Path, depth: usize, found: &mut BTreeSet<u32>) {
    if depth == 0 || !bpffs::is_bpffs(dir) {
        return;
    }
    let settings = dir.join(pins::SETTINGS);
    if let Ok(info) = MapInfo::from_pin(&settings) {
        found.insert(info.id());
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), depth - 1, found);
    }
}

/// Returns those of the programs' maps that other live processes hold, as far as `/proc` shows
/// them.
fn held(orphans: &[Orphan]) -> BTreeSet<u32> {
    let maps: BTreeSet<u32> = orphans.iter().flat_map(|it| it.maps.clone()).collect();
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        *name != own && name.bytes().all(|byte| byte.is_ascii_digit())
    });
    let mut found = BTreeSet::new();
    for process in processes {
        let infos = fs::read_dir(process.path().join("fdinfo"));
        for info in infos.into_iter().flatten().flatten() {
            let text = fs::read_to_string(info.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
            let id = id.and_then(|id| id.trim().parse().ok());
            found.extend(id.filter(|id| maps.contains(id)));
        }
    }
    found
}
