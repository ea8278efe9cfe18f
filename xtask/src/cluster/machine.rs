//! A node as a machine of its own: namespaces for processes, mounts and host names besides the
//! network, held by one process.

use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testbed::{Netns, Running, WorkDir, cgroups, wait_some};

/// Timeout for all mounts.
const PATIENCE: Duration = Duration::from_secs(60);

/// Search path for the machine's programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine. Dropping it ends its first process and with it all others, their containers and
/// mounts; then its control groups and directories are removed.
#[derive(Debug)]
pub struct Machine {
    holder: Running,
    first: u32,
    dir: WorkDir,
}

impl Machine {
    /// Boots a machine in a network namespace: with its own /run, /var/lib, /var/log and bpffs, and
    /// a control group for its pods.
    pub fn boot(ns: &Netns, name: &str) -> Result<Self> {
        let dir = WorkDir::new("machine")?;
        for below in [
            "lib/kubelet",
            "lib/cni",
            "lib/containerd",
            "log/pods",
            "log/containers",
        ] {
            fs::create_dir_all(dir.path().join(below))?;
        }
        let script = dir.path().join("first.sh");
        fs::write(&script, first_process(&dir, name)?)?;
        let mut command = ns.command("unshare");
        command
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork"])
            .args(["--kill-child", "--propagation", "slave", "sh"])
            .arg(script);
        let mut holder = Running::start(command)?;
        let first = wait_some(PATIENCE, "the machine to be up", || {
            if !matches!(holder.exit_status(), Ok(None)) {
                return Some(None);
            }
            let up = dir.path().join("up").exists();
            up.then(|| only_child(holder.pid()))
        })
        .ok()
        .flatten()
        .with_context(|| format!("the machine did not come up:{}", holder.written()))?;
        Ok(Self { holder, first, dir })
    }

    /// Returns a command whose process will run on the machine. It ends with the process that was
    /// started for it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/"])
            .args(["setpriv", "--pdeathsig=KILL", "--"])
            .arg(program)
            .env("PATH", PATH);
        command
    }

    /// Returns the directory of all its files, which has the same path on the machine.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path on the host of a path on the machine.
    #[must_use]
    pub fn path(&self, on_machine: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{on_machine}", self.first))
    }

    /// Returns the name of the control group of its pods.
    #[must_use]
    pub fn cgroup(&self) -> String {
        cgroups::name(self.dir())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(first) = i32::try_from(self.first) {
            let first = nix::unistd::Pid::from_raw(first);
            let _ = nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL);
        }
        // It exits after the last process on the machine.
        let _ = self.holder.wait(PATIENCE);
        cgroups::remove(&self.cgroup());
    }
}

/// Returns the script of the first process: it mounts, then reaps the processes that become its
/// children.
fn first_process(dir: &WorkDir, name: &str) -> Result<String> {
    let tmp = std::env::temp_dir();
    let (dir, tmp) = (dir.path().display(), tmp.display());
    let cgroups = cgroups::mounts(&cgroups::name(Path::new(&dir.to_string())))?;
    Ok(format!(
        "set -e
mount --make-rprivate /
# What other test beds have mounted shall go when they do.
while read -r _ at _; do
  case $at in {tmp}/netdp-*) umount -l \"$at\" ;; esac
done </proc/self/mounts
mount -t proc proc /proc
# It shows the interfaces of the namespace in which it is mounted.
mount -t sysfs sysfs /sys
{cgroups}
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind {dir}/lib /var/lib
mount --bind {dir}/log /var/log
# Or the kubelet refuses volumes with mountPropagation.
mount --make-rshared /
hostname {name}
: >{dir}/up
set +e
while :; do
  sleep 86400 &
  wait $!
done
"
    ))
}

/// Returns the child of a single-threaded process.
fn only_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
