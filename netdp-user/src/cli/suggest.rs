//! `netdp suggest` and `netdp probe`.

use super::args::InstancePaths;
use super::output;
use crate::reach::{self, Answer, Format};
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp suggest
  netdp suggest -o yaml > suggested.yaml")]
pub(super) struct Suggest {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Format of the suggestion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for people.
    Text,
    /// The change alone, a document that netdp config check accepts.
    Yaml,
    /// JSON for programs.
    Json,
}

impl Suggest {
    /// Runs the command; exit statuses: 0 if there is a suggestion, 1 if none is needed, 2 if that
    /// cannot be told.
    pub(super) fn run(&self) -> ExitCode {
        let format = match self.output {
            Output::Text => Format::Text,
            Output::Yaml => Format::Yaml,
            Output::Json => Format::Json,
        };
        match reach::print(&self.paths.bpffs, &self.paths.state_dir, format) {
            Ok(Answer::Some) => ExitCode::SUCCESS,
            Ok(Answer::None) => ExitCode::FAILURE,
            Ok(Answer::Unknown) => ExitCode::from(2),
            Err(err) => output::or_trouble(Err(err)),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp probe 10.2.0.17:443
  netdp probe -n 3 '[2001:db8::7]:443'")]
pub(super) struct Probe {
    /// Address and port; of IPv6 in brackets.
    #[arg(value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Number of connections, one after the other.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// Seconds to wait for an answer to each.
    #[arg(long, value_name = "SECONDS", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

impl Probe {
    /// Runs the command; exit statuses: 0 if a connection was answered, 1 if none was, 2 on trouble.
    pub(super) fn run(&self) -> ExitCode {
        match reach::probe(self.to, self.count, Duration::from_secs(self.timeout)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(err) => output::or_trouble(Err(err)),
        }
    }
}
