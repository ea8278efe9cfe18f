//! Running other programs in sight of the user.

use anyhow::{Context as _, Result, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells on standard error what is being done, and why.
pub fn say(what: &str) {
    eprintln!("netdp: {what}");
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command to its end in the user's sight.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("starting `{line}`"))?;
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// Runs a command with all its output on standard error, where progress goes.
pub fn run_as_progress(command: &mut Command) -> Result<()> {
    run(command.stdout(Stdio::from(std::io::stderr())))
}

/// The same for what is silent for minutes: tells from time to time that it is
/// still at it.
pub fn run_with_clock(command: &mut Command, what: &str) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(200);
    const TELL: Duration = Duration::from_secs(20);
    let line = line(command);
    let (start, mut told) = (Instant::now(), Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            say(&format!("{what}: {} s so far", start.elapsed().as_secs()));
        }
        std::thread::sleep(LOOK);
    };
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A cargo command in the workspace, with cargo's own bin directory in PATH:
/// that is where bpf-linker gets installed.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("PATH", path());
    command
}

/// Where programs are looked for.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(cargo_bin());
    std::env::join_paths(directories).unwrap_or(path)
}

fn cargo_bin() -> Option<PathBuf> {
    let home = |name| std::env::var_os(name).map(PathBuf::from);
    let cargo_home = home("CARGO_HOME").or_else(|| Some(home("HOME")?.join(".cargo")))?;
    Some(cargo_home.join("bin"))
}

/// Whether a program of this name can be run.
pub fn has_program(name: &str) -> bool {
    // Debian's users other than root lack the sbin directories.
    std::env::split_paths(&path())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}
