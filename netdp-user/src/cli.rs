//! The command line.

mod check;
mod go;
mod klog;
mod kube;
mod policy;
mod run;
mod values;

use crate::agent;
use crate::datapath;
use crate::fleet;
use crate::state_dir::StateDir;
use crate::status;
use anyhow::{Result, bail};
use check::Check;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use run::Run;
use std::ffi::OsString;
use std::path::PathBuf;

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
    /// Look at a configuration without putting it in force.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what is in force on each node of a Kubernetes cluster.
    Fleet(Fleet),
    /// Remove programs, pins and maps. Mappings end with them.
    Detach(Detach),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check it, warn of what is seldom meant, and show the policy that it makes. Exits with 1 on
    /// errors, and on warnings with --strict.
    Check(Box<Check>),
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
struct Show {
    #[command(flatten)]
    places: Places,
    /// Format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Args)]
struct Fleet {
    #[command(flatten)]
    access: kube::KubeAccess,
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

/// Parses a command line; ends the process with a message if it is none.
///
/// Command lines of ip-masq-agent are taken, too: see `go`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Cli {
    let command = Cli::command();
    Cli::parse_from(go::normalise(args, |word| {
        command.find_subcommand(word).is_some()
    }))
}

/// Runs a command.
///
/// # Errors
/// Whatever the command could not do.
pub fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(run) => {
            init_log(run.log_level());
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
        Command::Config(ConfigCommand::Check(check)) => check.run(),
        Command::Fleet(fleet) => fleet::print(
            fleet.access.kubeconfig.as_deref(),
            &fleet.access.lease_namespace,
            fleet.output == Output::Json,
        ),
        Command::Detach(detach) => {
            init_log(LogLevel::Warn);
            detach.run()
        }
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

#[cfg(test)]
mod tests {
    use super::Cli;
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
}
