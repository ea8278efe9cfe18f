//! The kernel, and the objects of netdp in it: maps with their sizes, programs with ids and tags.

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use netdp_common::layout::pins;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Settings of the kernel that decide about translated packets.
const SYSCTLS: [&str; 14] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_unprivileged_port_start",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_events",
    "net/core/bpf_jit_enable",
    "kernel/unprivileged_bpf_disabled",
    "kernel/bpf_stats_enabled",
];

/// A pinned map.
#[derive(Debug, Serialize)]
struct Map {
    pin: &'static str,
    id: u32,
    kind: String,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
}

/// A program that uses pinned maps.
#[derive(Debug, Serialize)]
struct Program {
    id: u32,
    name: String,
    tag: String,
    translated_bytes: Option<u32>,
    jited_bytes: u32,
    verified_instructions: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Objects {
    maps: Vec<Map>,
    programs: Vec<Program>,
    /// Other pins, such as those of links.
    pins: BTreeSet<String>,
}

/// Returns version and machine of the kernel.
///
/// # Errors
/// Returns an error if `/proc` can't be read.
pub(super) fn version() -> Result<String> {
    let version = fs::read_to_string("/proc/version").context("reading /proc/version")?;
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let cpus = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    Ok(format!("{version}BTF: {btf}\npossible CPUs: {cpus}"))
}

/// Returns the settings that there are.
#[expect(
    clippy::unnecessary_wraps,
    reason = "a part like the others, which may fail"
)]
pub(super) fn sysctls() -> Result<String> {
    let mut text = String::new();
    for name in SYSCTLS {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            // Writing to a String can't fail.
            let _ = writeln!(text, "{} = {}", name.replace('/', "."), value.trim());
        }
    }
    Ok(text)
}

/// Returns the maps below the pins' directory and their programs as JSON.
///
/// # Errors
/// Returns an error if nothing is pinned there.
pub(super) fn objects(bpffs: &Path) -> Result<String> {
    let mut maps = Vec::new();
    let mut ids = BTreeSet::new();
    for (pin, _) in pins::ALL {
        let path = bpffs.join(pin);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).with_context(|| format!("{}", path.display()))?;
        ids.insert(info.id());
        maps.push(Map {
            pin,
            id: info.id(),
            kind: info
                .map_type()
                .map_or_else(|_| "unknown".into(), |kind| format!("{kind:?}")),
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            max_entries: info.max_entries(),
        });
    }
    let listed = fs::read_dir(bpffs).with_context(|| format!("listing {}", bpffs.display()))?;
    let names = listed.flatten().map(|it| it.file_name());
    let mut pins: BTreeSet<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    pins.retain(|name| !maps.iter().any(|map| map.pin == name));
    let mut programs = Vec::new();
    for program in loaded_programs() {
        let info = program.context("listing programs")?;
        let used = info.map_ids().ok().flatten().unwrap_or_default();
        if used.iter().any(|id| ids.contains(id)) {
            programs.push(Program {
                id: info.id(),
                name: info.name_as_str().unwrap_or_default().to_owned(),
                tag: format!("{:016x}", info.tag()),
                translated_bytes: info.size_translated(),
                jited_bytes: info.size_jitted(),
                verified_instructions: info.verified_instruction_count(),
            });
        }
    }
    let objects = Objects {
        maps,
        programs,
        pins,
    };
    Ok(serde_json::to_string_pretty(&objects)? + "\n")
}
