//! The latest messages of the agent in the state directory, each a JSON object. A thread writes them:
//! whoever logs never waits for a disk.

use crate::private;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Name of the file with the latest messages.
pub(crate) const FILE: &str = "log.jsonl";

/// Name of the file with those before them.
pub(crate) const OLDER_FILE: &str = "log-older.jsonl";

/// Size in bytes at which a file becomes the older one.
const LARGEST: u64 = 256 << 10;

/// Messages that wait to be written; further ones are on standard error only.
const WAITING: usize = 1024;

/// The two files.
#[derive(Debug)]
struct Files {
    file: File,
    size: u64,
    path: PathBuf,
    older: PathBuf,
}

/// Handle of the thread that writes.
#[derive(Debug)]
pub(super) struct Kept {
    sender: SyncSender<String>,
    files: Arc<Mutex<Files>>,
}

impl Kept {
    /// Opens the files, and starts the thread.
    pub(super) fn start(state_dir: &StateDir) -> Result<Self> {
        let files = Files::open(state_dir.file(FILE), state_dir.file(OLDER_FILE))?;
        let files = Arc::new(Mutex::new(files));
        let (sender, lines) = sync_channel(WAITING);
        let written = Arc::clone(&files);
        std::thread::Builder::new()
            .name("netdp-log".into())
            .spawn(move || write_all(&lines, &written))
            .context("starting the thread that keeps log messages")?;
        Ok(Self { sender, files })
    }

    /// Has a line written, unless too many wait.
    pub(super) fn send(&self, line: String) {
        let _ = self.sender.try_send(line);
    }

    /// Writes a line at once, for a process that ends, unless the file is being written.
    pub(super) fn write_now(&self, line: &str) {
        if let Ok(mut files) = self.files.try_lock() {
            files.write(line);
        }
    }
}

fn write_all(lines: &Receiver<String>, files: &Mutex<Files>) {
    while let Ok(line) = lines.recv() {
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        files.write(&line);
    }
}

impl Files {
    fn open(path: PathBuf, older: PathBuf) -> Result<Self> {
        let mut file =
            private::open_own(&path).with_context(|| format!("opening {}", path.display()))?;
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            size,
            path,
            older,
        })
    }

    /// Writes a line. A full disk loses it here; standard error has it.
    fn write(&mut self, line: &str) {
        let added = line.len() as u64;
        if self.size + added > LARGEST && self.size > 0 {
            let renamed = fs::rename(&self.path, &self.older);
            let anew = renamed.and_then(|()| {
                private::create(&self.path).inspect_err(|_| {
                    // Otherwise what is kept would be under the other name, and be emptied below.
                    let _ = fs::rename(&self.older, &self.path);
                })
            });
            if let Ok(file) = anew {
                (self.file, self.size) = (file, 0);
            } else if self.file.set_len(0).is_ok() && self.file.rewind().is_ok() {
                self.size = 0;
            }
        }
        if self.file.write_all(line.as_bytes()).is_ok() {
            self.size += added;
        }
    }
}

/// Returns the kept messages, the oldest first.
///
/// # Errors
/// Returns an error if there are none, or they can't be read.
pub(crate) fn latest(state_dir: &StateDir) -> Result<String> {
    let read = |name: &str| -> Result<String> {
        let path = state_dir.file(name);
        let mut bytes = Vec::new();
        private::open(&path)
            .and_then(|file| file.take(2 * LARGEST).read_to_end(&mut bytes))
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let older = read(OLDER_FILE).unwrap_or_default();
    Ok(older + &read(FILE)?)
}

#[cfg(test)]
mod tests {
    use super::{FILE, Files, LARGEST, OLDER_FILE, latest};
    use crate::state_dir::StateDir;

    #[test]
    fn the_latest_messages_stay_within_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(latest(&state).is_err(), "there is no file yet");
        let open = || Files::open(state.file(FILE), state.file(OLDER_FILE)).unwrap();
        let mut files = open();
        for number in 0..20_000 {
            files.write(&format!("message number {number:08} of many\n"));
        }
        drop(files);
        // The next agent goes on.
        open().write("the end\n");
        let kept = latest(&state).unwrap();
        assert!(kept.len() as u64 <= 2 * LARGEST + 64, "{}", kept.len());
        assert!(kept.len() as u64 > LARGEST, "{}", kept.len());
        assert!(kept.ends_with("message number 00019999 of many\nthe end\n"));
        let numbers: Vec<u32> = kept
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse().ok())
            .collect();
        assert!(numbers.is_sorted() && numbers.windows(2).all(|two| two[1] == two[0] + 1));
    }

    #[test]
    fn only_the_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let mut files = Files::open(state.file(FILE), state.file(OLDER_FILE)).unwrap();
        for _ in 0..3 {
            files.write(&("x".repeat(200 << 10) + "\n"));
        }
        for name in [FILE, OLDER_FILE] {
            let mode = std::fs::metadata(state.file(name)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
        }
    }
}
