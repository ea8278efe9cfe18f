//! The log as a file, with rotation.

use super::record::Record;
use crate::private;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Conditions of a file's rotation, and the number of files that are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    /// Size, in bytes.
    pub size: u64,
    /// Age.
    pub age: Duration,
    /// Number of rotated files.
    pub keep: usize,
}

/// End of the names of rotated files once they are compressed.
const COMPRESSED: &str = ".gz";

/// End of the name of a file that is being compressed.
const UNFINISHED: &str = ".gz.new";

/// Bytes at the end of a file in which its last line is looked for; lines are much shorter.
const TAIL: u64 = 64 * 1024;

/// The file that is written.
struct Open {
    file: File,
    /// Bytes of complete records.
    size: u64,
    /// Time of its begin.
    born: SystemTime,
}

/// The log as a file.
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    /// Number of lines that were written and may not be on the disk.
    unsaved: u64,
    /// The failure to store some of them in a file that is not open any more.
    failure: Option<io::Error>,
}

impl LogFile {
    /// Returns the log at a path; nothing is opened yet.
    pub const fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self {
            path,
            rotation,
            open: None,
            unsaved: 0,
            failure: None,
        }
    }

    /// Writes lines: all of them, or none.
    ///
    /// # Errors
    /// Returns an error if the file can't be opened or written. What was written is removed again, now or
    /// before the next lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let is_there = self.open.as_ref().is_some_and(|it| it.is_at(&self.path));
        if !is_there && let Some(elsewhere) = self.open.take() {
            // Whoever has moved it away has all of it.
            match elsewhere.file.sync_data() {
                Ok(()) => self.unsaved = 0,
                Err(err) => self.failure = Some(err),
            }
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(open(&self.path)?),
        };
        let written = open.file.write_all(lines);
        if let Err(err) = written {
            // Opening it again removes what may be left.
            let _ = open.file.set_len(open.size);
            self.open = None;
            return Err(err);
        }
        open.size += lines.len() as u64;
        self.unsaved += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        Ok(())
    }

    /// Has the disk store what was written.
    ///
    /// # Errors
    /// Returns an error, and the number of lines that the disk may lack for good: the kernel does not write
    /// them again.
    pub fn sync(&mut self) -> Result<(), (u64, io::Error)> {
        if self.is_stored() {
            return Ok(());
        }
        let stored = match (self.failure.take(), &self.open) {
            (Some(err), _) => Err(err),
            (None, Some(open)) => open.file.sync_data(),
            (None, None) => return Ok(()),
        };
        let lines = std::mem::take(&mut self.unsaved);
        stored.map_err(|err| (lines, err))
    }

    /// Reports whether the disk has all that was written.
    pub const fn is_stored(&self) -> bool {
        self.unsaved == 0
    }

    /// Reports whether the file is large or old enough for another one.
    pub fn is_rotation_due(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let age = open.born.elapsed().unwrap_or_default();
            open.size != 0 && (open.size >= self.rotation.size || age >= self.rotation.age)
        })
    }

    /// Begins another file if this one is large or old enough. What is in it is to be stored before.
    ///
    /// # Errors
    /// Returns an error if it can't be renamed; it is written on then.
    pub fn rotate_if_due(&mut self) -> io::Result<()> {
        if !self.is_rotation_due() {
            return Ok(());
        }
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ");
        let mut name = self.path.clone().into_os_string();
        name.push(format!("-{time}"));
        fs::rename(&self.path, &name)?;
        self.open = None;
        tidy(self.path.clone(), self.rotation.keep);
        Ok(())
    }
}

impl Open {
    /// Reports whether the file is still the one at a path.
    fn is_at(&self, path: &Path) -> bool {
        let own = self.file.metadata().map(|it| (it.dev(), it.ino()));
        let there = fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }
}

/// Opens the file at a path, or creates it, and removes half a line at its end.
fn open(path: &Path) -> io::Result<Open> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    sync_dir(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !private::is_trusted(metadata.uid()) {
        let text = format!("{}: no regular file of root's", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let born = metadata.created().or_else(|_| metadata.modified());
    let size = complete(&file, metadata.len())?;
    if size < metadata.len() {
        file.set_len(size)?;
    }
    Ok(Open {
        file,
        size,
        born: born.unwrap_or_else(|_| SystemTime::now()),
    })
}

/// Has the disk store the name of a file.
fn sync_dir(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => match File::open(dir)?.sync_all() {
            // The filesystem stores names when it likes.
            Err(err) if is_unsupported(&err) => Ok(()),
            stored => stored,
        },
        None => Ok(()),
    }
}

fn is_unsupported(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
}

/// Returns the bytes up to the end of the last complete line.
fn complete(mut file: &File, size: u64) -> io::Result<u64> {
    let mut end = size;
    while end > 0 {
        let begin = end.saturating_sub(TAIL);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(begin))?;
        file.take(end - begin).read_to_end(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// Compresses rotated files and removes the oldest, on a thread of its own: a file takes seconds.
pub(super) fn tidy(path: PathBuf, keep: usize) {
    let spawned = std::thread::Builder::new()
        .name("netdp-log-gz".into())
        .spawn(move || {
            if let Err(err) = compress_all(&path, keep) {
                log::warn!("rotated files of {}: {err}", path.display());
            }
        });
    if let Err(err) = spawned {
        log::warn!("rotated files stay uncompressed: starting a thread: {err}");
    }
}

fn compress_all(path: &Path, keep: usize) -> io::Result<()> {
    // Two at once would write and remove each other's files.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for rotated in rotated(path)? {
        if !has_end(&rotated, COMPRESSED) {
            compress(&rotated)?;
        }
    }
    let all = rotated(path)?;
    for old in all.iter().take(all.len().saturating_sub(keep)) {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// Compresses a file: there is the whole old one, or the whole new one.
fn compress(path: &Path) -> io::Result<()> {
    let with = |end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let (new, compressed) = (with(UNFINISHED), with(COMPRESSED));
    let mut out = GzEncoder::new(private::create(&new)?, Compression::default());
    io::copy(&mut private::open(path)?, &mut out)?;
    out.finish()?.sync_all()?;
    fs::rename(&new, &compressed)?;
    sync_dir(&compressed)?;
    match fs::remove_file(path) {
        // Another thread has done the same.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn has_end(path: &Path, end: &str) -> bool {
    path.as_os_str()
        .as_encoded_bytes()
        .ends_with(end.as_bytes())
}

/// Returns the rotated files of a log, the oldest first. Of a file that is compressed already, but not
/// removed yet, there is one.
///
/// # Errors
/// Returns an error if the directory can't be listed.
pub(crate) fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut begin = name.as_encoded_bytes().to_vec();
    begin.push(b'-');
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(&begin) && !has_end(&entry.path(), UNFINISHED) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup_by(|later, earlier| has_end(later, COMPRESSED) && later.starts_with_text(earlier));
    Ok(found)
}

/// Comparison of paths as text.
trait StartsWithText {
    fn starts_with_text(&self, begin: &Path) -> bool;
}

impl StartsWithText for PathBuf {
    fn starts_with_text(&self, begin: &Path) -> bool {
        let bytes = self.as_os_str().as_encoded_bytes();
        bytes.starts_with(begin.as_os_str().as_encoded_bytes())
    }
}

/// Opens a file of the log for reading, compressed or not.
///
/// # Errors
/// Returns an error if it can't be opened.
pub(crate) fn reader(path: &Path) -> io::Result<Box<dyn io::BufRead>> {
    let file = private::open(path)?;
    Ok(if has_end(path, COMPRESSED) {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    })
}

/// Returns the number, the boot and the latest time of the last record of a log; `None` if there is no
/// record.
pub(super) fn last(path: &Path) -> Option<(u64, String, u64)> {
    let mut files = rotated(path).unwrap_or_default();
    files.push(path.to_owned());
    files.iter().rev().find_map(|path| {
        let mut lines = Vec::new();
        if has_end(path, COMPRESSED) {
            // Rotated files are read whole, which happens where an agent ended right after a rotation.
            lines.extend(reader(path).ok()?.lines().map_while(Result::ok).last());
        } else {
            let mut file = private::open(path).ok()?;
            let size = file.metadata().ok()?.len();
            file.seek(SeekFrom::Start(size.saturating_sub(TAIL))).ok()?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes).ok()?;
            let text = String::from_utf8_lossy(&bytes);
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.iter().rev().find_map(|line| {
            let record: Record<'_> = serde_json::from_str(line).ok()?;
            let time = record.latest()?;
            Some((record.seq, record.boot.into_owned(), time))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROTATION: Rotation = Rotation {
        size: 40,
        age: Duration::from_secs(3600),
        keep: 2,
    };

    fn text(path: &Path) -> String {
        let mut text = String::new();
        reader(path).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn half_a_line_is_removed_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nat.log");
        fs::write(&path, format!("one\n{}", "x".repeat(200_000))).unwrap();
        let mut log = LogFile::new(path.clone(), ROTATION);
        log.write(b"two\n").unwrap();
        assert_eq!(text(&path), "one\ntwo\n");
        fs::write(&path, "half").unwrap();
        LogFile::new(path.clone(), ROTATION)
            .write(b"one\n")
            .unwrap();
        assert_eq!(text(&path), "one\n");
    }

    #[test]
    fn files_are_rotated_compressed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nat.log");
        let mut log = LogFile::new(path.clone(), ROTATION);
        for n in 0..4 {
            log.write(format!("{n}{}\n", "x".repeat(50)).as_bytes())
                .unwrap();
            log.rotate_if_due().unwrap();
        }
        log.write(b"last\n").unwrap();
        // What the threads do, at once.
        let tidy = || compress_all(&path, ROTATION.keep);
        while tidy().is_err() {}
        let rotated = rotated(&path).unwrap();
        let firsts: Vec<_> = rotated.iter().map(|it| text(it)[..1].to_owned()).collect();
        assert_eq!(firsts, ["2", "3"]);
        assert!(rotated.iter().all(|it| has_end(it, COMPRESSED)));
        assert_eq!(text(&path), "last\n");
    }

    #[test]
    fn what_a_power_cut_may_take_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nat.log");
        let mut log = LogFile::new(path, ROTATION);
        log.write(b"one\ntwo\n").unwrap();
        log.write(b"three\n").unwrap();
        assert_eq!(log.unsaved, 3);
        log.sync().unwrap();
        assert!(log.is_stored());
        // A device that can store nothing.
        log.write(b"four\n").unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        log.open.as_mut().unwrap().file = File::from(std::os::fd::OwnedFd::from(reader));
        let (lost, _) = log.sync().unwrap_err();
        assert_eq!(lost, 1);
        // It loses its name as well, so that another file is opened before the disk is asked.
        log.open = None;
        log.write(b"five\nsix\n").unwrap();
        assert!(!log.is_stored() && log.failure.is_none());
        let (reader, _writer) = io::pipe().unwrap();
        log.open.as_mut().unwrap().file = File::from(std::os::fd::OwnedFd::from(reader));
        fs::remove_file(&log.path).unwrap();
        log.write(b"seven\n").unwrap();
        let (lost, _) = log.sync().unwrap_err();
        assert_eq!(lost, 3);
        assert!(log.is_stored());
    }

    #[test]
    fn a_file_that_was_moved_away_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nat.log");
        let mut log = LogFile::new(path.clone(), ROTATION);
        log.write(b"one\n").unwrap();
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        log.write(b"two\n").unwrap();
        assert_eq!(text(&path), "two\n");
    }

    #[test]
    fn others_files_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nat.log");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(LogFile::new(path.clone(), ROTATION).write(b"x\n").is_err());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(LogFile::new(path, ROTATION).write(b"x\n").is_err());
    }
}
