//! The BPF file system that holds the pins.

use crate::{mounts, pod, private};
use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use netdp_common::layout::pins;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The initial PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h, Linux 6.18).
const INITIAL_PIDS: &str = "pid:[4026531836]";

/// Returns whether a datapath is pinned below `dir`.
pub fn is_pinned(dir: &Path) -> bool {
    dir.join(pins::SETTINGS).exists()
}

/// Creates the directory `dir` on a bpffs, and mounts one there if it is not on one. Returns
/// whether it mounted one.
///
/// # Errors
/// Returns an error if the directory can't be created or the bpffs can't be mounted.
pub fn ensure(dir: &Path) -> Result<bool> {
    let mut mounted = false;
    if let Err(err) = fs::create_dir_all(dir) {
        // /sys/fs/bpf without a bpffs: directories can't be created in sysfs.
        let parent = dir.parent().unwrap_or(dir);
        if !parent.starts_with("/sys") || !parent.is_dir() || is_bpffs(parent) {
            return Err(err).with_context(|| {
                format!(
                    "creating the directory for pins, {} (this needs root; another one can be chosen with --bpffs)",
                    dir.display()
                )
            });
        }
        mount(parent)?;
        mounted = true;
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    if !is_bpffs(dir) {
        mount(dir)?;
        mounted = true;
    }
    // Anyone able to place other pins here could make the agent write their maps.
    private::directory(dir, "--bpffs").context("the directory for pins")?;
    fs::create_dir_all(dir.join("links"))
        .with_context(|| format!("creating {}", dir.join("links").display()))?;
    Ok(mounted)
}

/// Reports whether `dir` lies on a bpffs.
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Returns the reason why the bpffs of `dir` ends with the mount namespace of this process, if it
/// does: it is mounted nowhere else, as far as can be determined. Pins then outlive the agent only
/// as long as something else holds that namespace.
///
/// It counts as mounted elsewhere if process 1 has it too. In a container (a PID namespace of its
/// own) process 1 may share our mounts: there, a bpffs that this process has mounted, and whose
/// mount does not propagate, counts as mounted nowhere else.
pub fn ephemeral_reason(dir: &Path, mounted: bool) -> Option<String> {
    let dir = fs::canonicalize(dir).ok()?;
    let own = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts: Vec<_> = mounts::parse(&own).collect();
    let above = mounts.iter().filter(|mount| dir.starts_with(&mount.point));
    // Of several mounts at one point the latest one is visible.
    let at = above.max_by_key(|mount| mount.point.as_os_str().len())?;
    let inits = fs::read_to_string("/proc/1/mountinfo").ok()?;
    let has_init = mounts::parse(&inits).any(|mount| mount.device == at.device);
    let container =
        fs::read_link("/proc/self/ns/pid").is_ok_and(|it| it != Path::new(INITIAL_PIDS));
    let is_known = has_init && !(container && mounted && !at.is_shared);
    let mend = if pod::is_here() {
        "Mount the node's /sys/fs/bpf into the pod: see docs/install.md"
    } else {
        "Mount one on the host (mount -t bpf bpf /sys/fs/bpf) and give it to the agent, or let mounts \
         propagate to the host"
    };
    (!is_known).then(|| {
        format!(
            "the bpffs at {} is mounted in this process's mount namespace only: programs and maps \
             end with it, and pods' packets then leave with their own addresses. {mend}",
            at.point.display()
        )
    })
}

fn mount(dir: &Path) -> Result<()> {
    nix::mount::mount(
        Some("bpf"),
        dir,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .with_context(|| {
        format!(
            "mounting a bpffs at {}: this needs CAP_SYS_ADMIN; \
             or mount one there beforehand (mount -t bpf bpf {}), or choose a directory on one with --bpffs. A pod \
             gets the node's by a hostPath volume of /sys/fs/bpf",
            dir.display(),
            dir.display()
        )
    })?;
    log::info!("mounted a bpffs at {}", dir.display());
    Ok(())
}

/// Opens the map that is pinned as `file` in the directory `dir`.
///
/// # Errors
/// Returns an error that names the file if there is none, or it is not a map.
pub fn open_map(dir: &Path, file: &str) -> Result<MapData> {
    let path = dir.join(file);
    MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
}

/// Removes a pin, if there is one.
///
/// # Errors
/// Returns an error if the file system refuses.
pub fn remove_pin(path: &Path, removed: &mut Vec<String>) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => removed.push(path.display().to_string()),
        Err(err) if err.kind() == ErrorKind::NotFound => {}
        Err(err) => bail!("removing the pin {}: {err}", path.display()),
    }
    Ok(())
}

/// Removes the directory of pins once it is empty, and the mount if the bpffs was mounted right
/// there. Files of others stay.
///
/// # Errors
/// Returns an error if the bpffs can't be unmounted.
pub fn remove_dir(dir: &Path, removed: &mut Vec<String>) -> Result<()> {
    // Not empty or gone already: never forced.
    let _ = fs::remove_dir(dir.join("links"));
    let others = fs::read_dir(dir).is_ok_and(|entries| {
        // The kernel creates these two in a fresh bpffs (kernel/bpf/preload).
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            name != "maps.debug" && name != "progs.debug"
        })
    });
    if others {
        return Ok(());
    }
    if is_mount_point(dir) {
        nix::mount::umount2(dir, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", dir.display()))?;
        removed.push(format!("{} (unmounted)", dir.display()));
    } else if fs::remove_dir(dir).is_ok() {
        removed.push(dir.display().to_string());
    }
    Ok(())
}

fn is_mount_point(dir: &Path) -> bool {
    let Some(parent) = dir.parent() else {
        return true;
    };
    match (fs::metadata(dir), fs::metadata(parent)) {
        (Ok(own), Ok(above)) => own.dev() != above.dev() && dir != Path::new("/sys/fs/bpf"),
        _ => false,
    }
}
