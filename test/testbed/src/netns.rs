//! Network namespaces.

use super::names::{self, NETNS_DIR};
use super::process::{Running, output, wait_for, wait_some};
use super::tracking;
use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Timeout for a listener to appear, and for a port to become free.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network namespace, known to `ip netns` by its [name](Self::name).
///
/// Clones refer to the same namespace. Dropping the last one kills the processes in it and removes
/// it, unless it is [borrowed](Self::borrow).
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
    borrowed: bool,
}

impl Inner {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering the namespace {}", self.name))?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Netns {
    /// Creates a namespace with its loopback up, IPv6 addresses usable at once (no duplicate
    /// address detection), and no reverse path filter.
    pub fn new(role: &str) -> Result<Self> {
        names::require_root("a network namespace")?;
        let name = names::unique(role);
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NETNS_DIR).join(&name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let ns = Self(Arc::new(Inner {
            name,
            path,
            file,
            borrowed: false,
        }));
        for key in [
            "net.ipv6.conf.all.accept_dad",
            "net.ipv6.conf.default.accept_dad",
            "net.ipv6.conf.all.accept_ra",
            "net.ipv6.conf.default.accept_ra",
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.default.rp_filter",
        ] {
            ns.sysctl(key, "0")?;
        }
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Refers to a namespace of another program by its file. Nothing in it is changed and it is not
    /// removed. `name` is for messages.
    pub fn borrow(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(Arc::new(Inner {
            name: name.into(),
            path: path.into(),
            file,
            borrowed: true,
        })))
    }

    /// Returns its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns its file, for programs that take a namespace by path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.0.path.clone()
    }

    /// Returns a command whose process will run in this namespace. It has the same mounts as its
    /// parent, /sys/fs/bpf included, which `ip netns exec` would hide.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let inner = Arc::clone(&self.0);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call; it takes no lock and
        // allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(setns(&inner.file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Runs a program in the namespace to completion and returns its standard output. The error
    /// names the namespace and the command line and contains the output.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        output(&mut self.command_of(argv)?).with_context(|| format!("in {}", self.name()))
    }

    /// Starts a program in the namespace. Dropping the guard kills it.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Running> {
        Running::start(self.command_of(argv)?).with_context(|| format!("in {}", self.name()))
    }

    fn command_of<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Command> {
        let (program, arguments) = argv.split_first().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(arguments);
        Ok(command)
    }

    /// Runs `ip` in the namespace; `line` is split at white space.
    pub fn ip(&self, line: &str) -> Result<String> {
        let argv: Vec<&str> = std::iter::once("ip")
            .chain(line.split_whitespace())
            .collect();
        self.run(&argv)
    }

    /// Runs `work` on a new thread inside the namespace. Sockets that it opens belong to the
    /// namespace, wherever they are used later.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.enter(work)
    }

    /// Opens a socket on a given port in the namespace, with retries. A port that was just released
    /// may be in use a little longer: a child that another thread is starting holds this process's
    /// sockets until exec.
    pub fn open<T: Send>(&self, open: impl Fn() -> io::Result<T> + Send + Sync) -> Result<T> {
        let opened = self.enter(|| {
            wait_some(PATIENCE, "the port", || match open() {
                Err(error) if error.kind() == ErrorKind::AddrInUse => None,
                done => Some(done),
            })
        })?;
        Ok(opened??)
    }

    /// Sets a sysctl, for example `net.ipv4.ip_forward`. Dots are separators, so an interface name
    /// with a dot is not supported.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("setting {key}={value} in {}", self.name()))
    }

    /// Enables forwarding in this namespace for both families.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// Waits until a socket in the namespace listens on the TCP port.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let filter = format!("sport = :{port}");
        wait_for(
            PATIENCE,
            &format!("a listener on TCP port {port} in {}", self.name()),
            || {
                self.run(&["ss", "-Hltn", &filter])
                    .is_ok_and(|out| !out.is_empty())
            },
        )
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.borrowed {
            return;
        }
        // libtest prints it for a failed test.
        if let Ok(Some(full)) = self.enter(tracking::was_full) {
            eprintln!("in {}: {full}", self.name);
        }
        names::remove_netns(&self.name);
    }
}
