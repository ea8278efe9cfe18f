//! The state directory: one agent's lock, status, findings and last good configuration.

mod lock;

use crate::config::Document;
use crate::pod;
use crate::private;
use anyhow::{Context as _, Result};
use netdp_common::siphash;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use lock::Lock;

/// The documents that the Kubernetes API had.
const LAST_API: &str = "last-api.json";

/// The last good configuration.
const LAST_GOOD: &str = "last-good.json";

/// What hashes are keyed by.
const SECRET: &str = "secret";

/// What the agent that runs holds.
const LOCK: &str = "lock";

/// All that is written here but for locks.
const FILES: [&str; 7] = [
    "status.json",
    "memory.json",
    LAST_GOOD,
    "fallback.json",
    LAST_API,
    "shadow.json",
    SECRET,
];

fn secret_from(bytes: [u8; 16]) -> siphash::Key {
    let [a, b] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(half)
    });
    [a, b]
}

/// How long a lock is waited for: a second.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Where the state is unless `--state-dir` says otherwise.
const DEFAULT: &str = "/run/netdp";

/// The same in a container whose root can only be read, and which was given no other place: the
/// memory that a pod's containers share, which outlives each of them.
const IN_MEMORY: &str = "/dev/shm/netdp";

/// The directory that is used unless another one is named: in one container always the same.
pub fn default_path() -> PathBuf {
    PathBuf::from(if pod::is_read_only(Path::new(DEFAULT)) {
        IN_MEMORY
    } else {
        DEFAULT
    })
}

/// Says so where the state ends with the pod.
pub fn tell_of_memory(path: &Path) {
    if path == Path::new(IN_MEMORY) {
        log::info!(
            "{DEFAULT} can only be read: the state is kept in {IN_MEMORY}, as long as the pod lives"
        );
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory if need be, and takes others' rights to what is in it.
    ///
    /// # Errors
    /// It can't be made, or others could swap what is in it.
    pub fn open(path: &Path) -> Result<Self> {
        private::directory(path, "--state-dir").context("the state directory")?;
        private::tighten(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The directory, which may not exist.
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
    /// The lock file can't be made.
    pub fn lock(&self) -> Result<Option<Lock>> {
        lock::take(&self.file(LOCK))
    }

    /// The same, for an agent that starts right after another was killed: what that one was about to
    /// run has its lock until it runs.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_soon(&self) -> Result<Option<Lock>> {
        for _ in 0..TRIES {
            if let Some(lock) = self.lock()? {
                return Ok(Some(lock));
            }
            std::thread::sleep(PAUSE);
        }
        self.lock()
    }

    /// The process that holds the lock, if one does.
    pub fn owner(&self) -> Option<u32> {
        lock::owner(&self.file(LOCK))
    }

    /// Reads the node's secret, or makes one.
    ///
    /// # Errors
    /// There is no randomness, or the file can't be written.
    pub fn secret(&self) -> Result<siphash::Key> {
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

    /// Writes the node's secret, for the next agent.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_secret(&self, secret: siphash::Key) -> Result<()> {
        self.replace(SECRET, |file| {
            file.write_all(&secret[0].to_le_bytes())?;
            file.write_all(&secret[1].to_le_bytes())
        })
    }

    /// Writes a value as JSON, whole: a reader sees the old file or the new one.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        // Not as a text first: with many CIDRs that would be the most that we ever hold.
        self.replace(name, |file| Ok(serde_json::to_writer_pretty(file, value)?))
    }

    /// Reads a value that [`write_json`](Self::write_json) wrote.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let bytes = private::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.file(name);
        match private::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Remembers the documents of a good configuration.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_last_good(&self, documents: &[Document]) -> Result<()> {
        self.write(LAST_GOOD, &serde_json::to_vec(documents)?)
    }

    /// The documents of the last good configuration, if there was one.
    pub fn last_good(&self) -> Option<Vec<Document>> {
        let bytes = private::read(&self.file(LAST_GOOD)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Remembers what the Kubernetes API had when the last good configuration was made with it.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_last_api(&self, documents: &[Document]) -> Result<()> {
        self.write(LAST_API, &serde_json::to_vec(documents)?)
    }

    /// What [`save_last_api`](Self::save_last_api) wrote, if it did.
    pub fn last_api(&self) -> Option<Vec<Document>> {
        let bytes = private::read(&self.file(LAST_API)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Removes all that agents keep here, the secret and the lock too, and the directory once it is
    /// empty. Tells whether there was more than the lock, which whoever calls this holds.
    ///
    /// # Errors
    /// A file can't be removed.
    pub fn remove(&self) -> Result<bool> {
        let mut found = false;
        for name in FILES {
            found |= self.remove_file(name)?;
            found |= self.remove_file(&format!(".{name}.new"))?;
        }
        self.remove_file(lock::TURN)?;
        // At last: an agent that begins now has a directory without another's files.
        self.remove_file(LOCK)?;
        // A mount point, as in a pod, stays, and so does what others have put there.
        let _ = fs::remove_dir(&self.0);
        Ok(found)
    }

    /// Removes a file; whether it was there.
    fn remove_file(&self, name: &str) -> Result<bool> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
            Err(err) => Err(err).with_context(|| format!("removing {}", path.display())),
        }
    }

    /// Replaces a file whole: a reader sees the old one or the new one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replace(name, |file| file.write_all(bytes))
    }

    /// Replaces a file whole by what `write` writes.
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
        assert_eq!(state.owner(), None);
        let lock = state.lock().unwrap();
        assert!(lock.is_some());
        assert!(state.lock().unwrap().is_none());
        assert_eq!(state.owner(), Some(std::process::id()));
        drop(lock);
        assert_eq!(state.owner(), None);
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
        // As versions before there were formats have written it.
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
        // As a crash leaves it.
        std::fs::write(path.join(".status.json.new"), "{").unwrap();
        std::fs::write(path.join("other"), "somebody's").unwrap();
        assert!(state.remove().unwrap());
        let left: Vec<_> = std::fs::read_dir(&path).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
