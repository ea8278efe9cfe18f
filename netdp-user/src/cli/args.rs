//! Arguments that several commands have.

use crate::{pods, programs, state_dir};
use clap::{Args, ValueEnum};
use log::LevelFilter;
use std::path::PathBuf;

/// Paths of one instance of netdp.
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
    /// Directory for the lock, the status and the last good configuration. The default is
    /// /run/netdp, or /dev/shm/netdp where that is read-only.
    #[arg(long, value_name = "DIR", default_value_os_t = state_dir::default_path())]
    pub(super) state_dir: PathBuf,
    /// Directory to search for the tools of iptables and nftables; may be repeated. Only tools
    /// that no user but root can change are executed.
    #[arg(long = "tool-dir", alias = "programs", value_name = "DIR",
          default_values = programs::DIRECTORIES)]
    pub(super) programs: Vec<PathBuf>,
}

/// Directory in which names of pods are read.
#[derive(Debug, Args)]
pub(super) struct CniDir {
    /// Directory in which container runtimes cache the networks of pods, for the pods' names.
    #[arg(long, value_name = "DIR", default_value = pods::DIRECTORY)]
    pub(super) cni_dir: PathBuf,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum LogLevel {
    /// Errors only.
    Error,
    /// Also warnings.
    Warn,
    /// Also actions of the agent.
    Info,
    /// Also debugging messages.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// Returns the filter of messages of at least this severity.
    pub(super) const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::Error,
            Self::Warn => LevelFilter::Warn,
            Self::Info => LevelFilter::Info,
            Self::Debug => LevelFilter::Debug,
            Self::Trace => LevelFilter::Trace,
        }
    }
}

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Text for people.
    Text,
    /// JSON for programs.
    Json,
}
