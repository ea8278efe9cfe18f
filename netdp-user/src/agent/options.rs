//! What `netdp run` is told.

use crate::config::{Document, Options, Surroundings};
use crate::datapath::Setup;
use crate::iptables::ChainOptions;
use crate::sources::kube::KubeOptions;
use crate::uplinks::Patterns;
use netdp_common::timeouts::Timeouts;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What does the translating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// eBPF programs at the uplinks.
    Ebpf,
    /// netfilter, by the chains that ip-masq-agent writes.
    Iptables,
    /// Nothing of netdp's: what eBPF would do is compared with what netfilter does, see
    /// netdp shadow report.
    Shadow,
    /// eBPF where it can be loaded and outlives the agent, else iptables.
    Auto,
}

/// What becomes of the datapath when the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// It goes on without the agent.
    Keep,
    /// It is removed.
    Detach,
}

/// Everything that `netdp run` is told.
#[derive(Debug)]
pub struct RunOptions {
    /// Files and directories.
    pub config_paths: Vec<PathBuf>,
    /// Flags that change what they mean.
    pub config_options: Options,
    /// `--pod-cidr`, `--service-cidr`.
    pub surroundings: Surroundings,
    /// `--targets`: a document besides the files.
    pub targets: Option<Document>,
    /// `--uplink`.
    pub patterns: Patterns,
    /// `--hairpin`.
    pub hairpin: Patterns,
    /// `--node-ip`.
    pub node_addrs: Vec<IpAddr>,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--mode`.
    pub mode: Mode,
    /// What the chains are to be in iptables mode.
    pub chains: ChainOptions,
    /// `--takeover`: whether the chains of ip-masq-agent go once the datapath is in force.
    pub takeover: bool,
    /// `--grace`: how long the datapath goes on, after the way back to iptables, for mappings that
    /// netfilter does not take.
    pub grace: Duration,
    /// The flags given that iptables mode does not know.
    pub ebpf_only: Vec<&'static str>,
    /// The datapath's fixed settings.
    pub setup: Setup,
    /// `--timeout` over the defaults.
    pub timeouts: Timeouts,
    /// `--on-exit`.
    pub on_exit: OnExit,
    /// `--ready-file`.
    pub ready_file: Option<PathBuf>,
    /// What to follow of the Kubernetes API; `None` for nothing.
    pub kube: Option<KubeOptions>,
    /// `--http-listen`.
    pub http_listen: Option<SocketAddr>,
}
