//! The lock of the state directory. It is an flock(2) lock, which any process that can open the
//! file may take, and older versions left the file readable to all: a lock held by another user is
//! ignored.

use crate::private;
use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// File whose lock serializes agents that replace the lock file.
pub(super) const TURN: &str = ".lock.turn";

/// Lock held for the agent's lifetime.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Time to wait for a lock that an ended agent has left to a child process. Children release it on
/// exec: the wait covers the time until that.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// Takes the lock; `None` if another agent holds it.
pub(super) fn take(path: &Path) -> Result<Option<Lock>> {
    let begun = Instant::now();
    loop {
        let file = match try_once(path)? {
            Attempt::Taken(lock) => return Ok(Some(lock)),
            Attempt::Held(file) => file,
            Attempt::Replaced => return Ok(None),
        };
        match holder(&file)? {
            Holder::Agent => return Ok(None),
            Holder::Gone if begun.elapsed() < PATIENCE => std::thread::sleep(POLL),
            Holder::Gone | Holder::Stranger => return replace(path),
        }
    }
}

/// Returns the process that holds the lock, if an agent does.
pub(super) fn holder_of(path: &Path) -> Option<u32> {
    let mut file = private::open(path).ok()?;
    let mut text = String::new();
    (&mut file).take(32).read_to_string(&mut text).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err((file, _)) if holder(&file).is_ok_and(|holder| holder != Holder::Agent) => None,
        Err(_) => text.trim().parse().ok(),
    }
}

enum Attempt {
    Taken(Lock),
    Held(File),
    /// Replaced by another agent between opening and locking.
    Replaced,
}

fn try_once(path: &Path) -> Result<Attempt> {
    let file = private::open_own(path)
        .with_context(|| format!("opening the lock file {}", path.display()))?;
    let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((file, Errno::EWOULDBLOCK)) => return Ok(Attempt::Held(file)),
        Err((_, err)) => return Err(err).with_context(|| format!("locking {}", path.display())),
    };
    let (ours, there) = (file.metadata()?, fs::symlink_metadata(path));
    if there.is_ok_and(|there| (there.dev(), there.ino()) != (ours.dev(), ours.ino())) {
        return Ok(Attempt::Replaced);
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
        .with_context(|| format!("writing the lock file {}", path.display()))?;
    Ok(Attempt::Taken(Lock { _file: file }))
}

/// Replaces a lock file whose lock another user holds. Agents that do so at the same time are
/// serialized by a file that other users never could open.
fn replace(path: &Path) -> Result<Option<Lock>> {
    let turn = path.with_file_name(TURN);
    let file = private::open_own(&turn).with_context(|| format!("opening {}", turn.display()))?;
    let Ok(_turn) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    let holder = match try_once(path)? {
        Attempt::Taken(lock) => return Ok(Some(lock)),
        Attempt::Held(file) => holder(&file)?,
        Attempt::Replaced => return Ok(None),
    };
    let who = match holder {
        Holder::Agent => return Ok(None),
        Holder::Gone => "a process that inherited it",
        Holder::Stranger => "another user's process",
    };
    log::warn!("{who} holds {}: replacing it", path.display());
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    match try_once(path)? {
        Attempt::Taken(lock) => Ok(Some(lock)),
        Attempt::Held(_) | Attempt::Replaced => Ok(None),
    }
}

/// Kind of the process that holds a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A possible agent, or a process that is not visible because it is in another container.
    Agent,
    /// A process that has ended: one of its children, or a process that it passed the file to, has
    /// the lock.
    Gone,
    /// A process of another user.
    Stranger,
}

/// Determines the holder of a file's lock: of several holders the one most likely to be an agent.
fn holder(file: &File) -> Result<Holder> {
    let metadata = file.metadata()?;
    let (major, minor) = (
        nix::sys::stat::major(metadata.dev()),
        nix::sys::stat::minor(metadata.dev()),
    );
    let held = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").context("reading /proc/locks")?;
    let holders: Vec<_> = holders(&locks, &held).map(classify).collect();
    let has = |holder| holders.contains(&holder);
    Ok(if holders.is_empty() || has(Holder::Agent) {
        Holder::Agent
    } else if has(Holder::Gone) {
        Holder::Gone
    } else {
        Holder::Stranger
    })
}

/// Returns the processes that hold a flock(2) lock on a file, from the lines of `/proc/locks`.
fn holders<'a>(locks: &'a str, held: &'a str) -> impl Iterator<Item = u32> + 'a {
    locks.lines().filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid) = (words.next()?, words.nth(2)?);
        let at = words.next()?;
        // A waiting process has an arrow before the kind.
        (kind == "FLOCK" && at == held).then(|| pid.parse().ok())?
    })
}

/// Classifies a process by all of its user ids: in a set-user-ID program of root's, all but one are
/// root's.
fn classify(pid: u32) -> Holder {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return Holder::Gone;
    };
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut ids = ids.unwrap_or_default().split_whitespace();
    if ids.all(|id| id.parse().is_ok_and(private::is_trusted)) {
        Holder::Agent
    } else {
        Holder::Stranger
    }
}

#[cfg(test)]
mod tests {
    use super::holders;

    #[test]
    fn holders_are_told_from_others_and_from_those_who_wait() {
        let locks = "1: FLOCK  ADVISORY  WRITE 77 00:1b:9 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 78 00:1b:9 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 79 00:1b:9 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 80 00:1b:9 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 81 00:1b:91 0 EOF\n";
        assert_eq!(holders(locks, "00:1b:9").collect::<Vec<_>>(), [77, 80]);
    }
}
