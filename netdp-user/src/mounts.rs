//! Mounts as listed in `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

/// A mount, from one line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `MAJOR:MINOR` of its file system, the same for each of its mounts.
    pub device: String,
    /// Mount point, relative to the root of the process.
    pub point: PathBuf,
    /// True if the mount is a shared one, which propagates.
    pub is_shared: bool,
    /// Type of the file system.
    pub kind: String,
}

/// Returns the mounts of a `mountinfo`, the latest last.
pub fn parse(text: &str) -> impl Iterator<Item = Mount> {
    text.lines().filter_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(2);
        let device = fields.next()?.to_owned();
        let point = unescape(fields.nth(1)?);
        Some(Mount {
            device,
            point: PathBuf::from(point),
            is_shared: fields.any(|field| field.starts_with("shared:")),
            kind: system.split(' ').next()?.to_owned(),
        })
    })
}

/// Reports whether something is mounted at `dir` or above it, according to `/proc/PID/mountinfo`,
/// except for the mounts that every container has: its root, its devices (shared memory among
/// them), and with some runtimes /run.
pub fn is_mounted_in(mountinfo: &str, dir: &Path) -> bool {
    let own = ["/", "/dev", "/dev/shm", "/run"].map(Path::new);
    parse(mountinfo)
        .any(|mount| dir.starts_with(&mount.point) && !own.contains(&mount.point.as_path()))
}

/// Returns the mounts of this thread's namespace in the form of `mountinfo`; empty if they cannot be
/// read.
pub fn own() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default()
}

/// Decodes blanks and backslashes, which are written as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => {
                found.push(char::from(code));
                found += part.get(3..).unwrap_or_default();
            }
            None => {
                found.push('\\');
                found += part;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Mount, parse};

    #[test]
    fn mounts_are_read_whatever_optional_fields_they_have() {
        let text = "\
24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 24 0:27 / /sys/fs/bpf rw,nosuid shared:9 master:2 - bpf bpf rw,mode=700
90 60 0:99 / /a\\040place rw - bpf none rw
";
        let mount = |device: &str, point: &str, is_shared, kind: &str| Mount {
            device: device.into(),
            point: point.into(),
            is_shared,
            kind: kind.into(),
        };
        assert_eq!(
            parse(text).collect::<Vec<_>>(),
            [
                mount("0:22", "/sys", true, "sysfs"),
                mount("0:27", "/sys/fs/bpf", true, "bpf"),
                mount("0:99", "/a place", false, "bpf"),
            ]
        );
    }
}
