//! `netdp flows`: its flags.

use super::args::{CniDir, InstancePaths};
use super::output;
use crate::datapath::FlowState;
use crate::flows::{
    By, Endpoint, Filter, Format, Idle, Options, PodFilter, Sort, View, parse_protocol, print,
};
use clap::Args;
use ipnet::IpNet;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0, or 2 if the mappings can't be read.

Examples:
  netdp flows --pod shop/cart-5d9 --state Established
  netdp flows --to 203.0.113.10:443 --idle '>1h' --sort bytes -n 20
  netdp flows --summary=destination -n 3
  netdp flows --sort rate -n 10 --watch
  netdp flows --kept
  netdp flows -o jsonl > flows.jsonl")]
pub(super) struct Flows {
    #[command(flatten)]
    paths: InstancePaths,
    /// Only mappings of a pod: its name, with or without the namespace, or its address, with or
    /// without the port.
    #[arg(long, value_name = "POD|IP[:PORT]")]
    pod: Option<PodFilter>,
    /// Only mappings to a destination.
    #[arg(long, value_name = "CIDR[:PORT]")]
    to: Option<Endpoint>,
    /// Only mappings that the destination sees as this.
    #[arg(long, value_name = "ADDR[:PORT]")]
    seen_as: Option<Endpoint>,
    /// Only mappings about whose destination the rule with this prefix decides.
    #[arg(long, value_name = "CIDR")]
    prefix: Option<IpNet>,
    /// Only mappings of a protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udp-lite, or a number.
    #[arg(long, value_name = "PROTO", value_parser = parse_protocol)]
    proto: Option<u32>,
    /// Only mappings in a state; may be repeated.
    #[arg(long, value_enum, ignore_case = true, conflicts_with = "kept")]
    state: Vec<FlowState>,
    /// Only mappings without a packet for longer than a time, as in '>1h', or for less, as in '<10s'.
    #[arg(long, value_name = "TIME")]
    idle: Option<Idle>,
    /// List the flows that keep their pod's address instead, and why.
    #[arg(long)]
    kept: bool,
    /// Order of rows; the default is by pod, that of a summary by mappings. Without -n, at most
    /// 100,000 mappings are sorted.
    #[arg(long, value_enum, conflicts_with = "kept")]
    sort: Option<Sort>,
    /// Maximum number of rows.
    #[arg(short = 'n', long = "limit", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: Option<u32>,
    /// Print sums of mappings instead, by what they have in common.
    #[arg(long, value_enum, value_name = "BY", num_args = 0..=1, require_equals = true,
          default_missing_value = "pod", conflicts_with = "kept")]
    summary: Option<By>,
    /// Repeat every so many seconds. Reading very many mappings takes longer, and is
    /// then followed by a longer pause.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
          default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    #[command(flatten)]
    pods: CniDir,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Flows {
    pub(super) const fn paths(&self) -> &InstancePaths {
        &self.paths
    }

    /// Prints what was asked for.
    pub(super) fn run(self) -> ExitCode {
        let options = Options {
            filter: Filter {
                pod: self.pod,
                to: self.to,
                seen_as: self.seen_as,
                prefix: self.prefix.map(|prefix| prefix.trunc()),
                protocol: self.proto,
                states: self.state,
                idle: self.idle,
            },
            view: match self.summary {
                _ if self.kept => View::Kept,
                Some(by) => View::Summary(by),
                None => View::List,
            },
            sort: self.sort,
            limit: self.limit.map(|limit| limit as usize),
            watch: self.watch.map(Duration::from_secs),
            format: self.output,
            cni_dir: self.pods.cni_dir,
        };
        let printed = print(&self.paths.bpffs, &self.paths.state_dir, &options);
        output::or_trouble(printed.map(|()| ExitCode::SUCCESS))
    }
}
