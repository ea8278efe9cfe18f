//! Third-party programs that the agent runs as root: where they are searched for, and how they run.
//!
//! Only named directories are searched, never `$PATH`, and a program runs only if nobody but root
//! can have changed it. This is checked on each run: the package may be replaced while the agent
//! runs.

use crate::pod;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Directories searched for programs unless `--tool-dir` names others. None is below /usr/local,
/// which the group staff may write to on Debian.
pub const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Time limit of a program. Shorter than the liveness probe's limit for the agent's loop.
const PATIENCE: Duration = Duration::from_secs(20);

/// Limit of standard output, in bytes: enough for the rules of some hundred thousand endpoints.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// Limit of standard error, in bytes.
const ERRORS_LIMIT: u64 = 64 << 10;

/// Environment variable that is passed on: the path of the lock of the iptables-legacy programs.
const LOCK_FILE: &str = "XTABLES_LOCKFILE";

/// Path of that lock in a container with a read-only root that does not mount the node's lock:
/// without any lock the programs refuse to run.
const LOCK_IN_MEMORY: &str = "/dev/shm/netdp-xtables.lock";

/// Running programs, by process group.
static RUNNING: Mutex<Running> = Mutex::new(Running {
    ended: false,
    groups: BTreeSet::new(),
});

struct Running {
    /// Set while no program may start.
    ended: bool,
    groups: BTreeSet<Pid>,
}

static SEARCH_PATH: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Sets the directories to search from now on. Only the first call has an effect.
pub fn set_search_path(directories: Vec<PathBuf>) {
    // A second call comes from a test in this process.
    let _ = SEARCH_PATH.set(directories);
}

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills all running programs and starts none until [`resume`]: for an agent that receives a
/// termination signal while it waits for one. The operations of iptables and nft are atomic.
pub fn end_all() {
    let mut running = running();
    running.ended = true;
    for group in &running.groups {
        // Not reaped yet, so the process id cannot have been reused.
        let _ = killpg(*group, Signal::SIGKILL);
    }
}

/// Allows programs to run again after [`end_all`].
pub fn resume() {
    running().ended = false;
}

/// Reports whether the error means that a program is not installed.
#[must_use]
pub fn is_absent(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|err| err.kind() == ErrorKind::NotFound)
    })
}

/// Returns the program of this process.
///
/// # Errors
/// Returns an error if the kernel doesn't say which file that is.
pub fn own() -> Result<Program> {
    let path = std::env::current_exe().context("the path of this program")?;
    Ok(Program(path))
}

/// A program that passed the checks and may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(PathBuf);

/// Output of a program that exited successfully.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Printed {
    /// Text written to standard output.
    pub output: String,
    /// Text written to standard error.
    pub errors: String,
}

/// Returns the error of a missing program, of the kind [`ErrorKind::NotFound`].
pub fn absent(message: String) -> anyhow::Error {
    anyhow!(std::io::Error::from(ErrorKind::NotFound)).context(message)
}

/// Finds a program; `None` if it is in none of the directories.
///
/// # Errors
/// Returns an error if the program could have been created or changed by a user other than root.
pub fn find(name: &str) -> Result<Option<Program>> {
    match SEARCH_PATH.get() {
        Some(directories) => find_in(directories, name),
        None => find_in(&DIRECTORIES.map(PathBuf::from), name),
    }
}

fn find_in(directories: &[PathBuf], name: &str) -> Result<Option<Program>> {
    for directory in directories {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        check(&path).with_context(|| format!("{} is not executed", path.display()))?;
        // By this path, not by that of the link's target: iptables selects its behaviour by its
        // name.
        return Ok(Some(Program(path)));
    }
    Ok(None)
}

/// Checks that only root can change the program, its link target, and the directories above both.
fn check(path: &Path) -> Result<()> {
    let context = |path: &Path| format!("checking {}", path.display());
    let real = path.canonicalize().with_context(|| context(path))?;
    let parent = path.parent().context("its path has no parent directory")?;
    let above = parent.canonicalize().with_context(|| context(parent))?;
    for path in real.ancestors().chain(above.ancestors()) {
        let about = fs::metadata(path).with_context(|| context(path))?;
        let by_group = about.mode() & 0o020 != 0 && about.gid() != 0;
        ensure!(
            about.uid() == 0 && about.mode() & 0o002 == 0 && !by_group,
            "users other than root can change {}, which belongs to user {} and has mode {:o}: make \
             it root's (chown root:root) and not writable by others (chmod go-w)",
            path.display(),
            about.uid(),
            about.mode() & 0o7777
        );
    }
    let about = fs::metadata(&real).with_context(|| context(&real))?;
    ensure!(
        about.is_file() && about.mode() & 0o111 != 0,
        "{} is not a program",
        real.display()
    );
    Ok(())
}

impl Program {
    /// Runs the program with `input` as its standard input.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started, exceeds the time or output limit, or
    /// fails.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Printed> {
        self.run_for(arguments, input, PATIENCE, OUTPUT_LIMIT)
            .with_context(|| format!("{} {}", self.0.display(), arguments.join(" ")))
    }

    /// Runs the program without input and returns its exit status and what it printed, also where it
    /// failed.
    ///
    /// # Errors
    /// Returns an error if the program cannot be started, or exceeds the time or output limit.
    pub fn attempt(
        &self,
        arguments: &[&str],
        patience: Duration,
        most: u64,
    ) -> Result<(ExitStatus, Printed)> {
        self.outcome(arguments, "", patience, most)
            .with_context(|| format!("{} {}", self.0.display(), arguments.join(" ")))
    }

    fn command(&self, arguments: &[&str], input: &str) -> Command {
        let mut command = Command::new(&self.0);
        let stdin = match input {
            "" => Stdio::null(),
            _ => Stdio::piped(),
        };
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", DIRECTORIES.join(":"))
            .current_dir("/")
            // Includes all of its child processes.
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(file) = std::env::var_os(LOCK_FILE) {
            command.env(LOCK_FILE, file);
        } else if pod::is_read_only(Path::new(pod::LOCK)) {
            command.env(LOCK_FILE, LOCK_IN_MEMORY);
        }
        command
    }

    /// Starts the program unless the agent is ending, and registers it before [`end_all`] can run.
    fn start(&self, arguments: &[&str], input: &str) -> Result<(Child, Pid)> {
        let mut running = running();
        ensure!(
            !running.ended,
            "it is not executed, because the agent is exiting"
        );
        let child = self
            .command(arguments, input)
            .spawn()
            .context("starting it")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        running.groups.insert(pid);
        Ok((child, pid))
    }

    fn run_for(
        &self,
        arguments: &[&str],
        input: &str,
        patience: Duration,
        most: u64,
    ) -> Result<Printed> {
        let (status, printed) = self.outcome(arguments, input, patience, most)?;
        ensure!(status.success(), "{status}: {}", printed.errors);
        Ok(printed)
    }

    fn outcome(
        &self,
        arguments: &[&str],
        input: &str,
        patience: Duration,
        most: u64,
    ) -> Result<(ExitStatus, Printed)> {
        let (mut child, pid) = self.start(arguments, input)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (ended, end) = channel();
        let (in_time, output, errors) = std::thread::scope(|scope| {
            scope.spawn(move || {
                // If the program exits early, its exit status gives the reason.
                stdin.map(|mut stdin| stdin.write_all(input.as_bytes()))
            });
            let output = scope.spawn(|| read(stdout, most));
            let errors = scope.spawn(|| read(stderr, ERRORS_LIMIT));
            scope.spawn(move || {
                // It stays a zombie, so that its process id is not reused in the meantime.
                let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
                ended.send(())
            });
            let in_time = end.recv_timeout(patience).is_ok();
            // No child process is left behind that would hold the pipes open.
            let _ = killpg(pid, Signal::SIGKILL);
            (in_time, output.join(), errors.join())
        });
        let ended = {
            let mut running = running();
            running.groups.remove(&pid);
            running.ended
        };
        let status: ExitStatus = child.wait().context("waiting for it")?;
        ensure!(
            !ended || status.success(),
            "it was killed, because the agent is exiting"
        );
        ensure!(
            in_time,
            "it was killed after {} s without a result",
            patience.as_secs_f32()
        );
        let gone = |_| anyhow!("reading its output");
        let output = output.map_err(gone)?.context("reading its output")?;
        let errors = errors.map_err(gone)?.context("reading its error output")?;
        let Some(output) = output else {
            bail!("it prints more than {} MiB", most >> 20);
        };
        let printed = Printed {
            output,
            errors: one_line(&errors.unwrap_or_default()),
        };
        Ok((status, printed))
    }
}

/// Reads to the end; `None` if there are more than `most` bytes. The pipe is closed then.
fn read(pipe: Option<impl Read>, most: u64) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(most + 1).read_to_end(&mut bytes)?;
    }
    let fits = bytes.len() as u64 <= most;
    Ok(fits.then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Joins the output of a program to one line for a message.
fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    /// Creates a directory that, like its parents, belongs to root.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/run").expect("this test needs root")
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn script(dir: &Path, text: &str) -> Program {
        let path = dir.join("script");
        write(&path, &format!("#!/bin/sh\n{text}"), 0o755);
        find_in(&[dir.to_owned()], "script").unwrap().unwrap()
    }

    #[test]
    fn what_only_root_can_change_is_found() {
        let dir = directory();
        assert_eq!(find_in(&[dir.path().to_owned()], "x").unwrap(), None);
        let program = dir.path().join("x");
        write(&program, "", 0o755);
        let missing = dir.path().join("missing");
        let found = find_in(&[missing, dir.path().to_owned()], "x").unwrap();
        assert_eq!(found, Some(Program(program)));
    }

    #[test]
    fn what_others_can_change_is_refused_and_named() {
        type Spoil = fn(&Path);
        let ways: [(&str, Spoil); 6] = [
            ("mode 777", |dir| {
                fs::set_permissions(dir.join("x"), fs::Permissions::from_mode(0o777)).unwrap();
            }),
            ("belongs to user 1000", |dir| {
                chown(dir.join("x"), Some(1000), None).unwrap();
            }),
            ("mode 775", |dir| {
                chown(dir.join("x"), None, Some(50)).unwrap();
                fs::set_permissions(dir.join("x"), fs::Permissions::from_mode(0o775)).unwrap();
            }),
            ("mode 1777", |dir| {
                fs::set_permissions(dir, fs::Permissions::from_mode(0o1777)).unwrap();
            }),
            ("belongs to user 1000", |dir| {
                let other = dir.join("other");
                fs::create_dir(&other).unwrap();
                write(&other.join("x"), "", 0o755);
                chown(&other, Some(1000), None).unwrap();
                fs::remove_file(dir.join("x")).unwrap();
                symlink(other.join("x"), dir.join("x")).unwrap();
            }),
            ("is not a program", |dir| {
                fs::set_permissions(dir.join("x"), fs::Permissions::from_mode(0o644)).unwrap();
            }),
        ];
        for (words, spoil) in ways {
            let dir = directory();
            write(&dir.path().join("x"), "", 0o755);
            spoil(dir.path());
            let refused = find_in(&[dir.path().to_owned()], "x");
            let refused = format!("{:#}", refused.unwrap_err());
            assert!(
                refused.contains(words) && refused.contains("is not executed"),
                "{words:?}: {refused}"
            );
        }
    }

    #[test]
    fn it_gets_no_environment_and_no_standard_input() {
        let dir = directory();
        let printed = script(dir.path(), "env | sort; cat; echo \"1$HOME\" >&2").run(&[], "");
        let printed = printed.unwrap();
        let names: Vec<_> = printed
            .output
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0))
            .collect();
        assert_eq!(names, ["LC_ALL", "PATH", "PWD"], "{printed:?}");
        assert_eq!(printed.errors, "1");
    }

    #[test]
    fn it_gets_its_input_and_its_failure_is_reported() {
        let dir = directory();
        let program = script(dir.path(), "cat; echo a; echo b >&2; exit $1");
        assert_eq!(program.run(&["0"], "in\n").unwrap().output, "in\na\n");
        let failed = format!("{:#}", program.run(&["3"], "").unwrap_err());
        assert!(failed.contains("exit status: 3: b"), "{failed}");
        assert!(failed.contains("/script 3"), "{failed}");
    }

    #[test]
    fn one_that_does_not_end_is_ended_with_all_that_it_started() {
        let dir = directory();
        let program = script(dir.path(), "sleep 1000 & sleep 1000");
        let patience = Duration::from_millis(100);
        let ended = program.run_for(&[], "", patience, 100).unwrap_err();
        assert!(
            format!("{ended:#}").contains("was killed after"),
            "{ended:#}"
        );
    }

    #[test]
    fn one_that_prints_without_end_is_ended() {
        let dir = directory();
        let program = script(dir.path(), "exec cat /dev/zero");
        let ended = program.run_for(&[], "", PATIENCE, 1 << 20).unwrap_err();
        assert!(
            format!("{ended:#}").contains("more than 1 MiB"),
            "{ended:#}"
        );
    }
}
