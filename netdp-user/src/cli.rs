//! The command line.

use crate::agent::{self, OnExit, OnReload, RunOptions};
use crate::config::{Options, parse_duration};
use crate::datapath::{self, Mechanism, NoLeak, PortMode, Setup};
use crate::state_dir::StateDir;
use crate::status;
use crate::uplinks::Patterns;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use netdp_common::abi::{PORT_RANGES, PortRange};
use netdp_common::conntrack::Timeouts;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Sends pods' traffic out with the node's address, by eBPF at the uplinks.
#[derive(Debug, Parser)]
#[command(name = "netdp", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: keep the datapath in step with the configuration.
    Run(Box<Run>),
    /// Show what is attached, which configuration is in force, how many mappings live.
    Status(Show),
    /// List the live mappings.
    Flows(Show),
    /// Remove programs, pins and maps. Mappings end with them.
    Detach(Detach),
}

/// Where one instance of netdp keeps its things.
#[derive(Debug, Args)]
struct Places {
    /// Directory for pinned maps and links; a bpffs is mounted there if it is not on one.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/netdp")]
    bpffs: PathBuf,
    /// Directory for the lock, the status and the last good configuration.
    #[arg(long, value_name = "DIR", default_value = "/run/netdp")]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    places: Places,
    /// Configuration file, or directory of files; may be repeated.
    #[arg(long, value_name = "PATH", default_value = "/etc/config")]
    config: Vec<PathBuf>,
    /// Interface that leads out of the cluster; a name or a glob; may be repeated. Without it:
    /// every interface with a default route or with an address of --node-ip.
    #[arg(long, value_name = "NAME")]
    uplink: Vec<String>,
    /// Address that the node is known by; may be repeated.
    #[arg(long, value_name = "IP", env = "NODE_IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Masquerade IPv6 too, and accept IPv6 CIDRs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    enable_ipv6: bool,
    /// Add the reserved IPv4 ranges to the default non-masquerade CIDRs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    nomasq_all_reserved_ranges: bool,
    /// The only ports that TCP and UDP mappings use on the wire, such as
    /// 1024-29999,32768-65535. Without it: the source port's class (1-511, 600-1023, 1024-65535).
    #[arg(long, value_name = "RANGES", default_value = "")]
    to_ports: String,
    /// How ports are chosen.
    #[arg(long, value_enum, default_value_t = PortMode::Keep)]
    port_mode: PortMode,
    /// Give a pod's UDP port one port on the wire, whatever the destination (for STUN).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    udp_endpoint_independent: bool,
    /// What becomes of pods' packets that can't be translated.
    #[arg(long, value_enum, default_value_t = NoLeak::Drop)]
    no_leak: NoLeak,
    /// What a changed policy means for live mappings.
    #[arg(long, value_enum, default_value_t = OnReload::Sticky)]
    on_reload: OnReload,
    /// Idle time after which mappings end, as NAME=DURATION, such as tcp-established=24h; may be
    /// repeated. Names: tcp-opening, tcp-established, tcp-unreplied, tcp-half-closed, tcp-closing,
    /// udp-unreplied, udp-replied, icmp, generic.
    #[arg(long, value_name = "NAME=DURATION")]
    timeout: Vec<String>,
    /// Ports that mappings never use on the wire, besides ip_local_reserved_ports. The default
    /// is the NodePort range.
    #[arg(long, value_name = "RANGES", default_value = "30000-32767")]
    reserved_ports: String,
    /// How many mappings fit.
    #[arg(long, value_name = "N", default_value_t = 262_144,
          value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    max_flows: u32,
    /// How programs are attached.
    #[arg(long, value_enum, default_value_t = Mechanism::Auto)]
    attach: Mechanism,
    /// What becomes of the datapath when the agent ends.
    #[arg(long, value_enum, default_value_t = OnExit::Keep)]
    on_exit: OnExit,
    /// File that exists while a configuration is in force.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Least severe messages to log.
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    places: Places,
    /// Format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Args)]
struct Detach {
    #[command(flatten)]
    places: Places,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogLevel {
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
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs a command.
///
/// # Errors
/// Whatever the command could not do.
pub fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(run) => {
            init_log(run.log_level);
            agent::run(run.options()?)
        }
        Command::Status(show) => status::print(
            &show.places.bpffs,
            &show.places.state_dir,
            show.output == Output::Json,
        ),
        Command::Flows(show) => {
            status::print_flows(&show.places.bpffs, show.output == Output::Json)
        }
        Command::Detach(detach) => {
            init_log(LogLevel::Warn);
            detach.run()
        }
    }
}

impl Run {
    fn options(self) -> Result<RunOptions> {
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
            config_paths: self.config,
            config_options: Options {
                enable_ipv6: self.enable_ipv6,
                nomasq_all_reserved_ranges: self.nomasq_all_reserved_ranges,
            },
            patterns: Patterns::parse(&self.uplink)?,
            node_addrs: self.node_ip,
            bpffs: self.places.bpffs,
            state_dir: self.places.state_dir,
            setup: Setup {
                enable_ipv6: self.enable_ipv6,
                max_flows: self.max_flows,
                to_ports,
                port_mode: self.port_mode,
                udp_endpoints: self.udp_endpoint_independent,
                no_leak: self.no_leak,
                reserved_ports: reserved,
                mechanism: self.attach,
            },
            timeouts: parse_timeouts(&self.timeout)?,
            on_reload: self.on_reload,
            on_exit: self.on_exit,
            ready_file: self.ready_file,
        })
    }
}

impl Detach {
    fn run(self) -> Result<()> {
        let dir = StateDir::open(&self.places.state_dir)?;
        let _lock = match dir.lock()? {
            Some(lock) => lock,
            None => bail!(
                "an agent is running on {}; stop it first, or it would attach again",
                self.places.state_dir.display()
            ),
        };
        let removed = datapath::detach(&self.places.bpffs)?;
        dir.forget()?;
        if removed.is_empty() {
            eprintln!(
                "netdp: nothing is pinned in {}",
                self.places.bpffs.display()
            );
        }
        for what in removed {
            eprintln!("netdp: removed {what}");
        }
        Ok(())
    }
}

fn init_log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_level(level)
        // Speaks of watched directories that vanish, which is nothing here.
        .filter_module("notify", log::LevelFilter::Error)
        // Traces every relocation at debug level.
        .filter_module("aya", log::LevelFilter::Warn)
        .filter_module("aya_obj", log::LevelFilter::Warn)
        .format_target(false)
        .init();
}

/// `NAME=DURATION` over the defaults.
fn parse_timeouts(list: &[String]) -> Result<Timeouts> {
    let mut timeouts = Timeouts::default();
    for text in list {
        let Some((name, value)) = text.split_once('=') else {
            bail!("--timeout {text:?}: expected NAME=DURATION, such as udp-replied=5m");
        };
        let slot = match name {
            "tcp-opening" => &mut timeouts.tcp_opening,
            "tcp-established" => &mut timeouts.tcp_established,
            "tcp-unreplied" => &mut timeouts.tcp_unreplied,
            "tcp-half-closed" => &mut timeouts.tcp_half_closed,
            "tcp-closing" => &mut timeouts.tcp_closing,
            "udp-unreplied" => &mut timeouts.udp_unreplied,
            "udp-replied" => &mut timeouts.udp_replied,
            "icmp" => &mut timeouts.icmp,
            "generic" => &mut timeouts.generic,
            _ => bail!("--timeout {text:?}: there is no timeout {name:?}; see --help"),
        };
        let duration = parse_duration(value)
            .ok()
            .filter(|d| *d >= Duration::from_secs(1));
        let Some(duration) = duration else {
            bail!(
                "--timeout {text:?}: {value:?} is not a duration of a second or more, such as 90s or 2h4m"
            );
        };
        *slot = duration.as_secs();
    }
    Ok(timeouts)
}

/// `1,5-7` as ranges, both ends included.
fn parse_ranges(text: &str) -> Result<Vec<PortRange>> {
    let mut ranges = Vec::new();
    for range in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| {
            text.parse::<u16>()
                .with_context(|| format!("{text:?} is not a port (0 to 65535)"))
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            bail!("the range {range:?} ends before it begins");
        }
        ranges.push(PortRange::new(first, last));
    }
    Ok(ranges)
}

/// `1,5-7` as a set; ranges are inclusive.
fn parse_ports(text: &str) -> Result<BTreeSet<u16>> {
    let ranges = parse_ranges(text)?;
    Ok(ranges.iter().flat_map(|r| r.min..=r.max).collect())
}

/// What the node's administrator has reserved. A kernel without the file has
/// reserved nothing.
fn kernel_reserved_ports() -> BTreeSet<u16> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    parse_ports(text.trim()).unwrap_or_else(|err| {
        log::warn!("{FILE}: {err:#}");
        BTreeSet::new()
    })
}

#[cfg(test)]
mod tests {
    use super::{Cli, parse_ports};
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn go_style_booleans_are_accepted() {
        for flag in ["--enable-ipv6", "--enable-ipv6=true", "--enable-ipv6=false"] {
            assert!(
                Cli::try_parse_from(["netdp", "run", flag]).is_ok(),
                "{flag}"
            );
        }
        assert!(Cli::try_parse_from(["netdp", "run", "--enable-ipv6=maybe"]).is_err());
    }

    #[test]
    fn ports() {
        let ports: Vec<u16> = parse_ports("1, 5-7,65535").unwrap().into_iter().collect();
        assert_eq!(ports, [1, 5, 6, 7, 65535]);
        assert!(parse_ports("").unwrap().is_empty());
        for bad in ["x", "70000", "7-5", "1-", "-1"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }
}
