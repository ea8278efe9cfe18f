//! The run time of the programs, counted by the kernel only while somebody looks.

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use std::os::fd::OwnedFd;

/// Names of the programs as the kernel keeps them: 15 bytes (`BPF_OBJ_NAME_LEN`,
/// include/uapi/linux/bpf.h).
const PROGRAMS: [&str; 3] = ["egress_snat", "ingress_rev_snat", "pod_hairpin"];

/// Bytes of a program's name in the kernel, without the zero.
const NAME_LEN: usize = 15;

/// Run time and number of runs of a program since it was loaded, as far as they were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// Time in nanoseconds.
    pub nanos: u64,
    /// Number of runs.
    pub count: u64,
}

/// The kernel's counting of run times, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Counting(#[expect(dead_code, reason = "held open")] OwnedFd);

impl Counting {
    /// Begins counting. It makes every run of every program longer.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses (`CAP_SYS_ADMIN`, or before Linux 5.8).
    pub(super) fn begin() -> Result<Self> {
        let held = enable_stats(Stats::RunTime)
            .context("counting run times (BPF_ENABLE_STATS); this needs CAP_SYS_ADMIN")?;
        Ok(Self(held))
    }
}

/// Returns the runs of all programs of netdp that use a map, summed up.
///
/// # Errors
/// Returns an error if the kernel does not list programs.
pub(super) fn runs(map: u32) -> Result<Runs> {
    let mut sum = Runs::default();
    for info in loaded_programs() {
        let info = info.context("listing the kernel's programs")?;
        let name = info.name_as_str().unwrap_or_default();
        let is_ours = PROGRAMS
            .iter()
            .any(|known| name == known.get(..NAME_LEN).unwrap_or(known));
        if !is_ours {
            continue;
        }
        let maps = info.map_ids().context("querying a program's maps")?;
        if maps.is_some_and(|maps| maps.contains(&map)) {
            sum.nanos += u64::try_from(info.run_time().as_nanos())?;
            sum.count += info.run_count();
        }
    }
    Ok(sum)
}
