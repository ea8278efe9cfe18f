//! Kernel statistics of programs: number of runs and their total time.

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use std::fs;
use std::os::fd::OwnedFd;

/// Guard that enables the kernel's statistics. They cost every program some nanoseconds per run,
/// which the reported time does not include.
pub struct Cost(#[expect(dead_code, reason = "closed when dropped")] OwnedFd);

/// Run statistics of a program so far.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    count: u64,
    nanoseconds: u64,
}

impl Runs {
    /// Returns the mean time of a run since `before`, in nanoseconds.
    pub fn since(self, before: Self) -> f64 {
        (self.nanoseconds - before.nanoseconds) as f64 / (self.count - before.count) as f64
    }
}

impl Cost {
    pub fn enable() -> Result<Self> {
        Ok(Self(enable_stats(Stats::RunTime)?))
    }

    /// Returns the statistics of the program with this name (the kernel keeps 15 bytes of it) that
    /// the process has loaded.
    pub fn of(&self, pid: u32, name: &str) -> Result<Runs> {
        let ids = programs_of(pid)?;
        let name = name.get(..15).unwrap_or(name);
        let program = loaded_programs()
            .filter_map(Result::ok)
            .find(|program| ids.contains(&program.id()) && program.name_as_str() == Some(name));
        let program = program.with_context(|| format!("{name} is not loaded"))?;
        let runs = Runs {
            count: program.run_count(),
            nanoseconds: u64::try_from(program.run_time().as_nanos())?,
        };
        Ok(runs)
    }
}

/// Returns the ids of the programs to which a process holds file descriptors.
fn programs_of(pid: u32) -> Result<Vec<u32>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut ids = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.clone())? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    ensure!(!ids.is_empty(), "process {pid} holds no program");
    Ok(ids)
}
