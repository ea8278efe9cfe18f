//! Control groups for the pods of a machine, in every mounted hierarchy.

use super::process::wait_for;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mount point of the hierarchies.
const MOUNTED: &str = "/sys/fs/cgroup";

/// Timeout for the kernel to account for the exit of the last process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the name of the group of the machine with this directory, unique among all machines.
pub fn name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Returns shell script lines that mount this system's hierarchies and create the group in each.
pub fn mounts(group: &str) -> Result<String> {
    let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let mut script = String::new();
    let of_version_1: Vec<&str> = own
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|controllers| !controllers.is_empty())
        .collect();
    if of_version_1.is_empty() {
        let _ = write!(
            script,
            "mount -t cgroup2 cgroup2 {MOUNTED}\nmkdir {MOUNTED}/{group}"
        );
        return Ok(script);
    }
    let _ = write!(script, "mount -t tmpfs -o mode=755 tmpfs {MOUNTED}");
    for controllers in of_version_1 {
        let (at, options) = match controllers.strip_prefix("name=") {
            Some(named) => (named, format!("none,{controllers}")),
            None => (controllers, controllers.to_owned()),
        };
        let _ = write!(
            script,
            "\nmkdir {MOUNTED}/{at}\nmount -t cgroup -o {options} cgroup {MOUNTED}/{at}\n\
             mkdir {MOUNTED}/{at}/{group}"
        );
        if controllers.split(',').any(|one| one == "cpuset") {
            // Without these settings a cpuset group cannot hold a process.
            let _ = write!(
                script,
                "\nfor file in cpuset.cpus cpuset.mems; do\n  \
                 cat {MOUNTED}/{at}/$file >{MOUNTED}/{at}/{group}/$file\ndone\n\
                 echo 1 >{MOUNTED}/{at}/{group}/cgroup.clone_children"
            );
        }
    }
    Ok(script)
}

/// Removes a group and its children from every hierarchy. Errors are ignored: the caller cannot act
/// on them.
pub fn remove(group: &str) {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(group);
        let _ = wait_for(PATIENCE, "control groups to be empty", || {
            remove_tree(&group);
            !group.exists()
        });
    }
}

/// Returns the names of the top-level groups of the hierarchies.
pub fn at_the_top() -> Vec<String> {
    let groups = hierarchies().into_iter().flat_map(|at| directories(&at));
    let names = groups.filter_map(|group| group.file_name()?.to_str().map(str::to_owned));
    names.collect()
}

/// Returns the directories that may be hierarchies: with cgroup v2 the mount point itself is one.
fn hierarchies() -> Vec<PathBuf> {
    let top = PathBuf::from(MOUNTED);
    let mut all = directories(&top);
    all.push(top);
    all
}

fn remove_tree(group: &Path) {
    for below in directories(group) {
        remove_tree(&below);
    }
    let _ = fs::remove_dir(group);
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
