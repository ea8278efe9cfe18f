//! Requirements of eBPF mode that are missing, and the remedy in the pod's manifest.

use crate::datapath::bpffs;
use crate::{mounts, pod, rights};
use anyhow::anyhow;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const FILTERED: &str = "2";

/// Mount point of the node's bpffs in netdp's manifests. Not /sys/fs/bpf: AppArmor's default
/// profile for containers forbids writing there.
const BPFFS: &str = "/bpf";

/// Reason why eBPF mode is not possible although it was preferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoEbpf {
    /// The missing requirement, or the kernel's error.
    pub why: String,
    /// Lines of YAML that the pod's manifest lacks; empty if they are unknown or this is no pod.
    pub add: Vec<String>,
}

/// Requirements of eBPF mode that this process lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    capabilities: Vec<&'static str>,
    /// The node's bpffs is missing in a pod: a bpffs mounted by a container ends with it.
    bpffs: bool,
    /// The node has no bpffs: the directory mounted into the pod is on another file system.
    nodes_bpffs: bool,
    /// The state directory ends with the container, too.
    state: bool,
    /// A seccomp filter is active, which may be the cause of a refused system call.
    filtered: bool,
}

impl Missing {
    /// Detects what is missing for pins below `dir` and the state in `state_dir`.
    #[must_use]
    pub fn detect(dir: &Path, state_dir: &Path) -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let in_pod = pod::is_here();
        let field = |name| {
            let mut lines = status.lines();
            lines.find_map(|line: &str| Some(line.strip_prefix(name)?.trim().to_owned()))
        };
        let no_bpffs = in_pod && !dir.ancestors().any(bpffs::is_bpffs);
        let has_volume = mounts::is_mounted_in(&mounts::own(), dir) && !dir.starts_with("/sys");
        Self {
            capabilities: rights::missing().unwrap_or_default(),
            bpffs: no_bpffs && !has_volume,
            nodes_bpffs: no_bpffs && has_volume,
            state: in_pod && !mounts::is_mounted_in(&mounts::own(), state_dir),
            filtered: in_pod && field("Seccomp:").as_deref() == Some(FILTERED),
        }
    }

    /// Reports whether an attempt is bound to fail.
    #[must_use]
    pub fn is_decisive(&self) -> bool {
        !self.capabilities.is_empty() || self.bpffs || self.nodes_bpffs
    }

    /// Returns the lines that the manifest lacks, each for the place [`pod::BELOW`].
    #[must_use]
    pub fn manifest(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !pod::is_here() {
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
        let mut volume_mounts = Vec::new();
        let mut volumes = Vec::new();
        if self.bpffs {
            lines.push(format!(
                "containers[0].env: [{{name: NETDP_BPFFS, value: {BPFFS}/netdp}}]"
            ));
            volume_mounts.push(format!(
                "{{name: bpffs, mountPath: {BPFFS}, mountPropagation: HostToContainer}}"
            ));
            volumes.push("{name: bpffs, hostPath: {path: /sys/fs/bpf, type: Directory}}");
        }
        if self.state {
            volume_mounts.push("{name: state, mountPath: /run/netdp}".into());
            volumes.push("{name: state, hostPath: {path: /run/netdp, type: DirectoryOrCreate}}");
        }
        if !volume_mounts.is_empty() {
            let (volume_mounts, volumes) = (volume_mounts.join(", "), volumes.join(", "));
            lines.push(format!("containers[0].volumeMounts: [{volume_mounts}]"));
            lines.push(format!("volumes: [{volumes}]"));
        }
        lines
    }

    /// Explains an error of eBPF mode in terms of the pod's manifest; or, outside a pod or if
    /// nothing else is missing there, adds the missing privileges.
    #[must_use]
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lines = self.manifest();
        let may_be_filter = self.filtered && is_refusal(&error);
        if !pod::is_here() || !(self.is_decisive() || may_be_filter) {
            return rights::explain(error);
        }
        // The verifier's log is of no use without the right capabilities.
        let cause = error
            .chain()
            .find(|cause| cause.is::<std::io::Error>() || cause.is::<Errno>())
            .map_or_else(|| format!("{error:#}"), ToString::to_string);
        let add = match lines.as_slice() {
            [] => String::new(),
            lines => format!("Add {}:\n  {}\n", pod::BELOW, lines.join("\n  ")),
        };
        anyhow!(
            "eBPF mode does not work in this pod: {} ({cause})\n{add}Without --mode ebpf, netdp \
             falls back to iptables rules",
            self.sentence()
        )
    }

    /// Returns the missing requirements as a sentence.
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

/// Reports whether an error means that the kernel lacks support or the process lacks permission, so
/// that a retry cannot help, unlike an operator's mistake or a lack of memory.
#[must_use]
pub fn is_refusal(error: &anyhow::Error) -> bool {
    /// `ENOTSUPP`, which is not in the errno set of user space (include/linux/errno.h).
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
            // mount(2): unknown file system type; read-only file system.
            Errno::ENODEV as i32,
            Errno::EROFS as i32,
            NOT_SUPPORTED,
        ]
        .contains(&code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_distinguished_from_other_errors() {
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
        let missing = Missing {
            capabilities: vec!["BPF", "PERFMON"],
            bpffs: true,
            ..Missing::default()
        };
        assert!(missing.is_decisive());
        let told = missing.sentence();
        assert!(
            told.starts_with("CAP_BPF and CAP_PERFMON are missing and the node's"),
            "{told}"
        );
    }
}
