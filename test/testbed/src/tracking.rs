//! Capacity of connection tracking: a test that lacks it must fail with that reason and no other.

use super::netns::Netns;
use anyhow::{Context as _, Result, ensure};
use std::fs;

/// Maximum number of tracked connections: one limit for the machine, applied to each namespace.
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Conntrack statistics of the reader's namespace, one line per CPU, in hexadecimal.
const STATISTICS: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// Checks that this many more connections can be tracked in the namespace.
///
/// # Errors
/// Returns an error if they cannot, or if connection tracking cannot be queried.
pub fn ensure_tracked(ns: &Netns, more: usize) -> Result<()> {
    let read = |path: &str| -> Result<usize> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("what {path} says"))
    };
    let (max, count) = ns.enter(|| anyhow::Ok((read(MAX)?, read(COUNT)?)))??;
    ensure!(
        max == 0 || count + more <= max,
        "this test needs {more} tracked connections, and there is room for {}: sysctl -w \
         net.netfilter.nf_conntrack_max={}",
        max.saturating_sub(count),
        (count + more).next_power_of_two()
    );
    Ok(())
}

/// Describes what connection tracking has dropped in the calling thread's namespace because its
/// table was full; `None` if nothing.
pub(super) fn was_full() -> Option<String> {
    let lost = lost(&fs::read_to_string(STATISTICS).ok()?)?;
    let max = fs::read_to_string(MAX).unwrap_or_default();
    Some(format!(
        "connection tracking was full and has dropped {lost} packets or connections: raise \
         net.netfilter.nf_conntrack_max, which is {}, if that is not what is tested",
        max.trim()
    ))
}

/// Returns from these statistics the number of packets and connections lost because the table was
/// full. A packet that lost a race counts both as dropped and as a failed insertion
/// (`nf_conntrack_core.c`, Linux 6.18).
fn lost(statistics: &str) -> Option<u64> {
    let mut lines = statistics.lines();
    let names: Vec<&str> = lines.next()?.split_whitespace().collect();
    let of = |name| names.iter().position(|n| *n == name);
    let (drop, failed, early) = (of("drop")?, of("insert_failed")?, of("early_drop")?);
    let mut lost = 0;
    for line in lines {
        let values: Vec<u64> = line
            .split_whitespace()
            .map(|value| u64::from_str_radix(value, 16).unwrap_or(0))
            .collect();
        let at = |place: usize| values.get(place).copied().unwrap_or(0);
        lost += at(drop).saturating_sub(at(failed)) + at(early);
    }
    (lost > 0).then_some(lost)
}

#[cfg(test)]
mod tests {
    use super::lost;

    const NAMES: &str = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n";

    #[test]
    fn what_was_lost_is_counted_over_all_cpus() {
        let cpu = |failed: u32, drop: u32, early: u32| {
            format!("00000004  0 0 0 0 0 0 0 0 {failed:08x} {drop:08x} {early:08x} 0  0 0 0 0\n")
        };
        let statistics = |cpus: &[String]| NAMES.to_owned() + &cpus.concat();
        assert_eq!(lost(&statistics(&[cpu(0, 0, 0), cpu(0, 0, 0)])), None);
        // A lost race does not mean a full table.
        assert_eq!(lost(&statistics(&[cpu(2, 2, 0)])), None);
        assert_eq!(lost(&statistics(&[cpu(1, 17, 0), cpu(0, 0, 3)])), Some(19));
        assert_eq!(lost(""), None);
    }
}
