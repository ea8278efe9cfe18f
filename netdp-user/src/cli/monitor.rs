//! `netdp monitor`: its flags.

use super::args::{CniDir, InstancePaths};
use super::output;
use crate::events::Kind;
use crate::flows::{Endpoint, PodFilter};
use crate::monitor::{self, Destination, Format, Options};
use clap::Args;
use netdp_common::layout::EVENT_RATE_MAX;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0, or 2 if no events are available.

Examples:
  netdp monitor --kind refused,drop
  netdp monitor --pod shop/cart-5d9 --to 10.2.0.0/16:443 -o jsonl
  netdp monitor --kind drop --pcap - | tcpdump -r -")]
pub(super) struct Monitor {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Only events of a pod: its name, with or without the namespace, or its address, with or
    /// without the port.
    #[arg(long, value_name = "POD|IP[:PORT]")]
    pod: Option<PodFilter>,
    /// Only events with a destination.
    #[arg(long, value_name = "CIDR[:PORT]")]
    to: Option<Endpoint>,
    /// Only events of these kinds.
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Events a second of each kind and CPU that the programs report at most; twice as many at once.
    /// More are counted. The highest rate that any listener wants counts for all; without it, 1000.
    #[arg(long, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(EVENT_RATE_MAX)))]
    rate: Option<u32>,
    /// End after so many lines.
    #[arg(long, short = 'n', value_name = "NUMBER",
          value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write the first 128 bytes of refused and dropped packets to a file as pcapng, with the reason as
    /// each packet's comment; to standard output, in place of lines, if it is -.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    pods: CniDir,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

impl Monitor {
    /// Shows events until it is ended.
    pub(super) fn run(self) -> ExitCode {
        let options = Options {
            bpffs: self.paths.bpffs,
            state_dir: self.paths.state_dir,
            cni_dir: self.pods.cni_dir,
            pod: self.pod,
            to: self.to,
            kinds: self.kind,
            rate: self.rate.unwrap_or(0),
            count: self.count,
            pcap: self.pcap.map(|path| match path.as_os_str() == "-" {
                true => Destination::Stdout,
                false => Destination::File(path),
            }),
            format: self.output,
        };
        output::or_trouble(monitor::run(&options).map(|()| ExitCode::SUCCESS))
    }
}
