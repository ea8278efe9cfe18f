//! Running other programs with visible output.

use anyhow::{Context as _, Result, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Reports on standard error the current action and its reason.
pub fn progress(what: &str) {
    eprintln!("netdp: {what}");
}

/// Returns the root directory of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command to completion with its output visible.
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

/// Runs a command that is silent for minutes; reports periodically that it still runs.
pub fn run_with_clock(command: &mut Command, what: &str) -> Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_millis(200);
    const REPORT_INTERVAL: Duration = Duration::from_secs(20);
    let line = line(command);
    let (start, mut reported) = (Instant::now(), Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            progress(&format!("{what}: {} s so far", start.elapsed().as_secs()));
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    ensure!(status.success(), "`{line}`: {status}");
    Ok(())
}

/// Returns a command as it is typed in a shell.
#[must_use]
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns a cargo command in the workspace, with cargo's own bin directory in PATH, where
/// bpf-linker is installed.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("PATH", path());
    command
}

/// Returns the search path of programs.
fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(cargo_bin());
    std::env::join_paths(directories).unwrap_or(path)
}

fn cargo_bin() -> Option<PathBuf> {
    Some(cargo_home()?.join("bin"))
}

/// Returns the directory of cargo's downloads and installed programs.
#[must_use]
pub fn cargo_home() -> Option<PathBuf> {
    let home = |name| std::env::var_os(name).map(PathBuf::from);
    home("CARGO_HOME").or_else(|| Some(home("HOME")?.join(".cargo")))
}

/// Returns the path of the program netdp from cargo's JSON messages: the target directory may be
/// anywhere.
#[must_use]
pub fn built_netdp(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "netdp")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Returns the Rust target of static programs for this machine.
#[must_use]
pub fn static_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Reports whether a program with this name is in the path.
#[must_use]
pub fn has_program(name: &str) -> bool {
    // On Debian, the path of users other than root lacks the sbin directories.
    std::env::split_paths(&path())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"netdp"},"executable":"/t/release/netdp"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(built_netdp(messages), Some("/t/release/netdp".into()));
        assert_eq!(built_netdp("{}"), None);
    }
}
