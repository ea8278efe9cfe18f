//! The BPF file system that pins live in.

use crate::private;
use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Makes `dir` a directory on a bpffs, mounting one there if it is not.
///
/// # Errors
/// The directory can't be made or the bpffs can't be mounted.
pub fn ensure(dir: &Path) -> Result<()> {
    if let Err(err) = fs::create_dir_all(dir) {
        // /sys/fs/bpf without a bpffs: sysfs lets nobody make directories.
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
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    if !is_bpffs(dir) {
        mount(dir)?;
    }
    // Whoever could put other pins here would have the agent write their maps.
    private::directory(dir, "--bpffs").context("the directory for pins")?;
    fs::create_dir_all(dir.join("links"))
        .with_context(|| format!("creating {}", dir.join("links").display()))
}

/// Whether `dir` lies on a bpffs.
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
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
             or mount one there beforehand (mount -t bpf bpf {}), or choose a directory on one with --bpffs",
            dir.display(),
            dir.display()
        )
    })?;
    log::info!("mounted a bpffs at {}", dir.display());
    Ok(())
}

/// Removes a pin; none there is fine.
///
/// # Errors
/// The file system refused.
pub fn remove_pin(path: &Path, removed: &mut Vec<String>) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => removed.push(path.display().to_string()),
        Err(err) if err.kind() == ErrorKind::NotFound => {}
        Err(err) => bail!("removing the pin {}: {err}", path.display()),
    }
    Ok(())
}

/// Removes the directory of pins once it is empty, and the mount if the bpffs
/// was mounted right there. What others have put there stays.
///
/// # Errors
/// The mount could not be undone.
pub fn remove_dir(dir: &Path, removed: &mut Vec<String>) -> Result<()> {
    // Not empty or gone already: neither is ours to force.
    let _ = fs::remove_dir(dir.join("links"));
    let others = fs::read_dir(dir).is_ok_and(|entries| {
        // A fresh bpffs has these two from the kernel (kernel/bpf/preload).
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
