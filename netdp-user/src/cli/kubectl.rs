//! `kubectl netdp`, a plugin of kubectl: this program under the name `kubectl-netdp`.

use super::explain::Explain;
use super::output;
use crate::fleet;
use crate::kubectl::{
    self, Agent, Agents, Ask, COMPLETE_NAME, Found, Kubectl, NAME, Where, find_service, stream_to,
};
use crate::{format, time};
use anyhow::{Result, bail};
use clap::{Arg, Args, CommandFactory as _, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// End of the help text.
const EXAMPLES: &str = "\
Flags of the plugin and of kubectl come before POD, those of netdp's command after it; with --node
after --.

Examples:
  kubectl netdp explain -n shop deploy/cart db.example:5432
  kubectl netdp explain -n shop deploy/cart svc/db:5432
  kubectl netdp flows -n shop cart-5d9 --summary=destination
  kubectl netdp top --node node-a
  kubectl netdp who 10.1.0.10:44216 --to 203.0.113.10:443
  kubectl netdp flows --node node-a -- --sort bytes -n 20
  kubectl netdp support-bundle --node node-a -o bundle.tar.gz --anonymous";

/// netdp's commands on the nodes of a cluster. They run in the agents' pods by kubectl exec, with your
/// rights.
#[derive(Debug, Parser)]
#[command(name = "kubectl netdp", bin_name = "kubectl netdp", version, max_term_width = 100,
          after_help = EXAMPLES)]
pub(super) struct Plugin {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    command: PluginCommand,
}

/// Flags of kubectl that select cluster and user.
#[derive(Debug, Args)]
struct Access {
    /// Kubeconfig file.
    #[arg(long, value_name = "PATH", global = true)]
    kubeconfig: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,
    /// User to impersonate.
    #[arg(long = "as", value_name = "NAME", global = true)]
    impersonate: Option<String>,
}

impl Access {
    fn kubectl(&self) -> Kubectl {
        Kubectl::new(&[
            ("--kubeconfig", self.kubeconfig.as_deref()),
            ("--context", self.context.as_deref()),
            ("--cluster", self.cluster.as_deref()),
            ("--user", self.user.as_deref()),
            ("--as", self.impersonate.as_deref()),
        ])
    }
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// Explain which source a destination sees of a pod, and why: POD and DST, with a port or without. DST may be a
    /// Service (svc/NAME, its DNS name or its address), of which each endpoint is explained; the node resolves other names.
    Explain(Remote),
    /// Show the state of netdp on a node.
    Status(Remote),
    /// List the live mappings of a pod, or of a node.
    Flows(Remote),
    /// Show the policy in force on a node, with what each prefix has counted.
    Policy(Remote),
    /// Show the policies that have been in force on a node.
    History(Remote),
    /// Suggest which bypassed networks to masquerade, by what a node has seen.
    Suggest(Remote),
    /// Show a node's pods, destinations, prefixes, drops and uplinks in a live screen.
    Top(Remote),
    /// Tell which pod has or had an address on the wire: an address with a port or without. Asks all nodes that have the
    /// address.
    Who(Who),
    /// Show the configuration in force on each node.
    Fleet(FleetArgs),
    /// Collect what is known about a node's netdp in an archive here.
    SupportBundle(Bundle),
}

/// Which agent is asked.
#[derive(Debug, Args)]
struct At {
    /// Namespace of POD, and of a Service svc/NAME; the default is the context's.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Node, instead of that of a pod.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    agents: AgentFlags,
}

/// Selection of the agents.
#[derive(Debug, Args)]
struct AgentFlags {
    /// Namespace of the agents.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    agent_namespace: String,
    /// Labels of the agents' pods.
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "app.kubernetes.io/name=netdp"
    )]
    agent_selector: String,
    /// Container of the agent in its pod; the default is kubectl's.
    #[arg(long, value_name = "NAME")]
    agent_container: Option<String>,
}

impl AgentFlags {
    fn agents(&self) -> Agents {
        Agents {
            namespace: self.agent_namespace.clone(),
            selector: self.agent_selector.clone(),
            container: self.agent_container.clone(),
        }
    }
}

impl At {
    /// Finds the agent; without a node, by the pod that `arguments` begin with, which is taken out.
    /// Returns the pod, too.
    fn find(
        &self,
        kubectl: &Kubectl,
        arguments: &mut Vec<String>,
    ) -> Result<(Agent, Option<Found>)> {
        let is_pod = arguments.first().is_some_and(|word| !word.starts_with('-'));
        let target = match &self.node {
            Some(node) => Where::Node(node.clone()),
            None if is_pod => Where::Pod {
                namespace: self.namespace.clone(),
                name: arguments.remove(0),
            },
            None => Where::Only,
        };
        self.agents.agents().find(kubectl, &target)
    }
}

/// A command that runs on a node.
#[derive(Debug, Args)]
struct Remote {
    #[command(flatten)]
    at: At,
    /// The pod, or what has pods (deploy/NAME); then arguments of netdp's command.
    #[arg(
        value_name = "POD ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    arguments: Vec<String>,
}

impl Remote {
    /// Runs the command; returns only if that fails.
    fn run(self, kubectl: &Kubectl, name: &str, of_pod: Option<&str>) -> Result<ExitCode> {
        let mut arguments = self.arguments;
        let (agent, pod) = self.at.find(kubectl, &mut arguments)?;
        let mut all = vec![name.to_owned()];
        let address = pod.iter().flat_map(|pod| &pod.addresses).next();
        if let (Some(flag), Some(address)) = (of_pod, address) {
            all.extend([flag.to_owned(), address.to_string()]);
        }
        all.extend(arguments);
        Err(kubectl.exec(&agent, &all))
    }

    /// Explains, for each endpoint if the destination is a Service; returns only if that fails.
    fn explain(self, kubectl: &Kubectl) -> Result<ExitCode> {
        let mut arguments = self.arguments;
        let (agent, pod) = self.at.find(kubectl, &mut arguments)?;
        let mut all = vec!["explain".to_owned()];
        for address in pod.iter().flat_map(|pod| &pod.addresses) {
            all.extend(["--from".to_owned(), address.to_string()]);
        }
        let asked = Asked::of(&arguments);
        let ask = Ask {
            namespace: self.at.namespace.as_deref(),
            protocol: asked.protocol.as_deref(),
            node: &agent.node,
        };
        for at in &asked.destinations {
            let Some(word) = arguments.get(*at) else {
                continue;
            };
            let Some(found) = find_service(kubectl, word, &ask)? else {
                continue;
            };
            if asked.destinations.len() > 1 {
                bail!("{word} is a Service: ask for it alone");
            }
            for note in &found.notes {
                eprintln!("netdp: {note}");
            }
            for service in found.services {
                all.extend(["--service".to_owned(), service]);
            }
            if let Some(protocol) = found.protocol.filter(|_| asked.protocol.is_none()) {
                all.extend(["--protocol".to_owned(), protocol]);
            }
            arguments.splice(*at..=*at, found.destinations);
            break;
        }
        all.extend(arguments);
        Err(kubectl.exec(&agent, &all))
    }
}

/// What is asked for by arguments of `netdp explain`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    /// Positions of the destinations among the arguments.
    destinations: Vec<usize>,
    protocol: Option<String>,
}

impl Asked {
    /// Reads the arguments as clap does, as far as they can be read.
    fn of(arguments: &[String]) -> Self {
        let command = Explain::augment_args(clap::Command::new("explain"));
        let flag = |word: &str| {
            let known = |it: &&Arg| {
                let long = word.strip_prefix("--");
                let short = word.strip_prefix('-').and_then(|word| word.chars().next());
                match long {
                    Some(long) => it.get_long() == Some(long),
                    None => short.is_some() && it.get_short() == short,
                }
            };
            command.get_arguments().find(known).map(|it| {
                let has_value = it.get_action().takes_values() && !it.is_require_equals_set();
                (it.get_id() == "protocol", has_value)
            })
        };
        let mut asked = Self::default();
        let mut words = arguments.iter().enumerate();
        let mut is_rest = false;
        while let Some((at, word)) = words.next() {
            if is_rest || !word.starts_with('-') {
                asked.destinations.push(at);
            } else if word == "--" {
                is_rest = true;
            } else {
                let (name, value) = match (word.split_once('='), word.get(2..)) {
                    (Some((name, value)), _) => (name, Some(value)),
                    (None, Some(value)) if !word.starts_with("--") && !value.is_empty() => {
                        (word.as_str(), Some(value))
                    }
                    _ => (word.as_str(), None),
                };
                let Some((is_protocol, has_value)) = flag(name) else {
                    continue;
                };
                let value = match value {
                    None if has_value => words.next().map(|(_, value)| value.as_str()),
                    value => value,
                };
                if is_protocol {
                    asked.protocol = value.map(str::to_owned);
                }
            }
        }
        asked
    }
}

#[derive(Debug, Args)]
struct Who {
    #[command(flatten)]
    agents: AgentFlags,
    /// The address on the wire, with or without the port; then arguments of netdp who.
    #[arg(
        value_name = "ADDR[:PORT] ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    arguments: Vec<String>,
}

impl Who {
    fn run(self, kubectl: &Kubectl) -> Result<ExitCode> {
        let place = self.arguments.first().map_or("", String::as_str);
        let Some(address) = kubectl::address(place) else {
            bail!("{place:?} is not an address; example: kubectl netdp who 10.1.0.10:44216");
        };
        let arguments = [&["who".to_owned()], self.arguments.as_slice()].concat();
        kubectl::ask(kubectl, &self.agents.agents(), address, &arguments)
    }
}

#[derive(Debug, Args)]
struct FleetArgs {
    /// Namespace of the agents' Leases.
    #[arg(long, value_name = "NAMESPACE", default_value = "netdp-fleet")]
    lease_namespace: String,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = super::Output::Text)]
    output: super::Output,
}

#[derive(Debug, Args)]
struct Bundle {
    #[command(flatten)]
    at: At,
    /// Archive to write here. The default is netdp-bundle-NODE-SECONDS.tar.gz.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace names and addresses by others.
    #[arg(long)]
    anonymous: bool,
    /// Include single mappings.
    #[arg(long)]
    flows: bool,
    /// The pod, or what has pods, on whose node netdp is asked.
    #[arg(value_name = "POD")]
    pod: Option<String>,
}

impl Bundle {
    fn run(self, kubectl: &Kubectl) -> Result<ExitCode> {
        let mut target: Vec<String> = self.pod.into_iter().collect();
        let (agent, _) = self.at.find(kubectl, &mut target)?;
        let mut arguments = vec!["support-bundle".to_owned(), "-o".to_owned(), "-".to_owned()];
        for (given, flag) in [(self.anonymous, "--anonymous"), (self.flows, "--flows")] {
            arguments.extend(given.then(|| flag.to_owned()));
        }
        let node = if self.anonymous { "node" } else { &agent.node };
        let path = self.output.unwrap_or_else(|| {
            PathBuf::from(format!("netdp-bundle-{node}-{}.tar.gz", time::now()))
        });
        stream_to(kubectl, &agent, &arguments, &path)?;
        let size = std::fs::metadata(&path).map_or(0, |about| about.len());
        eprintln!("netdp: wrote {}, {}", path.display(), format::bytes(size));
        Ok(ExitCode::SUCCESS)
    }
}

impl Plugin {
    /// Returns the plugin's command line, if the program was called as kubectl's plugin; exits with a
    /// message if that is invalid.
    pub(super) fn called(args: &[OsString]) -> Option<Self> {
        let (program, rest) = args.split_first()?;
        let called = Path::new(program).file_name()?;
        if called == COMPLETE_NAME {
            let words = rest.iter().map(|word| word.to_string_lossy().into_owned());
            let words: Vec<_> = words.collect();
            let text = kubectl::complete(&Self::command(), &words);
            let written = output::write_out(&text, false);
            std::process::exit(i32::from(written.is_err()));
        }
        (called == NAME).then(|| Self::parse_from(args))
    }

    /// Runs the command.
    pub(super) fn run(self) -> ExitCode {
        output::or_trouble(self.result())
    }

    fn result(self) -> Result<ExitCode> {
        let kubectl = self.access.kubectl();
        match self.command {
            PluginCommand::Explain(remote) => {
                if remote.at.node.is_none() && remote.arguments.len() < 2 {
                    bail!(
                        "name a pod and a destination, as in kubectl netdp explain -n shop deploy/cart \
                         10.2.0.17:443; or a node, with --node"
                    );
                }
                remote.explain(&kubectl)
            }
            PluginCommand::Status(remote) => remote.run(&kubectl, "status", None),
            PluginCommand::Flows(remote) => remote.run(&kubectl, "flows", Some("--pod")),
            PluginCommand::Policy(remote) => remote.run(&kubectl, "policy", None),
            PluginCommand::History(remote) => remote.run(&kubectl, "history", None),
            PluginCommand::Suggest(remote) => remote.run(&kubectl, "suggest", None),
            PluginCommand::Top(remote) => remote.run(&kubectl, "top", None),
            PluginCommand::Who(who) => who.run(&kubectl),
            PluginCommand::Fleet(fleet) => {
                let json = fleet.output == super::Output::Json;
                fleet::print_by_kubectl(&kubectl, &fleet.lease_namespace, json)?;
                Ok(ExitCode::SUCCESS)
            }
            PluginCommand::SupportBundle(bundle) => bundle.run(&kubectl),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Plugin, PluginCommand};
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_consistent() {
        Plugin::command().debug_assert();
    }

    #[test]
    fn examples_of_the_help_are_command_lines() {
        let lines = super::EXAMPLES.lines();
        let lines = lines.filter_map(|line| line.trim().strip_prefix("kubectl netdp "));
        let mut count = 0;
        for line in lines {
            let words = std::iter::once("kubectl-netdp").chain(line.split(' '));
            if let Err(err) = Plugin::try_parse_from(words) {
                panic!("{line}: {err}");
            }
            count += 1;
        }
        assert_eq!(count, 7);
    }

    #[test]
    fn what_comes_after_the_pod_is_netdps() {
        for (line, namespace, arguments) in [
            (
                "explain -n shop deploy/cart db.example:5432 -o json",
                Some("shop"),
                "deploy/cart db.example:5432 -o json",
            ),
            (
                "flows cart -n 5 --kubeconfig x",
                None,
                "cart -n 5 --kubeconfig x",
            ),
            ("flows --node a -- -n 5", None, "-n 5"),
            ("flows --summary=pod -n 5", None, "--summary=pod -n 5"),
        ] {
            let words = std::iter::once("kubectl-netdp").chain(line.split(' '));
            let plugin = Plugin::try_parse_from(words).unwrap();
            let (PluginCommand::Explain(remote) | PluginCommand::Flows(remote)) = plugin.command
            else {
                panic!("{line}");
            };
            assert_eq!(remote.at.namespace.as_deref(), namespace, "{line}");
            assert_eq!(remote.arguments.join(" "), arguments, "{line}");
        }
    }

    #[test]
    fn destinations_are_the_words_that_are_no_flags() {
        for (line, destinations, protocol) in [
            ("svc/db:80", vec![0], None),
            ("-o json svc/db -p udp", vec![2], Some("udp")),
            ("--protocol=17 svc/db --expect node", vec![1], Some("17")),
            ("-pudp svc/db", vec![1], Some("udp")),
            ("-p=udp a b", vec![1, 2], Some("udp")),
            ("--nomasq-all-reserved-ranges a", vec![1], None),
            ("--packet x", vec![], None),
            ("-p tcp -- -a", vec![3], Some("tcp")),
            ("--unknown a -p", vec![1], None),
        ] {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            let protocol = protocol.map(str::to_owned);
            let expected = Asked {
                destinations,
                protocol,
            };
            assert_eq!(Asked::of(&words), expected, "{line}");
        }
    }
}
