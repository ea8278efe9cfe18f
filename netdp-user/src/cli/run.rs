//! `netdp run`: its flags, and the agent's options derived from them.

use super::args::{CniDir, InstancePaths, LogLevel};
use super::go_flags::parse_bool;
use super::klog::Klog;
use super::kube::KubeFlags;
use super::nat_log::NatLogFlags;
use super::policy::Policy;
use super::values::{
    kernel_reserved_ports, parse_listen, parse_ports, parse_ranges, parse_timeouts, parse_top,
};
use crate::agent::{Mode, OnExit, RunOptions};
use crate::config::parse_duration;
use crate::datapath::{Mechanism, NoLeak, OnReload, PortMode, Setup};
use crate::iptables::{ChainOptions, Ports};
use crate::logging::LogFormat;
use crate::metrics::{MetricsOptions, PodSeries};
use crate::page::HttpPage;
use crate::pods::{PodNameOptions, PodNames};
use crate::state_dir::log_if_in_memory;
use crate::uplinks::Patterns;
use crate::upstream::masq_agent;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use netdp_common::layout::PORT_RANGES;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Configuration file, or directory of files; may be repeated.
    #[arg(long, value_name = "PATH", default_value = "/etc/config")]
    config: Vec<PathBuf>,
    /// Interface that leads out of the cluster; a name or a glob; may be repeated. Without it,
    /// every interface by which the node routes masqueraded destinations, or that has an address
    /// of --node-ip.
    #[arg(long, value_name = "NAME")]
    uplink: Vec<String>,
    /// Address by which the node is known; may be repeated.
    #[arg(long, value_name = "IP", env = "NODE_IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    #[command(flatten)]
    policy: Policy,
    /// What translates packets.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Remove ip-masq-agent's chain, and the rules of k8s-custom-iptables that the configuration
    /// covers, once the eBPF datapath is in force. Connections that they translate continue.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    takeover: bool,
    /// How long the eBPF datapath remains after a rollback to iptables, for mappings that netfilter
    /// cannot take over.
    #[arg(long = "rollback-grace", alias = "grace", value_name = "DURATION",
          default_value = "5m", value_parser = parse_duration)]
    grace: Duration,
    /// Name of ip-masq-agent's chain.
    #[arg(long, value_name = "CHAIN", default_value = masq_agent::CHAIN)]
    masq_chain: String,
    /// The only ports that TCP and UDP mappings use on the wire, such as
    /// 1024-29999,32768-65535. Without it, a port of the same class as the
    /// pod's (1-511, 600-1023, 1024-65535).
    #[arg(long, value_name = "RANGES", default_value = "")]
    to_ports: String,
    /// How ports are chosen.
    #[arg(long, value_enum, default_value_t = PortMode::Keep)]
    port_mode: PortMode,
    /// ip-masq-agent's flag: true means --port-mode random, false --port-mode keep.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = parse_bool, conflicts_with = "port_mode")]
    random_fully: Option<bool>,
    /// Give a pod's UDP port one port on the wire, whatever the destination (for STUN).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    udp_endpoint_independent: bool,
    /// Interface towards pods, such as cali* or cni0, on which pods may reach each other by the
    /// node's address and their ports on the wire (hairpin); a name or a glob; may be repeated.
    #[arg(long = "hairpin-interface", alias = "hairpin", value_name = "NAME")]
    hairpin: Vec<String>,
    /// How to treat packets of pods that cannot be translated.
    #[arg(long = "untranslatable", alias = "no-leak", value_enum, default_value_t = NoLeak::Drop)]
    no_leak: NoLeak,
    /// How to treat live flows when the policy changes.
    #[arg(long, value_enum, default_value_t = OnReload::Sticky)]
    on_reload: OnReload,
    /// Idle time after which mappings end, as NAME=DURATION, such as tcp-established=24h; may be
    /// repeated. Names: tcp-opening, tcp-established, tcp-unreplied, tcp-half-closed, tcp-closing,
    /// udp-unreplied, udp-replied, udp-lookup, icmp, generic.
    #[arg(long, value_name = "NAME=DURATION")]
    timeout: Vec<String>,
    /// Ports that mappings never use on the wire, besides ip_local_reserved_ports. The default
    /// is the NodePort range.
    #[arg(long, value_name = "RANGES", default_value = "30000-32767")]
    reserved_ports: String,
    /// Capacity of the mapping tables, in mappings.
    #[arg(long, value_name = "N", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    max_flows: u32,
    /// Limit of mappings per pod and family. 0: three eighths of --max-flows, and at most twice
    /// what is free.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pod_flows: u32,
    /// Limit of new mappings per pod and second, with bursts of twice as many; 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pod_new_flows: u32,
    /// How to attach programs.
    #[arg(long, value_enum, default_value_t = Mechanism::Auto)]
    attach: Mechanism,
    /// Where names of pods come from: in commands, metrics, the page and the NAT log.
    #[arg(long, value_enum, default_value_t = PodNames::Auto)]
    pod_names: PodNames,
    #[command(flatten)]
    pods: CniDir,
    #[command(flatten)]
    nat_log: NatLogFlags,
    /// What to do with the datapath when the agent exits.
    #[arg(long, value_enum, default_value_t = OnExit::Keep)]
    on_exit: OnExit,
    /// File that exists while a configuration is in force.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    kube: KubeFlags,
    /// Address and port to serve /livez, /readyz, /metrics and the page on.
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listen)]
    http_listen: Option<SocketAddr>,
    /// Readers of the page and of /api/v1, which --http-listen serves too: they show what only root
    /// may read otherwise.
    #[arg(long, value_enum, value_name = "READERS", default_value_t = HttpPage::Loopback)]
    http_page: HttpPage,
    /// Address and port to serve /metrics on, and nothing else.
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listen)]
    metrics_listen: Option<SocketAddr>,
    /// Metrics about pods: off, added up by namespace, or also for each pod.
    #[arg(long, value_enum, default_value_t = PodSeries::Namespace)]
    metrics_pods: PodSeries,
    /// How many destinations have metrics of their own: those towards which most ports are in use.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = parse_top)]
    metrics_top: usize,
    /// Least severe messages to log [default: according to --v, else info].
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
    /// Form of log messages.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    #[command(flatten)]
    pub(super) klog: Klog,
}

/// Reports whether a command line that can't be parsed asks for messages as JSON.
pub(super) fn wants_json(args: &[OsString]) -> bool {
    let is = |arg: &OsString, text: &str| arg.to_str() == Some(text);
    let apart = |two: &[OsString]| is(&two[0], "--log-format") && is(&two[1], "json");
    args.iter().any(|arg| is(arg, "--log-format=json")) || args.windows(2).any(apart)
}

impl Run {
    pub(super) fn log_level(&self) -> LogLevel {
        let level = self.log_level.or_else(|| self.klog.level());
        level.unwrap_or(LogLevel::Info)
    }

    /// Returns the given flags that have no meaning for netfilter.
    fn ebpf_only(&self) -> Vec<&'static str> {
        [
            (!self.uplink.is_empty(), "--uplink"),
            (self.port_mode != PortMode::Keep, "--port-mode"),
            (self.udp_endpoint_independent, "--udp-endpoint-independent"),
            (!self.hairpin.is_empty(), "--hairpin-interface"),
            (self.no_leak != NoLeak::Drop, "--untranslatable"),
            (self.on_reload != OnReload::Sticky, "--on-reload"),
            (!self.timeout.is_empty(), "--timeout"),
            (self.pod_flows != 0, "--pod-flows"),
            (self.pod_new_flows != 0, "--pod-new-flows"),
            (self.attach != Mechanism::Auto, "--attach"),
            (self.nat_log.is_given(), "--nat-log"),
        ]
        .into_iter()
        .filter_map(|(given, flag)| given.then_some(flag))
        .collect()
    }

    pub(super) fn options(self) -> Result<RunOptions> {
        let ignored = self.klog.without_effect();
        if !ignored.is_empty() {
            log::info!(
                "{}: accepted for compatibility and ignored; messages go to standard error",
                ignored.join(", ")
            );
        }
        log_if_in_memory(&self.paths.state_dir);
        let ebpf_only = self.ebpf_only();
        let kube = self.kube.options();
        let has_node = kube.as_ref().is_some_and(|kube| kube.node_name.is_some());
        if self.pod_names == PodNames::Api && !has_node {
            bail!("--pod-names api needs the Kubernetes API (--kube) and --node-name");
        }
        let nat_log = self.nat_log.options()?;
        let mut reserved = parse_ports(&self.reserved_ports)
            .with_context(|| format!("--reserved-ports {:?}", self.reserved_ports))?;
        reserved.extend(kernel_reserved_ports());
        let to_ports = parse_ranges(&self.to_ports)
            .with_context(|| format!("--to-ports {:?}", self.to_ports))?;
        if to_ports.len() > PORT_RANGES {
            bail!(
                "--to-ports {:?}: at most {PORT_RANGES} ranges",
                self.to_ports
            );
        }
        Ok(RunOptions {
            mode: self.mode,
            takeover: self.takeover,
            grace: self.grace,
            ebpf_only,
            chains: ChainOptions {
                name: self.masq_chain,
                enable_ipv6: self.policy.enable_ipv6,
                ports: Ports {
                    ranges: to_ports
                        .iter()
                        .map(|range| (range.min, range.max))
                        .collect(),
                    // Default of ip-masq-agent.
                    random_fully: self.random_fully.unwrap_or(true),
                },
            },
            config_paths: self.config,
            config_options: self.policy.options(),
            cluster_cidrs: self.policy.cluster_cidrs(),
            targets: self.policy.targets(),
            patterns: Patterns::parse("--uplink", &self.uplink)?,
            hairpin: Patterns::parse("--hairpin-interface", &self.hairpin)?,
            node_addrs: self.node_ip,
            bpffs: self.paths.bpffs,
            state_dir: self.paths.state_dir,
            setup: Setup {
                enable_ipv6: self.policy.enable_ipv6,
                max_flows: self.max_flows,
                to_ports,
                port_mode: match self.random_fully {
                    Some(true) => PortMode::Random,
                    Some(false) | None => self.port_mode,
                },
                udp_endpoints: self.udp_endpoint_independent,
                no_leak: self.no_leak,
                on_reload: self.on_reload,
                hairpin: !self.hairpin.is_empty(),
                log_ends: nat_log.is_some(),
                reserved_ports: reserved,
                pod_flows: self.pod_flows,
                pod_new_flows: self.pod_new_flows,
                // The agent fills in the node's secret.
                secret: [0; 2],
                mechanism: self.attach,
            },
            timeouts: parse_timeouts(&self.timeout)?,
            pod_names: PodNameOptions {
                source: self.pod_names,
                cni_dir: self.pods.cni_dir,
            },
            nat_log,
            on_exit: self.on_exit,
            ready_file: self.ready_file,
            kube,
            http_listen: self.http_listen,
            http_page: self.http_page,
            metrics: MetricsOptions {
                listen: self.metrics_listen,
                pods: self.metrics_pods,
                top: self.metrics_top,
            },
        })
    }
}
