//! Resource limits of the agent: open files and memory.

use anyhow::{Result, anyhow, bail};
use netdp_common::layout::{MIN_PAIR_BITS, PAIR_BITS, Pair};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of both mapping tables, and of the places of the `traffic` map, per flow of their capacity
/// (Linux 6.18, `bytes_memlock`).
const BYTES_PER_FLOW: u64 = 292;

/// Bytes of the entries of the `traffic` map, which come with time, per flow of that capacity.
const BYTES_CARRIED_OVER: u64 = 32;

/// The most bytes of all CPUs' bypass caches, unless they have the fewest slots.
const PAIRS: u64 = 16 << 20;

/// Bytes of the other maps of which each CPU has its own.
const BYTES_PER_CPU: u64 = 64 << 10;

/// Bytes of the other maps and the agent at rest.
const AT_REST: u64 = 35 << 20;

/// Bytes of the other maps and the agent while programs are loaded and verified.
const AT_START: u64 = 85 << 20;

/// Minimum number of open files with which the agent starts.
const OPEN_FILES: u64 = 256;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Raises the soft limit of open files to the hard limit.
pub fn raise_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft < hard
        && let Err(err) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::warn!("raising the limit of open files from {soft} to {hard}: {err}");
    }
    if hard < OPEN_FILES {
        log::warn!(
            "only {hard} files may be open (RLIMIT_NOFILE), too few for the datapath: allow \
             {OPEN_FILES} or more (LimitNOFILE= of systemd)"
        );
    }
}

/// Adds to an error the limit that caused it, if one did.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    let code = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let io = io.and_then(std::io::Error::raw_os_error);
        io.or_else(|| Some(*cause.downcast_ref::<Errno>()? as i32))
    });
    match code.map(Errno::from_raw) {
        Some(Errno::EMFILE) => {
            let open = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            let enough = OPEN_FILES.max(open.saturating_mul(2));
            error.context(format!(
                "no more than {open} files may be open (RLIMIT_NOFILE), too few: allow {enough} or \
                 more (LimitNOFILE= of systemd, the container runtime's limit in a pod)"
            ))
        }
        Some(Errno::ENFILE) => error.context(
            "the machine has too many open files: raise the sysctl fs.file-max, or stop what holds \
             them open",
        ),
        Some(Errno::ENOMEM) => error.context(match memory() {
            Some(limit) => format!(
                "no memory left: the limit is {} MiB ({}); raise it, or make the tables smaller \
                 (--max-flows)",
                limit.bytes >> 20,
                limit.file.display()
            ),
            None => "no memory left on the machine; make the tables smaller (--max-flows)".into(),
        }),
        _ => error,
    }
}

/// Returns the number of CPUs for which the kernel keeps values, present or not.
///
/// # Errors
/// Returns an error if the kernel does not tell.
pub fn cpus() -> Result<u64> {
    let cpus = aya::util::nr_cpus().map_err(|(file, err)| anyhow!("reading {file}: {err}"))?;
    Ok(cpus as u64)
}

/// Returns the number of slots of the bypass cache, as a power of two, for so many CPUs, each of which
/// has a cache of its own.
pub fn pair_bits(cpus: u64) -> u32 {
    let fits = |bits: &u32| cpus * pair_bytes(*bits) <= PAIRS;
    let mut bits = (MIN_PAIR_BITS..=PAIR_BITS).rev();
    bits.find(fits).unwrap_or(MIN_PAIR_BITS)
}

/// Returns the bytes of one CPU's bypass cache.
const fn pair_bytes(bits: u32) -> u64 {
    (size_of::<Pair>() as u64) << bits
}

/// Checks that maps for `max_flows` flows fit into the memory limit of this process.
///
/// # Errors
/// Returns an error if they do not: creating them would fail, or the OOM killer would end the
/// agent.
pub fn check_memory(max_flows: u32) -> Result<()> {
    let cpus = cpus()?;
    memory().map_or(Ok(()), |limit| check(&limit, max_flows, cpus))
}

fn check(limit: &Limit, max_flows: u32, cpus: u64) -> Result<()> {
    let of_cpus = cpus * (BYTES_PER_CPU + pair_bytes(pair_bits(cpus)));
    let tables = u64::from(max_flows) * BYTES_PER_FLOW + of_cpus;
    let at_rest = tables + u64::from(max_flows) * BYTES_CARRIED_OVER + AT_REST;
    let (bytes, file) = (limit.bytes, limit.file.display());
    if bytes < at_rest {
        bail!(
            "the memory limit of {} MiB ({file}) is too low for --max-flows {max_flows}: the kernel's \
             maps and the agent take {} MiB, {} MiB at start; raise it, or make the tables smaller",
            bytes >> 20,
            at_rest.div_ceil(1 << 20),
            (tables + AT_START).div_ceil(1 << 20)
        );
    }
    if bytes < tables + AT_START {
        log::warn!(
            "the memory limit of {} MiB ({file}) is tight for --max-flows {max_flows}: up to {} MiB \
             are taken at start",
            bytes >> 20,
            (tables + AT_START).div_ceil(1 << 20)
        );
    }
    Ok(())
}

/// A memory limit and the file that sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    file: PathBuf,
}

/// Returns the lowest memory limit of this process's control groups.
fn memory() -> Option<Limit> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_of(Path::new(CGROUPS), &groups)
}

fn memory_of(root: &Path, groups: &str) -> Option<Limit> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            named if named.split(',').any(|it| it == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path may be the host's; its existing ancestors are used.
        let group = Path::new(group.trim_start_matches('/'));
        found.extend(
            group
                .ancestors()
                .filter_map(|above| limit_in(&root.join(above).join(name))),
        );
    }
    found.into_iter().min_by_key(|limit| limit.bytes)
}

fn limit_in(file: &Path) -> Option<Limit> {
    let text = fs::read_to_string(file).ok()?;
    let bytes: u64 = text.trim().parse().ok()?;
    // cgroup v1 represents "no limit" by a huge number.
    (bytes < 1 << 60).then(|| Limit {
        bytes,
        file: file.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_counts_of_either_kind_of_control_group() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let limit = |groups: &str| memory_of(root.path(), groups).map(|it| (it.bytes, it.file));
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        let above = write("a/memory.max", "1000\n");
        assert_eq!(limit("0::/a/b\n"), Some((1000, above)));
        let own = write("a/b/memory.max", "999\n");
        assert_eq!(limit("0::/a/b\n"), Some((999, own)));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let groups = "5:cpu:/c\n4:memory:/not/here\n0::/\n";
        assert_eq!(limit(groups), None);
        let first = write("memory/memory.limit_in_bytes", "77\n");
        assert_eq!(limit(groups), Some((77, first)));
    }

    #[test]
    fn limits_that_are_too_low_are_refused_with_what_is_needed() {
        let limit = |mebibytes: u64| Limit {
            bytes: mebibytes << 20,
            file: "/memory.max".into(),
        };
        check(&limit(118), 262_144, 2).unwrap();
        let told = check(&limit(117), 262_144, 2).unwrap_err().to_string();
        for words in [
            "117 MiB",
            "/memory.max",
            "take 118 MiB",
            "160 MiB at start",
            "--max-flows",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        check(&limit(101), 131_072, 2).unwrap();
    }

    #[test]
    fn many_cpus_have_small_caches() {
        for (cpus, bits) in [(1, 13), (2, 13), (32, 13), (33, 12), (128, 11), (1024, 10)] {
            assert_eq!(pair_bits(cpus), bits, "{cpus}");
        }
    }

    #[test]
    fn errors_of_limits_say_what_to_do() {
        let told = |errno: Errno| {
            let error = std::io::Error::from(errno);
            let error = anyhow::Error::new(error).context("making a map");
            format!("{:#}", explain(error))
        };
        assert!(told(Errno::EMFILE).contains("RLIMIT_NOFILE"));
        assert!(told(Errno::ENOMEM).contains("--max-flows"));
        assert!(told(Errno::ENFILE).contains("fs.file-max"));
        assert!(told(Errno::EINVAL).starts_with("making a map"));
    }
}
