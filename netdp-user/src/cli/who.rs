//! `netdp who`: its flags.

use super::args::{CniDir, InstancePaths, Output};
use super::output;
use crate::datapath::protocol_name;
use crate::flows::parse_protocol;
use crate::who::{Place, Places, Question, parse_time, print};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 one pod, 1 nobody, 2 unknown.

Examples:
  netdp who 10.1.0.10:44216
  netdp who 10.1.0.10:44216 --to 203.0.113.10:443 --proto tcp --at 2026-11-28T10:16:30Z
  netdp who 10.1.0.10:44216 --at 2026-11-28T10:16 --nat-log /mnt/copy/nat.log")]
pub(super) struct Who {
    /// Address on the wire, with the port or ICMP identifier; IPv6 with a port in brackets.
    #[arg(value_name = "ADDR[:PORT]")]
    place: Place,
    /// Only mappings to a destination.
    #[arg(long, value_name = "ADDR[:PORT]")]
    to: Option<Place>,
    /// Only mappings of a protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udp-lite, or a number.
    #[arg(long, value_name = "PROTO", value_parser = parse_protocol)]
    proto: Option<u32>,
    /// Time, as the node's local time of today (10:16:30), with the date (2026-11-28T10:16:30),
    /// or by RFC 3339. Without it, now.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<u64>,
    /// File of the NAT log. Without it, that of the agent.
    #[arg(long, value_name = "FILE")]
    nat_log: Option<PathBuf>,
    #[command(flatten)]
    paths: InstancePaths,
    #[command(flatten)]
    pods: CniDir,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Who {
    pub(super) const fn paths(&self) -> &InstancePaths {
        &self.paths
    }

    /// Prints the answer.
    pub(super) fn run(self) -> ExitCode {
        let question = Question {
            place: self.place,
            to: self.to,
            proto: self.proto.map(protocol_name),
            at: self.at,
        };
        let places = Places {
            bpffs: &self.paths.bpffs,
            state_dir: &self.paths.state_dir,
            cni_dir: &self.pods.cni_dir,
            log: self.nat_log.as_deref(),
        };
        output::or_trouble(print(&places, &question, self.output == Output::Json))
    }
}
