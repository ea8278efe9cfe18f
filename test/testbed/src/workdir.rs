//! Temporary directories and the file systems mounted in them.

use super::names;
use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory `netdp-<pid>-<seq>-<role>` in the system's temporary directory. Dropping it unmounts
/// everything mounted in it and removes it.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Creates the directory; `role` is a part of its name.
    pub fn new(role: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(names::unique(role));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Unmounts everything mounted below `path` and removes it. Errors are ignored: the caller cannot
/// act on them.
pub(super) fn remove(path: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // The innermost mounts are listed last.
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new)
        .filter(|mount| mount.starts_with(path));
    for mount in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = umount2(mount, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(path);
}
