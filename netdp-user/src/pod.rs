//! The pod that the agent runs in: what it lacks for eBPF mode, what its manifest has to say for that,
//! and where the kubelet looks for last words.

use crate::datapath::bpffs;
use crate::rights;
use crate::terminal;
use anyhow::anyhow;
use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Where the lines of [`NoEbpf::add`] belong.
pub const BELOW: &str = "below spec.template.spec of the DaemonSet's manifest";

/// Where the kubelet looks for what `kubectl describe` shows of a container that has ended
/// (`terminationMessagePath`, which has this value unless the manifest says otherwise).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// How much the kubelet reads of that: the end, in bytes.
const LONGEST: usize = 4096;

/// `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const FILTERED: &str = "2";

/// Where the manifests of netdp have the node's bpffs. Not at /sys/fs/bpf: AppArmor's default profile
/// for containers forbids writing there.
const BPFFS: &str = "/bpf";

/// The lock of iptables-legacy's programs, which all of a node have to share.
pub const LOCK: &str = "/run/xtables.lock";

/// What a manifest needs to share it.
pub const LOCK_VOLUME: &str = "containers[0].volumeMounts: [{name: xtables-lock, mountPath: /run/xtables.lock}] \
     and volumes: [{name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}]";

/// Whether this is a pod of Kubernetes: the kubelet tells each container where the API is.
#[must_use]
pub fn is_here() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// Why eBPF mode is not possible, though it was wanted most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoEbpf {
    /// What is missing, or what the kernel said.
    pub why: String,
    /// What a pod's manifest needs besides, as lines of YAML; nothing where that is not known, or
    /// this is no pod.
    pub add: Vec<String>,
}

/// What eBPF mode needs and this process was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    capabilities: Vec<&'static str>,
    /// The node's bpffs, in a pod: what one mounts for itself ends with its container.
    bpffs: bool,
    /// A bpffs on the node: what is mounted into the pod is none.
    nodes_bpffs: bool,
    /// Whether the state directory ends with the container, too.
    state: bool,
    /// A filter of system calls, which may be what refuses.
    filtered: bool,
}

impl Lacking {
    /// Looks, with pins to be below `dir` and the state in `state_dir`.
    #[must_use]
    pub fn look(dir: &Path, state_dir: &Path) -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let in_pod = is_here();
        let field = |name| {
            let mut lines = status.lines();
            lines.find_map(|line: &str| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        let no_bpffs = in_pod && !dir.ancestors().any(bpffs::is_bpffs);
        let has_volume = bpffs::is_mounted_in(&mounts(), dir) && !dir.starts_with("/sys");
        Self {
            capabilities: rights::missing().unwrap_or_default(),
            bpffs: no_bpffs && !has_volume,
            nodes_bpffs: no_bpffs && has_volume,
            state: in_pod && !bpffs::is_mounted_in(&mounts(), state_dir),
            filtered: in_pod && field("Seccomp:").as_deref() == Some(FILTERED),
        }
    }

    /// Whether there is no use in trying.
    #[must_use]
    pub fn is_decisive(&self) -> bool {
        !self.capabilities.is_empty() || self.bpffs || self.nodes_bpffs
    }

    /// What the manifest has to say besides, each line with its place [`BELOW`].
    #[must_use]
    pub fn manifest(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !is_here() {
            return lines;
        }
        if !self.capabilities.is_empty() {
            let names = self.capabilities.join(", ");
            lines.push(format!(
                "containers[0].securityContext.capabilities.add: [{names}]"
            ));
        } else if !self.bpffs && self.filtered {
            lines.push("containers[0].securityContext.seccompProfile: {type: Unconfined}".into());
        }
        let mut mounts = Vec::new();
        let mut volumes = Vec::new();
        if self.bpffs {
            lines.push(format!(
                "containers[0].env: [{{name: NETDP_BPFFS, value: {BPFFS}/netdp}}]"
            ));
            mounts.push(format!(
                "{{name: bpffs, mountPath: {BPFFS}, mountPropagation: HostToContainer}}"
            ));
            volumes.push("{name: bpffs, hostPath: {path: /sys/fs/bpf, type: Directory}}");
        }
        if self.state {
            mounts.push("{name: state, mountPath: /run/netdp}".into());
            volumes.push("{name: state, hostPath: {path: /run/netdp, type: DirectoryOrCreate}}");
        }
        if !mounts.is_empty() {
            let (mounts, volumes) = (mounts.join(", "), volumes.join(", "));
            lines.push(format!("containers[0].volumeMounts: [{mounts}]"));
            lines.push(format!("volumes: [{volumes}]"));
        }
        lines
    }

    /// An error of eBPF mode in the words of whoever writes the pod's manifest; with the rights that are
    /// missing where this is no pod, or it lacks nothing else.
    #[must_use]
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lines = self.manifest();
        let may_be_filter = self.filtered && is_refusal(&error);
        if !is_here() || !(self.is_decisive() || may_be_filter) {
            return rights::explain(error);
        }
        // The verifier's log is of no use without the right capabilities.
        let cause = error
            .chain()
            .find(|cause| cause.is::<std::io::Error>() || cause.is::<Errno>())
            .map_or_else(|| format!("{error:#}"), ToString::to_string);
        let add = match lines.as_slice() {
            [] => String::new(),
            lines => format!("To be added {BELOW}:\n  {}\n", lines.join("\n  ")),
        };
        anyhow!(
            "eBPF mode does not work in this pod: {} ({cause})\n{add}Without --mode ebpf netdp writes \
             iptables rules where it can do no more",
            self.sentence()
        )
    }

    /// What is missing, in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        if !self.capabilities.is_empty() {
            let names: Vec<_> = self
                .capabilities
                .iter()
                .map(|name| format!("CAP_{name}"))
                .collect();
            let verb = if names.len() == 1 { "is" } else { "are" };
            parts.push(format!("{} {verb} missing", listed(&names)));
        }
        if self.bpffs {
            parts.push("the node's /sys/fs/bpf is not mounted into it, so that programs would end with the container".into());
        }
        if self.nodes_bpffs {
            parts.push(
                "the node has no bpffs at /sys/fs/bpf (systemd mounts one at boot; else a line in the \
                 node's /etc/fstab does: bpf /sys/fs/bpf bpf defaults 0 0)"
                    .into(),
            );
        }
        if parts.is_empty() {
            parts.push("the kernel refuses, or the pod's seccomp profile".into());
        }
        listed(&parts)
    }
}

fn listed(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Whether an error is that this kernel can't, or that this process may not: more of the same would
/// not help, other than with an error of the operator's or a want of memory.
#[must_use]
pub fn is_refusal(error: &anyhow::Error) -> bool {
    /// `ENOTSUPP`, which is no error of user space's (include/linux/errno.h).
    const NOT_SUPPORTED: i32 = 524;
    let code = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.and_then(std::io::Error::raw_os_error)
            .or_else(|| Some(*cause.downcast_ref::<Errno>()? as i32))
    });
    code.is_some_and(|code| {
        [
            Errno::EPERM as i32,
            Errno::EACCES as i32,
            Errno::ENOSYS as i32,
            Errno::EINVAL as i32,
            Errno::E2BIG as i32,
            Errno::EOPNOTSUPP as i32,
            // mount(2) without such a file system, and where nothing can be written.
            Errno::ENODEV as i32,
            Errno::EROFS as i32,
            NOT_SUPPORTED,
        ]
        .contains(&code)
    })
}

/// Whether this is a pod that has not got the node's lock of iptables-legacy.
#[must_use]
pub fn has_lock_of_its_own() -> bool {
    is_here() && !bpffs::is_mounted_in(&mounts(), Path::new(LOCK))
}

fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default()
}

/// Whether the file system of a path, or of what there is of it, can only be read.
#[must_use]
pub fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|it| it.exists());
    let about = there.and_then(|it| statvfs(it).ok());
    about.is_some_and(|it| it.flags().contains(FsFlags::ST_RDONLY))
}

/// Leaves a message for whoever asks why the container has ended. Where nothing waits for one, there
/// is no such file, and none is made.
pub fn leave(said: &str) {
    let said = terminal::lines(said);
    let said = &said[..said.floor_char_boundary(LONGEST)];
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(TERMINATION_LOG);
    let Ok(mut file) = file else {
        return;
    };
    if file.metadata().is_ok_and(|about| about.is_file()) {
        // It was told on standard error in any case.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(said.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_more_rights_would_mend_is_told_from_what_they_would_not() {
        let error = |code: i32| {
            anyhow::Error::new(std::io::Error::from_raw_os_error(code)).context("loading")
        };
        for errno in [Errno::EPERM, Errno::ENOSYS, Errno::EINVAL, Errno::EROFS] {
            assert!(is_refusal(&error(errno as i32)), "{errno}");
        }
        for errno in [Errno::ENOMEM, Errno::EMFILE, Errno::ENOENT, Errno::ENOTDIR] {
            assert!(!is_refusal(&error(errno as i32)), "{errno}");
        }
        assert!(!is_refusal(&anyhow!("the memory limit is too low")));
    }

    #[test]
    fn what_is_missing_is_a_sentence() {
        let lacking = Lacking {
            capabilities: vec!["BPF", "PERFMON"],
            bpffs: true,
            ..Lacking::default()
        };
        assert!(lacking.is_decisive());
        let told = lacking.sentence();
        assert!(
            told.starts_with("CAP_BPF and CAP_PERFMON are missing and the node's"),
            "{told}"
        );
    }
}
