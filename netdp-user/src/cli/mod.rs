//! The command line.

mod args;
mod bundle;
mod check;
mod detach;
mod diff;
mod explain;
mod flows;
mod go_flags;
mod history;
mod klog;
mod kube;
mod kubectl;
mod monitor;
mod nat_log;
pub(crate) mod output;
mod policy;
#[cfg(test)]
mod reference;
mod run;
mod shell;
mod show_policy;
mod suggest;
mod values;
mod who;

pub(crate) use show_policy::parse_age;

use crate::agent;
use crate::fleet;
use crate::logging::{self, LogFormat};
use crate::programs;
use crate::shadow::{self, Summary};
use crate::{pod, report, top, version};
use anyhow::Result;
use args::{CniDir, InstancePaths, LogLevel, Output};
use bundle::SupportBundle;
use check::Check;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use detach::Detach;
use diff::Diff;
use explain::{Codes, Explain};
use flows::Flows;
use history::History;
use kubectl::Plugin;
use monitor::Monitor;
use run::Run;
use shell::{Candidates, Completion, ManPages};
use show_policy::ShowPolicy;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;
use suggest::{Probe, Suggest};
use who::Who;

/// eBPF egress masquerading (SNAT) agent for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "netdp", version, long_version = version::LONG.as_str(), max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent, which keeps the datapath in step with the configuration.
    Run(Box<Run>),
    /// Show attached programs, the configuration in force, and the number of live mappings.
    Status(Show),
    /// List the live mappings, or sum them up.
    Flows(Box<Flows>),
    /// Say which pod had an address and port on the wire, now or at a time. Exits with 0 if there is one
    /// answer, with 1 if nobody had it, with 2 if that can't be told.
    Who(Who),
    /// Show the policy in force with packets, bytes, new flows and the last hit of each prefix. Exits
    /// with 2 if there is no datapath.
    Policy(Box<ShowPolicy>),
    /// Show the policies that have been in force, one of them, or what differs between two. Exits with
    /// 2 if there is no history.
    History(History),
    /// Show what a configuration would change against the policy in force: rules, live mappings, and
    /// destinations that were bypassed. Exits with 0 if no rule differs, with 1 if any does, with 2 on
    /// trouble.
    Diff(Box<Diff>),
    /// Show pods, destinations, prefixes, drops and uplinks in a live screen.
    Top(Top),
    /// Show events as they happen: begins and ends of mappings, refusals, drops, configurations,
    /// findings, and what the agent does.
    Monitor(Box<Monitor>),
    /// Explain which source a destination sees, and why, before a packet is sent.
    Explain(Box<Explain>),
    /// List the codes of findings, or explain one.
    Codes(Codes),
    /// Inspect a configuration without putting it in force.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show the findings of shadow mode.
    #[command(subcommand)]
    Shadow(ShadowCommand),
    /// Suggest which bypassed networks to masquerade: those that answer the node, and not pods. Exits
    /// with 0 if there are any, with 1 if there are none, with 2 if that is unknown. Changes nothing.
    Suggest(Suggest),
    /// Open TCP connections from the node's own address, for netdp suggest to compare with. Exits
    /// with 0 if one was answered, with 1 if none was.
    Probe(Probe),
    /// Show the configuration in force on each node of a Kubernetes cluster.
    Fleet(Fleet),
    /// Collect what is known about this node's netdp in an archive, for whoever helps.
    SupportBundle(Box<SupportBundle>),
    /// The command line of kubectl's plugin.
    #[command(skip)]
    Kubectl(Box<Plugin>),
    /// Remove programs, pins and maps, which ends all mappings.
    Detach(Detach),
    /// Print a script that completes commands and flags in a shell.
    Completion(Completion),
    /// List values for the completion script of bash.
    #[command(hide = true)]
    Candidates(Candidates),
    /// Print the man page of a command, or write all pages.
    Man(ManPages),
}

#[derive(Debug, Subcommand)]
enum ShadowCommand {
    /// Compare netdp's decisions with netfilter's. Exits with 0 if they agree for all connections
    /// seen, with 1 if they differ for some, with 2 if that is unknown.
    Report(Show),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Validate a configuration, warn of probable mistakes, and show the resulting policy. Exits
    /// with 1 on errors, and on warnings with --strict.
    Check(Box<Check>),
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    paths: InstancePaths,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp top
  netdp top --once --sort new --tab 2")]
struct Top {
    #[command(flatten)]
    paths: InstancePaths,
    /// Seconds between two readings. Reading very many mappings takes longer, and is then followed by
    /// a longer pause.
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Column by which rows are sorted at first.
    #[arg(long, value_enum, default_value_t = top::Sort::Mappings)]
    sort: top::Sort,
    /// Table that is open at first: 1 pods, 2 destinations, 3 prefixes, 4 drops, 5 uplinks.
    #[arg(long, value_name = "NUMBER", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=5))]
    tab: u8,
    #[command(flatten)]
    pods: CniDir,
    /// Print one frame and exit, after two readings.
    #[arg(long)]
    once: bool,
}

impl Top {
    fn run(&self) -> Result<()> {
        let options = top::Options {
            interval: Duration::from_secs(self.interval),
            sort: self.sort,
            tab: usize::from(self.tab) - 1,
        };
        let paths = top::Paths {
            bpffs: &self.paths.bpffs,
            state_dir: &self.paths.state_dir,
            cni_dir: &self.pods.cni_dir,
        };
        if self.once {
            let frame = top::once(&paths, &options)?;
            return output::write_out(&frame, false);
        }
        top::run(&paths, &options)
    }
}

#[derive(Debug, Args)]
struct Fleet {
    #[command(flatten)]
    access: kube::KubeAccess,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Parses a command line; exits with a message if it is invalid.
///
/// Command lines of ip-masq-agent and k8s-custom-iptables are accepted, too: see `go_flags`. Returns
/// `None`, after a message, for one that requests a shell, a name under which the image has netdp.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Cli> {
    let args: Vec<OsString> = args.into_iter().collect();
    if go_flags::is_shell(&args) {
        return None;
    }
    if let Some(plugin) = Plugin::called(&args) {
        let command = Command::Kubectl(Box::new(plugin));
        return Some(Cli { command });
    }
    let command = Cli::command();
    let args = go_flags::normalise(args, |word| command.find_subcommand(word).is_some());
    let is_agent = args.get(1).is_some_and(|word| word == "run");
    let wants_json = run::wants_json(&args);
    let cli = Cli::try_parse_from(args).unwrap_or_else(|err| {
        if is_agent && err.use_stderr() {
            pod::write_termination_message(&err.to_string());
            if wants_json {
                logging::announce_as(LogFormat::Json, log::Level::Error, &err.to_string());
                std::process::exit(err.exit_code());
            }
        }
        err.exit()
    });
    Some(cli)
}

/// Reports the error that ends the process, in the form of its log. The log may be filtered; this is
/// not.
pub fn report(err: &anyhow::Error) {
    logging::announce(log::Level::Error, &format!("netdp: error: {err:#}"));
}

/// Runs a command.
///
/// # Errors
/// Returns an error if the command fails.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Some(paths) = cli.command.paths() {
        programs::set_search_path(paths.programs.clone());
    }
    if cli.command.walks() {
        crate::machine::give_way();
    }
    match cli.command {
        Command::Run(run) => {
            logging::init(run.log_level().filter(), run.log_format);
            crate::machine::return_freed_memory();
            // Only the agent's end is the end of the container.
            run.options().and_then(agent::run).inspect_err(|err| {
                pod::write_termination_message(&format!("netdp: error: {err:#}\n"));
            })
        }
        Command::Status(show) => report::print(
            &show.paths.bpffs,
            &show.paths.state_dir,
            show.output == Output::Json,
        ),
        Command::Flows(flows) => return Ok(flows.run()),
        Command::Who(who) => return Ok(who.run()),
        Command::Policy(policy) => {
            return Ok(output::or_trouble(policy.run().map(|()| ExitCode::SUCCESS)));
        }
        Command::History(history) => {
            return Ok(output::or_trouble(
                history.run().map(|()| ExitCode::SUCCESS),
            ));
        }
        Command::Diff(diff) => return Ok(output::or_trouble(diff.run())),
        Command::Top(top) => top.run(),
        Command::Monitor(monitor) => return Ok(monitor.run()),
        Command::Config(ConfigCommand::Check(check)) => check.run(),
        Command::Fleet(fleet) => fleet::print(
            fleet.access.kubeconfig.as_deref(),
            &fleet.access.lease_namespace,
            fleet.output == Output::Json,
        ),
        Command::SupportBundle(bundle) => bundle.run(),
        Command::Kubectl(plugin) => return Ok(plugin.run()),
        Command::Detach(detach) => {
            logging::init(LogLevel::Warn.filter(), LogFormat::Text);
            detach.run()
        }
        Command::Completion(completion) => completion.run(),
        Command::Candidates(candidates) => candidates.run(),
        Command::Man(pages) => pages.run(),
        Command::Shadow(ShadowCommand::Report(show)) => return Ok(show.compare()),
        Command::Explain(explain) => return Ok(explain.run()),
        Command::Codes(codes) => codes.run(),
        Command::Suggest(suggest) => return Ok(suggest.run()),
        Command::Probe(probe) => return Ok(probe.run()),
    }
    .map(|()| ExitCode::SUCCESS)
}

impl Command {
    /// Reports whether the command reads all mappings.
    const fn walks(&self) -> bool {
        matches!(
            self,
            Self::Flows(_)
                | Self::Who(_)
                | Self::Policy(_)
                | Self::Diff(_)
                | Self::Top(_)
                | Self::SupportBundle(_)
        )
    }

    fn paths(&self) -> Option<&InstancePaths> {
        match self {
            Self::Run(run) => Some(&run.paths),
            Self::Status(show) => Some(&show.paths),
            Self::Flows(flows) => Some(flows.paths()),
            Self::Who(who) => Some(who.paths()),
            Self::Policy(policy) => Some(&policy.paths),
            Self::History(history) => Some(&history.paths),
            Self::Diff(diff) => Some(&diff.paths),
            Self::Shadow(ShadowCommand::Report(show)) => Some(&show.paths),
            Self::Top(top) => Some(&top.paths),
            Self::Monitor(monitor) => Some(&monitor.paths),
            Self::Suggest(suggest) => Some(&suggest.paths),
            Self::SupportBundle(bundle) => Some(&bundle.paths),
            Self::Detach(detach) => Some(&detach.paths),
            Self::Explain(explain) => Some(&explain.paths),
            Self::Codes(_)
            | Self::Config(_)
            | Self::Probe(_)
            | Self::Fleet(_)
            | Self::Kubectl(_)
            | Self::Completion(_)
            | Self::Candidates(_)
            | Self::Man(_) => None,
        }
    }
}

impl Show {
    /// Runs `netdp shadow report`; exit statuses as those of `diff`: 0 if equal, 1 if different,
    /// 2 on trouble.
    fn compare(&self) -> ExitCode {
        let json = self.output == Output::Json;
        match shadow::print(&self.paths.state_dir, json) {
            Ok(Summary::Alike) => ExitCode::SUCCESS,
            Ok(Summary::Different) => ExitCode::FAILURE,
            Ok(Summary::Unknown) => {
                eprintln!("netdp: no connection seen yet");
                ExitCode::from(2)
            }
            Err(err) => output::or_trouble(Err(err)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, version};
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_long_version_has_the_revision() {
        let told = |flag: &str| {
            let parsed = Cli::command().try_get_matches_from(["netdp", flag]);
            parsed.unwrap_err().to_string()
        };
        let version = version::VERSION;
        assert_eq!(told("-V"), format!("netdp {version}\n"));
        let revision = version::REVISION;
        assert_eq!(
            told("--version"),
            format!("netdp {version} (revision {revision})\n")
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Returns the example command lines of a command's help and of its subcommands'.
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string);
        let lines = help.iter().flat_map(|help| help.lines());
        let own = lines.filter_map(|line| line.trim().strip_prefix("netdp "));
        let own = own.map(|line| format!("netdp {line}"));
        let below = command.get_subcommands().flat_map(examples);
        own.chain(below).collect()
    }

    #[test]
    fn examples_of_help_texts_are_command_lines() {
        let examples = examples(&Cli::command());
        assert!(examples.len() >= 2);
        for example in examples {
            // Without what the shell does with the output.
            let line = example.split(" > ").next().unwrap_or(&example);
            let line = line.split(" | ").next().unwrap_or(line);
            let words = line.split_whitespace().map(|word| word.trim_matches('\''));
            if let Err(err) = Cli::try_parse_from(words) {
                panic!("{example}: {err}");
            }
        }
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

    fn run(line: &str) -> super::Run {
        let args =
            super::go_flags::normalise(line.split(' ').map(Into::into), |word| word == "run");
        match Cli::try_parse_from(args).unwrap().command {
            super::Command::Run(run) => *run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn random_fully_is_a_port_mode() {
        use crate::datapath::PortMode;
        for (line, expected) in [
            ("netdp run", PortMode::Keep),
            ("netdp -random-fully", PortMode::Random),
            ("netdp --random-fully=true", PortMode::Random),
            ("netdp --random-fully=false", PortMode::Keep),
            ("netdp --port-mode=hash", PortMode::Hash),
        ] {
            let options = run(line).options().unwrap();
            assert_eq!(options.setup.port_mode, expected, "{line}");
        }
    }

    #[test]
    fn earlier_names_of_flags_are_accepted() {
        use crate::datapath::NoLeak;
        let given = run("netdp run --no-leak=pass --hairpin=cni0 --grace=7s --programs=/x");
        assert_eq!(given.paths.programs, [std::path::Path::new("/x")]);
        let options = given.options().unwrap();
        assert_eq!(options.setup.no_leak, NoLeak::Pass);
        assert_eq!(options.grace.as_secs(), 7);
        assert!(options.setup.hairpin);
        let detach = "netdp detach --to-iptables --grace=7s --programs=/x";
        assert!(Cli::try_parse_from(detach.split(' ')).is_ok());
    }

    #[test]
    fn verbosity_is_a_level() {
        for (line, expected) in [
            ("netdp run", "Info"),
            ("netdp -v=0", "Info"),
            ("netdp -v 3", "Info"),
            ("netdp --v=-1", "Info"),
            ("netdp --v 4", "Debug"),
            ("netdp --v=9", "Trace"),
            ("netdp --v=9 --log-level=warn", "Warn"),
        ] {
            assert_eq!(format!("{:?}", run(line).log_level()), expected, "{line}");
        }
    }

    #[test]
    fn every_flag_of_ip_masq_agent_is_taken() {
        let ignored = "--alsologtostderr --add_dir_header --skip_headers=true --skip_log_headers \
                       --one_output --legacy_stderr_threshold_behavior=true \
                       --stderrthreshold=INFO --alsologtostderrthreshold=2 --vmodule=a=1 --log_backtrace_at=x:1 \
                       --log_dir=/x --log_file=/x --log_file_max_size=9 --log-flush-frequency=5s";
        let line = format!(
            "ip-masq-agent --masq-chain=X --nomasq-all-reserved-ranges=1 --enable-ipv6=T \
             --random-fully=0 --to-ports=1-2 --v=2 --logtostderr {ignored}"
        );
        let run = run(&line);
        assert_eq!(run.klog.without_effect().len(), ignored.split(' ').count());
        let options = run.options().unwrap();
        assert_eq!(options.chains.name, "X");
        assert!(options.config_options.enable_ipv6);
        assert!(options.config_options.nomasq_all_reserved_ranges);
        let spaced = super::tests::run("netdp -stderrthreshold 2 -log_dir /x -vmodule a=2");
        assert_eq!(spaced.klog.without_effect().len(), 3);
        let elsewhere = super::tests::run("netdp --logtostderr=false");
        assert_eq!(elsewhere.klog.without_effect(), ["--logtostderr=false"]);
    }
}
