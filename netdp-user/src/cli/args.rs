//! Arguments that several commands have.

use crate::programs;
use crate::state_dir;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Where one instance of netdp keeps its things.
#[derive(Debug, Args)]
pub(super) struct InstancePaths {
    /// Directory for pinned maps and links; a bpffs is mounted there if it is not on one.
    #[arg(
        long,
        value_name = "DIR",
        env = "NETDP_BPFFS",
        default_value = "/sys/fs/bpf/netdp"
    )]
    pub(super) bpffs: PathBuf,
    /// Directory for the lock, the status and the last good configuration; unless given, /run/netdp,
    /// or /dev/shm/netdp where that can only be read.
    #[arg(long, value_name = "DIR", default_value_os_t = state_dir::default_path())]
    pub(super) state_dir: PathBuf,
    /// Directory in which the programs of iptables and nft are looked for; may be repeated. Only
    /// root may be able to write to what is there.
    #[arg(long, value_name = "DIR", default_values = programs::DIRECTORIES)]
    pub(super) programs: Vec<PathBuf>,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// What the agent does.
    Info,
    /// More than most want to know.
    Debug,
    /// Everything.
    Trace,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}
