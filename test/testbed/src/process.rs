//! Programs: run to completion or kept running; and waiting with a deadline.

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Polling interval of a condition.
const POLL: Duration = Duration::from_millis(5);

/// Returns the factor by which this machine is slower than others: `NETDP_TEST_SLOWNESS`, or 1.
/// Emulated machines need it (`cargo xtask kernels`).
fn slowness() -> u32 {
    let told = std::env::var("NETDP_TEST_SLOWNESS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(1)
}

/// Waits until `condition` holds. The error names `what`.
pub fn wait_for(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_some(deadline, what, || condition().then_some(()))
}

/// Waits until `look` returns a value, and returns it.
pub fn wait_some<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = deadline * slowness();
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(
            start.elapsed() < deadline,
            "timed out after {deadline:?} waiting for {what}"
        );
        std::thread::sleep(POLL);
    }
}

/// Runs the command to completion and returns its standard output. The error contains the command
/// line and the output.
pub fn output(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("`{line}`: {}{}", out.status, indent(&[&stderr, &stdout]));
    }
    Ok(stdout)
}

/// A program that runs until it exits or the guard is dropped, which kills it. Its output is kept.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Starts the command without standard input.
    pub fn start(mut command: Command) -> Result<Self> {
        let line = command_line(&command);
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        Ok(Self {
            line,
            child,
            stdout,
            stderr,
        })
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// Returns its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Returns its exit status; `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it exits, with any status.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.line);
        let mut status = None;
        wait_for(deadline, &what, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .with_context(|| self.written())?;
        status.context(what)
    }

    /// Waits until it exits successfully and returns its standard output.
    pub fn finish(mut self, deadline: Duration) -> Result<String> {
        let status = self.wait(deadline)?;
        ensure!(
            status.success(),
            "`{}`: {status}{}",
            self.line,
            self.written()
        );
        Ok(self.stdout())
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), signal)
            .with_context(|| format!("sending {signal} to `{}`", self.line))
    }

    /// Sends SIGTERM and waits until it exits.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Returns its whole output, for a failure message.
    #[must_use]
    pub fn written(&self) -> String {
        indent(&[&self.stderr(), &self.stdout()])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

fn contents(file: &File) -> String {
    // Positional reads do not move the offset at which the child writes.
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    let mut offset = 0;
    while let Ok(count @ 1..) = file.read_at(&mut chunk, offset) {
        bytes.extend_from_slice(&chunk[..count]);
        offset += count as u64;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn indent(texts: &[&str]) -> String {
    let mut indented = String::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        let _ = write!(indented, "\n    | {line}");
    }
    indented
}
