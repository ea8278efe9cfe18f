//! Names of namespaces and directories, and removal of those that dead processes left behind.

use super::cgroups;
use super::process::wait_for;
use super::workdir;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, id};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PREFIX: &str = "netdp";

/// Timeout for killed processes to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Directory in which `ip netns` keeps its names.
pub(super) const NETNS_DIR: &str = "/run/netns";

/// Reports whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Returns an error that names the missing privilege unless this process runs as root.
pub fn require_root(what: &str) -> Result<()> {
    ensure!(
        is_root(),
        "{what} needs root: it makes network namespaces and loads eBPF \
         programs. Run it again as root, for example with sudo -E env \"PATH=$PATH\" before it"
    );
    Ok(())
}

/// Returns a name that is unique among the namespaces and directories of this machine:
/// `netdp-<pid>-<seq>-<role>`.
pub(super) fn unique(role: &str) -> String {
    static SEQUENCE: AtomicU32 = AtomicU32::new(0);
    sweep_once();
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{sequence}-{role}", id())
}

/// Removes everything that this process and dead ones created. For signal handlers: a process that
/// a signal terminates drops nothing.
pub fn remove_all() {
    remove_where(|pid| pid == id() || !is_alive(pid));
}

/// Removes everything that dead processes left behind; living processes keep theirs.
pub fn sweep() {
    remove_where(|pid| pid != id() && !is_alive(pid));
}

fn sweep_once() {
    static SWEPT: OnceLock<()> = OnceLock::new();
    // Before the first name is assigned, a name with this process's id can only come from an
    // earlier process with the same id.
    SWEPT.get_or_init(remove_all);
}

fn remove_where(is_leftover: impl Fn(u32) -> bool) {
    for name in entries(Path::new(NETNS_DIR)) {
        if owner(&name).is_some_and(&is_leftover) {
            remove_netns(&name);
        }
    }
    for name in cgroups::at_the_top() {
        if owner(&name).is_some_and(&is_leftover) {
            cgroups::remove(&name);
        }
    }
    for name in entries(&std::env::temp_dir()) {
        if owner(&name).is_some_and(&is_leftover) {
            workdir::remove(&std::env::temp_dir().join(name));
        }
    }
}

/// Kills the processes in the namespace, then removes its name. Errors are ignored: another process
/// may be removing the same name.
pub(super) fn remove_netns(name: &str) {
    for pid in processes_in(name).unwrap_or_default() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    // Their resources, such as mounts, go with them.
    let _ = wait_for(PATIENCE, "the end of its processes", || {
        processes_in(name).map_or(true, |left| left.is_empty())
    });
    let _ = Command::new("ip").args(["netns", "delete", name]).output();
}

/// Returns the processes in the namespace `name`, without this one.
fn processes_in(name: &str) -> Result<BTreeSet<Pid>> {
    let path = Path::new(NETNS_DIR).join(name);
    let wanted = fs::metadata(&path).with_context(|| format!("namespace {name}"))?;
    let found = entries(Path::new("/proc"))
        .filter_map(|entry| entry.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(id()))
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|its| (its.dev(), its.ino()) == (wanted.dev(), wanted.ino()))
        });
    Ok(found.map(Pid::from_raw).collect())
}

/// Returns the process id in a name; `None` if the name has another form.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.splitn(4, '-');
    let (prefix, pid, sequence, role) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    sequence.parse::<u32>().ok()?;
    let pid = pid.parse().ok()?;
    (prefix == PREFIX && !role.is_empty()).then_some(pid)
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn entries(dir: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner("netdp-17-3-node"), Some(17));
        assert_eq!(owner(&unique("pod-1")), Some(id()));
    }

    #[test]
    fn other_names_have_no_owner() {
        for name in [
            "netdp",
            "netdp-17",
            "netdp-17-3",
            "netdp-17-3-",
            "netdp-x-3-node",
            "netdp-17-x-node",
            "cni-17-3-node",
            "netdp2-17-3-node",
        ] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
