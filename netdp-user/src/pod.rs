//! The pod that the agent runs in: its mounts, and the termination message that the kubelet reads.

use crate::mounts;
use crate::terminal;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Place in the manifest for lines that are to be added.
pub const BELOW: &str = "below spec.template.spec of the DaemonSet's manifest";

/// File from which the kubelet takes the text that `kubectl describe` shows of a terminated
/// container (`terminationMessagePath`, this value unless the manifest sets another).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Limit of the termination message, in bytes: the kubelet reads only the end.
const LONGEST: usize = 4096;

/// The lock of the iptables-legacy programs, which has to be shared by a whole node.
pub const LOCK: &str = "/run/xtables.lock";

/// Lines of the manifest that share that lock.
pub const LOCK_VOLUME: &str = "containers[0].volumeMounts: [{name: xtables-lock, mountPath: /run/xtables.lock}] \
     and volumes: [{name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}]";

/// Reports whether this is a Kubernetes pod: the kubelet sets the API's address in each container.
#[must_use]
pub fn is_here() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

/// Reports whether this is a pod that does not mount the node's lock of iptables-legacy.
#[must_use]
pub fn has_lock_of_its_own() -> bool {
    is_here() && !mounts::is_mounted_in(&mounts::own(), Path::new(LOCK))
}

/// Reports whether the file system of a path, or of its nearest existing ancestor, is read-only.
#[must_use]
pub fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|it| it.exists());
    let about = there.and_then(|it| statvfs(it).ok());
    about.is_some_and(|it| it.flags().contains(FsFlags::ST_RDONLY))
}

/// Writes the termination message of the container. The file is not created: it exists only where
/// the kubelet collects one.
pub fn write_termination_message(text: &str) {
    let text = terminal::lines(text);
    let text = &text[..text.floor_char_boundary(LONGEST)];
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(TERMINATION_LOG);
    let Ok(mut file) = file else {
        return;
    };
    if file.metadata().is_ok_and(|about| about.is_file()) {
        // The message is on standard error in any case.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(text.as_bytes()));
    }
}
