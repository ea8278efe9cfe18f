//! The agent (`netdp run`) on a node.

use super::netns::Netns;
use super::no_bpf::fail_bpf;
use super::process::{Running, output, wait_for};
use super::workdir::WorkDir;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// Timeout for an agent to become ready, and to exit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the path of the netdp program in `NETDP_BIN`. Tests in netdp-user have a better source:
/// `env!("CARGO_BIN_EXE_netdp")`.
pub fn binary_from_env() -> Result<PathBuf> {
    std::env::var_os("NETDP_BIN")
        .map(PathBuf::from)
        .context("NETDP_BIN has to name the netdp binary")
}

/// Command line and environment of an agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    binary: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// Program and arguments that run netdp; empty for none.
    runner: Vec<OsString>,
    bpf_error: Option<(Errno, &'static [u8])>,
}

impl AgentOptions {
    /// Creates options for the netdp program `binary`.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            runner: Vec::new(),
            bpf_error: None,
        }
    }

    /// Adds `--config PATH`.
    #[must_use]
    pub fn config(self, path: &Path) -> Self {
        self.arg("--config").arg(path)
    }

    /// Adds `--uplink NAME`.
    #[must_use]
    pub fn uplink(self, name: &str) -> Self {
        self.arg("--uplink").arg(name)
    }

    /// Returns the path of the netdp program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.binary
    }

    /// Selects another netdp program.
    pub fn set_program(&mut self, binary: impl Into<PathBuf>) {
        self.binary = binary.into();
    }

    /// Has another program run `netdp run`, with these arguments before it; an empty list ends
    /// that. It must run netdp as the process that was started (`strace -D` does).
    pub fn set_runner(&mut self, runner: &[&str]) {
        self.runner = runner.iter().map(OsString::from).collect();
    }

    /// Adds any other argument of `netdp run`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Simulates a kernel whose bpf(2) always fails with this error; `None` ends that.
    pub fn set_bpf_error(&mut self, error: Option<Errno>) {
        self.bpf_error = error.map(|error| (error, &[][..]));
    }

    /// Simulates a kernel on which these commands of bpf(2) (`enum bpf_cmd`) fail with this error.
    #[must_use]
    pub const fn without_bpf(mut self, commands: &'static [u8], error: Errno) -> Self {
        self.bpf_error = Some((error, commands));
        self
    }

    /// Replaces an argument that was added before.
    pub fn replace(&mut self, argument: &str, by: &str) {
        for given in &mut self.arguments {
            if given == argument {
                *given = by.into();
            }
        }
    }
}

/// An agent with directories of its own. Dropping it kills the agent and unmounts its bpffs, which
/// removes the datapath with the pins.
#[derive(Debug)]
pub struct Agent {
    // Dropped first: the process must end before its directories go.
    running: Running,
    node: Netns,
    options: AgentOptions,
    dir: WorkDir,
}

impl Agent {
    /// Starts the agent on the node and waits until it is ready.
    pub fn start(node: &Netns, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(node, options)?;
        agent.wait_ready(PATIENCE)?;
        Ok(agent)
    }

    /// Starts the agent without waiting.
    pub fn spawn(node: &Netns, options: AgentOptions) -> Result<Self> {
        let dir = WorkDir::new("agent")?;
        let running = launch(node, &options, &dir)?;
        Ok(Self {
            running,
            node: node.clone(),
            options,
            dir,
        })
    }

    /// Waits until the agent reports that it is ready. If it exits before, fails at once with its
    /// output.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let ready = ready_file(&self.dir);
        let mut ended = None;
        wait_for(deadline, "the agent to be in force", || {
            ended = self.running.exit_status().ok().flatten();
            ended.is_some() || ready.exists()
        })
        .with_context(|| format!("the agent wrote:{}", self.running.written()))?;
        if let Some(status) = ended {
            bail!(
                "the agent ended before it was in force: {status}{}",
                self.running.written()
            );
        }
        Ok(())
    }

    /// Kills the agent with SIGKILL, and waits until nothing holds its lock: a child process does until
    /// it has executed its program. The datapath stays.
    pub fn kill9(&mut self) -> Result<()> {
        self.running.kill9()?;
        let lock = self.state_dir().join("lock");
        wait_for(PATIENCE, "the killed agent's lock to be free", || {
            !is_open(&lock)
        })
    }

    /// Stops the agent with SIGTERM and returns its exit status.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.running.terminate(PATIENCE)
    }

    /// Starts the agent on the same directories and waits until it is ready. It may have been ended
    /// with [`kill9`](Self::kill9) or [`stop`](Self::stop), or still be running.
    pub fn restart(&mut self) -> Result<()> {
        self.running.kill9()?;
        self.running = launch(&self.node, &self.options, &self.dir)?;
        self.wait_ready(PATIENCE)
    }

    /// Starts the agent like [`restart`](Self::restart), and waits until it ends by itself. Returns
    /// `None` if it gets ready instead.
    pub fn restart_and_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.running.kill9()?;
        self.running = launch(&self.node, &self.options, &self.dir)?;
        let ready = ready_file(&self.dir);
        let mut ended = None;
        wait_for(PATIENCE, "the agent to end or to be in force", || {
            ended = self.running.exit_status().ok().flatten();
            ended.is_some() || ready.exists()
        })
        .with_context(|| format!("the agent wrote:{}", self.running.written()))?;
        Ok(ended)
    }

    /// Returns the options of the next [`restart`](Self::restart).
    pub fn options(&mut self) -> &mut AgentOptions {
        &mut self.options
    }

    /// Returns the standard error of this run of the agent so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Sends a signal to the agent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running.signal(signal)
    }

    /// Returns the directory of its pins (`--bpffs`).
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        bpffs(&self.dir)
    }

    /// Returns its `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.dir)
    }

    /// Returns a command that runs a netdp subcommand on this agent, for example `["status", "-o",
    /// "json"]`.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(&self.options.binary);
        command.args(arguments);
        name_directories(&mut command, &self.dir);
        command
    }

    /// Runs a netdp subcommand on this agent and returns its standard output.
    pub fn netdp(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }
}

/// Reports whether any process has a file open.
fn is_open(file: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let opened = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
    let mut opened = opened.flatten().flatten();
    opened.any(|opened| fs::read_link(opened.path()).is_ok_and(|target| target == file))
}

fn launch(node: &Netns, options: &AgentOptions, dir: &WorkDir) -> Result<Running> {
    let ready = ready_file(dir);
    // A ready file of an earlier run would be taken for this one's.
    match fs::remove_file(&ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", ready.display()));
        }
        _ => {}
    }
    let mut command = match options.runner.split_first() {
        Some((runner, arguments)) => {
            let mut command = node.command(runner);
            command.args(arguments).arg(&options.binary);
            command
        }
        None => node.command(&options.binary),
    };
    // The environment of the test runner is not the node's.
    for name in [
        "NODE_IP",
        "NODE_NAME",
        "POD_NAMESPACE",
        "KUBECONFIG",
        "KUBERNETES_SERVICE_HOST",
    ] {
        command.env_remove(name);
    }
    command.envs(
        options
            .environment
            .iter()
            .map(|(name, value)| (name, value)),
    );
    command.arg("run").args(&options.arguments);
    // The default in tests, wherever they run: in a container the pins may end with it.
    let has_mode = |argument: &OsString| argument.to_string_lossy().starts_with("--mode");
    if !options.arguments.iter().any(has_mode) {
        command.arg("--mode=ebpf");
    }
    name_directories(&mut command, dir);
    command.arg("--ready-file").arg(ready);
    if let Some((error, commands)) = options.bpf_error {
        fail_bpf(&mut command, error, commands);
    }
    Running::start(command)
}

fn name_directories(command: &mut Command, dir: &WorkDir) {
    command.arg("--bpffs").arg(bpffs(dir));
    command.arg("--state-dir").arg(state_dir(dir));
}

fn ready_file(dir: &WorkDir) -> PathBuf {
    dir.path().join("ready")
}

fn bpffs(dir: &WorkDir) -> PathBuf {
    dir.path().join("bpffs")
}

fn state_dir(dir: &WorkDir) -> PathBuf {
    dir.path().join("state")
}
