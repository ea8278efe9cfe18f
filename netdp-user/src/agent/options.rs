//! Options of `netdp run`.

use crate::config::{ClusterCidrs, Document, Options};
use crate::control::Listen;
use crate::datapath::Setup;
use crate::iptables::ChainOptions;
use crate::metrics::MetricsOptions;
use crate::nat_log::NatLogOptions;
use crate::page::HttpPage;
use crate::pods::PodNameOptions;
use crate::sources::kube::KubeOptions;
use crate::uplinks::Patterns;
use netdp_common::flow::Timeouts;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Mode of operation: what translates packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// eBPF programs at the uplinks.
    Ebpf,
    /// netfilter rules, in the chains that ip-masq-agent writes.
    Iptables,
    /// No translation: compares what eBPF would do with what netfilter does; see
    /// netdp shadow report.
    Shadow,
    /// eBPF where it can be loaded and outlives the agent, else iptables.
    Auto,
}

/// Treatment of the datapath when the agent exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// Keep it in force without the agent.
    Keep,
    /// Remove it.
    Detach,
}

/// All options of `netdp run`.
#[derive(Debug)]
pub struct RunOptions {
    /// Configuration files and directories.
    pub config_paths: Vec<PathBuf>,
    /// Flags that change how these are interpreted.
    pub config_options: Options,
    /// Cluster networks from `--pod-cidr` and `--service-cidr`.
    pub cluster_cidrs: ClusterCidrs,
    /// Document from `--targets`, in addition to the files.
    pub targets: Option<Document>,
    /// Uplink patterns from `--uplink`.
    pub patterns: Patterns,
    /// Interface patterns from `--hairpin-interface`.
    pub hairpin: Patterns,
    /// Node addresses from `--node-ip`.
    pub node_addrs: Vec<IpAddr>,
    /// Mount point of the bpffs or a directory below it, from `--bpffs`.
    pub bpffs: PathBuf,
    /// State directory from `--state-dir`.
    pub state_dir: PathBuf,
    /// Requested mode from `--mode`.
    pub mode: Mode,
    /// Options of the chains in iptables mode.
    pub chains: ChainOptions,
    /// `--takeover`: removes the chains of ip-masq-agent once the datapath is in force.
    pub takeover: bool,
    /// `--rollback-grace`: time that the datapath remains after a rollback to iptables, for mappings
    /// that netfilter does not accept.
    pub grace: Duration,
    /// Given flags that have no effect in iptables mode.
    pub ebpf_only: Vec<&'static str>,
    /// The datapath's fixed settings.
    pub setup: Setup,
    /// The default timeouts, overridden by `--timeout`.
    pub timeouts: Timeouts,
    /// Options of the names of pods, from `--pod-names` and `--cni-dir`.
    pub pod_names: PodNameOptions,
    /// The NAT log, from `--nat-log`; `None` if there is none.
    pub nat_log: Option<NatLogOptions>,
    /// Treatment of the datapath at the end, from `--on-exit`.
    pub on_exit: OnExit,
    /// Path of the ready file, from `--ready-file`.
    pub ready_file: Option<PathBuf>,
    /// Options for following the Kubernetes API; `None` if it is not followed.
    pub kube: Option<KubeOptions>,
    /// Address for probes, metrics and the page, from `--http-listen`.
    pub http_listen: Option<SocketAddr>,
    /// Readers of the page, from `--http-page`.
    pub http_page: HttpPage,
    /// Options of the metrics.
    pub metrics: MetricsOptions,
}

impl RunOptions {
    /// Returns the addresses to listen on.
    pub(super) const fn listen(&self) -> Listen {
        Listen {
            http: self.http_listen,
            metrics: self.metrics.listen,
        }
    }
}
