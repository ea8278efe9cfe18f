//! Metrics of the agent's process, under the names that every Prometheus client uses.

use super::samples::Samples;
use super::table::{CPU, MAX_FDS, OPEN_FDS, RESIDENT, STARTED, VIRTUAL};
use super::{Source, float};
use crate::time;
use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::time::Duration;

/// The agent's process.
pub(super) struct Process {
    /// Time of its start, in seconds since 1970.
    started: u64,
}

impl Process {
    /// Returns the process, which has started just now.
    pub(super) fn started() -> Self {
        Self {
            started: time::now(),
        }
    }
}

impl Source for Process {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .context("reading the process's CPU time")?;
        samples.seconds(CPU, Duration::from(cpu).as_secs_f64());
        let status =
            fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
        for (metric, field) in [(RESIDENT, "VmRSS:"), (VIRTUAL, "VmSize:")] {
            if let Some(bytes) = bytes(&status, field) {
                samples.gauge(metric, &[], float(bytes));
            }
        }
        let open = fs::read_dir("/proc/self/fd").context("reading /proc/self/fd")?;
        // The directory itself is open, too.
        let open = u64::try_from(open.count())?.saturating_sub(1);
        samples.gauge(OPEN_FDS, &[], float(open));
        let (limit, _) =
            getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
        samples.gauge(MAX_FDS, &[], float(limit));
        samples.gauge(STARTED, &[], float(self.started));
        Ok(())
    }
}

/// Returns a field of `/proc/self/status` that is in kB, in bytes.
fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "VmSize:\t    8536 kB\nVmRSS:\t  12 kB\n";
        assert_eq!(bytes(status, "VmRSS:"), Some(12_288));
        assert_eq!(bytes(status, "VmData:"), None);
    }
}
