//! The state directory: the agent's lock, status, findings and last good configuration.

mod lock;

use crate::config::{AutoNetwork, Document};
use crate::events;
use crate::logging;
use crate::pod;
use crate::policy;
use crate::private;
use crate::reach;
use anyhow::{Context as _, Result};
use netdp_common::layout::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use lock::Lock;

/// Documents last received from the Kubernetes API.
const LAST_API: &str = "last-api.json";

/// Documents of the last good configuration.
const LAST_GOOD: &str = "last-good.json";

/// Networks of the cluster that were last known.
const LAST_NETWORKS: &str = "last-networks.json";

/// Key of the node's keyed hashes.
const SECRET: &str = "secret";

/// Lock held by the running agent.
const LOCK: &str = "lock";

/// All files in this directory except locks.
const FILES: [&str; 18] = [
    "status.json",
    "memory.json",
    LAST_GOOD,
    "fallback.json",
    LAST_API,
    LAST_NETWORKS,
    "shadow.json",
    reach::FILE,
    policy::COUNTS_FILE,
    policy::history::FILE,
    crate::pods::FILE,
    logging::FILE,
    logging::OLDER_FILE,
    events::SOCKET,
    events::LOCK,
    events::FILE,
    crate::nat_log::FILE,
    SECRET,
];

fn secret_from(bytes: [u8; 16]) -> Secret {
    let [a, b] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(half)
    });
    [a, b]
}

/// Number of attempts to take the lock, [`PAUSE`] apart: one second.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// State directory unless `--state-dir` is given.
const DEFAULT: &str = "/run/netdp";

/// State directory in a container with a read-only root and no other writable place: memory that is
/// shared by the containers of a pod and outlives each of them.
const IN_MEMORY: &str = "/dev/shm/netdp";

/// Returns the directory used unless another one is named. Always the same within one container.
pub fn default_path() -> PathBuf {
    PathBuf::from(if pod::is_read_only(Path::new(DEFAULT)) {
        IN_MEMORY
    } else {
        DEFAULT
    })
}

/// Logs that the state ends with the pod, if it does.
pub fn log_if_in_memory(path: &Path) {
    if path == Path::new(IN_MEMORY) {
        log::info!(
            "{DEFAULT} is read-only: the state is kept in {IN_MEMORY}, and lost with the pod"
        );
    }
}

/// Path of a state directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Creates the directory if necessary, and revokes other users' access to its files.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created, or other users could replace its files.
    pub fn open(path: &Path) -> Result<Self> {
        private::directory(path, "--state-dir").context("the state directory")?;
        private::tighten(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Returns the directory at `path` without creating it.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Returns the path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes the lock; `None` if another agent holds it.
    ///
    /// # Errors
    /// Returns an error if the lock file cannot be created.
    pub fn lock(&self) -> Result<Option<Lock>> {
        lock::take(&self.file(LOCK))
    }

    /// Takes the lock with retries, for an agent that starts right after another was killed: a
    /// child process that the killed agent was about to exec holds the lock until the exec.
    ///
    /// # Errors
    /// Returns an error as [`lock`](Self::lock) does.
    pub fn lock_with_retries(&self) -> Result<Option<Lock>> {
        for _ in 0..TRIES {
            if let Some(lock) = self.lock()? {
                return Ok(Some(lock));
            }
            std::thread::sleep(PAUSE);
        }
        self.lock()
    }

    /// Returns the process that holds the lock, if any.
    pub fn lock_holder(&self) -> Option<u32> {
        lock::holder_of(&self.file(LOCK))
    }

    /// Reads the node's secret, or generates one.
    ///
    /// # Errors
    /// Returns an error if the kernel provides no randomness, or the file cannot be written.
    pub fn secret(&self) -> Result<Secret> {
        let path = self.file(SECRET);
        if let Ok(bytes) = private::read(&path)
            && let Ok(bytes) = <[u8; 16]>::try_from(bytes)
        {
            return Ok(secret_from(bytes));
        }
        let mut bytes = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context("reading /dev/urandom, for the node's secret")?;
        let secret = secret_from(bytes);
        self.save_secret(secret)?;
        Ok(secret)
    }

    /// Writes the node's secret for the next agent.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save_secret(&self, secret: Secret) -> Result<()> {
        self.replace(SECRET, |file| {
            file.write_all(&secret[0].to_le_bytes())?;
            file.write_all(&secret[1].to_le_bytes())
        })
    }

    /// Writes a value as JSON atomically: a reader sees the old file or the new one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        // Streamed, not formatted in memory first: with many CIDRs that would be our peak memory
        // usage.
        self.replace(name, |file| Ok(serde_json::to_writer_pretty(file, value)?))
    }

    /// Writes a value as [`write_json`](Self::write_json) does, on one line.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write_compact_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.replace(name, |file| Ok(serde_json::to_writer(file, value)?))
    }

    /// Reads a value that [`write_json`](Self::write_json) wrote.
    ///
    /// # Errors
    /// Returns an error if the file does not exist or cannot be parsed.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let bytes = private::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
    }

    /// Reads a file; `None` if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the file exists and cannot be read.
    pub fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.file(name);
        match private::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Saves the documents of a good configuration.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save_last_good(&self, documents: &[Document]) -> Result<()> {
        self.write(LAST_GOOD, &serde_json::to_vec(documents)?)
    }

    /// Returns the documents of the last good configuration, if there is one.
    pub fn last_good(&self) -> Option<Vec<Document>> {
        let bytes = private::read(&self.file(LAST_GOOD)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Saves the documents that the Kubernetes API contributed to the last good configuration.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save_last_api(&self, documents: &[Document]) -> Result<()> {
        self.write(LAST_API, &serde_json::to_vec(documents)?)
    }

    /// Returns the documents that [`save_last_api`](Self::save_last_api) saved, if any.
    pub fn last_api(&self) -> Option<Vec<Document>> {
        let bytes = private::read(&self.file(LAST_API)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Saves the cluster's networks that are known.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save_last_networks(&self, networks: &[&AutoNetwork]) -> Result<()> {
        self.write(LAST_NETWORKS, &serde_json::to_vec(networks)?)
    }

    /// Returns the networks that [`save_last_networks`](Self::save_last_networks) saved.
    pub fn last_networks(&self) -> Vec<AutoNetwork> {
        let bytes = private::read(&self.file(LAST_NETWORKS)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Removes all files of the agents, including the secret and the lock, and then the directory
    /// if it is empty. Returns whether there was anything besides the lock, which the caller holds.
    ///
    /// # Errors
    /// Returns an error if a file cannot be removed.
    pub fn remove(&self) -> Result<bool> {
        let mut found = false;
        for name in FILES {
            found |= self.remove_file(name)?;
            found |= self.remove_file(&format!(".{name}.new"))?;
        }
        self.remove_file(lock::TURN)?;
        // Last: an agent that starts now finds a directory without another agent's files.
        self.remove_file(LOCK)?;
        // A mount point, as in a pod, stays, and so do other files in the directory.
        let _ = fs::remove_dir(&self.0);
        Ok(found)
    }

    /// Removes a file and reports whether it existed.
    fn remove_file(&self, name: &str) -> Result<bool> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
            Err(err) => Err(err).with_context(|| format!("removing {}", path.display())),
        }
    }

    /// Replaces a file atomically: a reader sees the old one or the new one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replace(name, |file| file.write_all(bytes))
    }

    /// Replaces a file atomically with the output of `write`.
    fn replace(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<()> {
        let (path, new) = (self.file(name), self.file(&format!(".{name}.new")));
        let replace = || {
            let mut file = BufWriter::new(private::create(&new)?);
            write(&mut file)?;
            file.flush()?;
            fs::rename(&new, &path)
        };
        replace().with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::StateDir;
    use crate::config::{Document, Format};

    #[test]
    fn the_lock_is_held_once_and_freed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.lock_holder(), None);
        let lock = state.lock().unwrap();
        assert!(lock.is_some());
        assert!(state.lock().unwrap().is_none());
        assert_eq!(state.lock_holder(), Some(std::process::id()));
        drop(lock);
        assert_eq!(state.lock_holder(), None);
        assert!(state.lock().unwrap().is_some());
    }

    #[test]
    fn the_last_good_configuration_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.last_good(), None);
        let document = Document {
            name: "/etc/config/x".into(),
            text: "192.0.2.0/24\n".into(),
            format: Format::NatRules,
        };
        state
            .save_last_good(std::slice::from_ref(&document))
            .unwrap();
        assert_eq!(state.last_good(), Some(vec![document]));
        // The form that versions before the introduction of formats wrote.
        std::fs::write(
            dir.path().join("last-good.json"),
            r#"[{"name":"c","text":"{}"}]"#,
        )
        .unwrap();
        let format = state.last_good().unwrap()[0].format;
        assert_eq!(format, Format::MasqAgent);
        state.remove().unwrap();
        assert_eq!(state.last_good(), None);
    }

    #[test]
    fn nothing_is_left_once_all_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let lock = state.lock().unwrap();
        assert!(lock.is_some());
        assert!(!state.remove().unwrap(), "nothing but the lock");
        assert!(!path.exists());

        let state = StateDir::open(&path).unwrap();
        state.secret().unwrap();
        state.save_last_good(&[]).unwrap();
        // A leftover as of a crash.
        std::fs::write(path.join(".status.json.new"), "{").unwrap();
        std::fs::write(path.join("other"), "somebody's").unwrap();
        assert!(state.remove().unwrap());
        let left: Vec<_> = std::fs::read_dir(&path).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
