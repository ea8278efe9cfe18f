//! Calls of kubectl.

use super::find::Agent;
use crate::private;
use crate::terminal;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Kubectl, with the flags that select cluster and user.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kubectl {
    flags: Vec<String>,
}

impl Kubectl {
    /// Returns kubectl with these flags in each call; a value of `None` leaves the flag out.
    pub(crate) fn new(flags: &[(&str, Option<&str>)]) -> Self {
        let given = flags
            .iter()
            .filter_map(|(flag, value)| Some(format!("{flag}={}", (*value)?)));
        Self {
            flags: given.collect(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.flags).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).output();
        output.map_err(|err| not_started(&err))
    }

    /// Runs `kubectl get … -o json`, and parses what it prints.
    ///
    /// # Errors
    /// Returns an error with kubectl's own words if it fails.
    pub(crate) fn get<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let all = [&["get"], arguments, &["-o", "json"]].concat();
        let output = self.output(&all)?;
        let line = || format!("kubectl get {}", arguments.join(" "));
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", line(), terminal::line(said.trim()));
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("reading {}", line()))
    }

    /// Replaces this process by `netdp` in the pod of an agent. Returns only if that fails.
    pub(crate) fn exec(&self, agent: &Agent, arguments: &[String]) -> anyhow::Error {
        let is_screen = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut command = self.exec_command(agent, arguments, is_screen);
        not_started(&command.exec())
    }

    /// Runs `netdp` in the pod of an agent, and returns its exit status; `None` if a signal ended it.
    ///
    /// # Errors
    /// Returns an error if kubectl can't be started.
    pub(super) fn run(&self, agent: &Agent, arguments: &[String]) -> Result<Option<i32>> {
        let mut command = self.exec_command(agent, arguments, false);
        let status = command.stdin(Stdio::null()).status();
        Ok(status.map_err(|err| not_started(&err))?.code())
    }

    fn exec_command(&self, agent: &Agent, arguments: &[String], tty: bool) -> Command {
        let mut command = self.command(&["exec"]);
        if tty {
            command.args(["--stdin", "--tty"]);
        }
        command.args(["--namespace", &agent.namespace, &agent.pod]);
        if let Some(container) = &agent.container {
            command.args(["--container", container]);
        }
        command.args(["--", "netdp"]).args(arguments);
        command
    }

    /// Returns the lines of `kubectl get … -o name`; none if it fails.
    pub(super) fn names(&self, arguments: &[&str]) -> Vec<String> {
        let all = [&["get"], arguments, &["-o", "name"]].concat();
        let output = self.output(&all);
        let output = output.ok().filter(|output| output.status.success());
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let names = text.iter().flat_map(|text| text.lines());
        let plain = names.map(|name| name.split_once('/').map_or(name, |(_, name)| name));
        plain.map(str::to_owned).collect()
    }
}

/// Runs `netdp` in the pod of an agent, and writes what it prints to a new file of the caller's, with
/// its messages on standard error.
///
/// # Errors
/// Returns an error if the file is there already, or the command fails.
pub(crate) fn stream_to(
    kubectl: &Kubectl,
    agent: &Agent,
    arguments: &[String],
    path: &Path,
) -> Result<()> {
    let shown = path.display();
    ensure!(
        !path.exists(),
        "{shown} is there already: remove it, or name another file with -o"
    );
    let file = private::create(path).with_context(|| format!("creating {shown}"))?;
    let mut command = kubectl.exec_command(agent, arguments, false);
    let status = command.stdin(Stdio::null()).stdout(file).status();
    let failed = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => anyhow!("netdp {} on {}: {status}", arguments.join(" "), agent.node),
        Err(err) => not_started(&err),
    };
    // Half an archive helps nobody.
    let _ = fs::remove_file(path);
    Err(failed)
}

fn not_started(err: &std::io::Error) -> anyhow::Error {
    match err.kind() {
        ErrorKind::NotFound => {
            anyhow!("kubectl is not in $PATH: install it, or call netdp on the node")
        }
        _ => anyhow!("starting kubectl: {err}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Agent, Kubectl};

    fn words(command: &std::process::Command) -> Vec<String> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|it| it.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn commands_run_in_the_agents_pod_with_the_callers_flags() {
        let kubectl = Kubectl::new(&[("--context", Some("blue")), ("--as", None)]);
        let mut agent = Agent {
            node: "node-a".into(),
            namespace: "kube-system".into(),
            pod: "netdp-x".into(),
            container: None,
        };
        let arguments = ["status".to_owned()];
        let line = words(&kubectl.exec_command(&agent, &arguments, false)).join(" ");
        assert_eq!(
            line,
            "kubectl --context=blue exec --namespace kube-system netdp-x -- netdp status"
        );
        agent.container = Some("agent".into());
        let line = words(&kubectl.exec_command(&agent, &arguments, true)).join(" ");
        assert_eq!(
            line,
            "kubectl --context=blue exec --stdin --tty --namespace kube-system netdp-x --container \
             agent -- netdp status"
        );
    }
}
