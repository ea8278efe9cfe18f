//! Configuration files: which there are, what is in them, and when they change.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use super::watch::Watcher;
use crate::config::{Diagnostic, Document, MAX_DOCUMENT_BYTES, Rejected};
use crate::misspelling::nearest;

/// How many bytes all files may have together.
const MAX_BYTES: usize = 64 << 20;

/// Entries of a directory that are compared with a name that is not there.
const MAX_SIBLINGS: usize = 1000;

/// Above this similarity a name is taken for a misspelling.
const MIN_SIMILARITY: f64 = 0.9;

/// Reads the documents at `paths`, in their order. A path is a file, or a directory of which every
/// regular file counts, sorted by name, except those that [`is_config_name`] leaves out. What does
/// not exist is no document: see [`absent`].
///
/// # Errors
/// Everything that exists but can't be read, is too large, or is not UTF-8.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Rejected> {
    let mut documents: Vec<Document> = Vec::new();
    let mut bytes = 0;
    let mut errors = Vec::new();
    for path in paths {
        match files_at(path) {
            Ok(files) => {
                for (file, listed) in files {
                    match read_one(&file, listed) {
                        Ok(document) => {
                            bytes += document.as_ref().map_or(0, |it| it.text.len());
                            documents.extend(document);
                        }
                        Err(error) => errors.push(error),
                    }
                    if bytes > MAX_BYTES {
                        let message = format!(
                            "with this file the configuration is larger than {} MiB; give fewer files",
                            MAX_BYTES >> 20
                        );
                        let file = file.display().to_string();
                        errors.push(Diagnostic::whole_file(&file, message));
                        return Err(Rejected { errors });
                    }
                }
            }
            Err(error) => errors.push(unreadable(path, &error)),
        }
    }
    if errors.is_empty() {
        Ok(documents)
    } else {
        Err(Rejected { errors })
    }
}

/// Those of `paths` that do not exist, so that a caller can say so. They are read as soon as they
/// appear.
pub fn absent(paths: &[PathBuf]) -> Vec<&Path> {
    let missing = |path: &&PathBuf| fs::metadata(path).is_err_and(|error| is_absence(&error));
    paths.iter().filter(missing).map(PathBuf::as_path).collect()
}

/// What may have been meant by a path that does not exist: several, or one that is nearly called so.
pub fn meant_by(path: &Path) -> Option<String> {
    let text = path.to_string_lossy();
    let parts: Vec<&str> = text
        .split([',', ':', ' '])
        .filter(|it| !it.is_empty())
        .collect();
    if parts.len() > 1 && parts.iter().all(|part| Path::new(part).exists()) {
        return Some(format!("give each path by itself: {}", parts.join(" and ")));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let entries = fs::read_dir(dir.unwrap_or(Path::new("."))).ok()?;
    let names: Vec<String> = entries
        .take(MAX_SIBLINGS)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let name = path.file_name()?.to_string_lossy();
    let nearest = nearest(&name, names.iter().map(String::as_str), MIN_SIMILARITY)?;
    Some(format!(
        "did you mean {}?",
        path.with_file_name(nearest).display()
    ))
}

/// Whether a file of this name in a configuration directory counts: hidden files are the workings
/// of ConfigMap volumes and editors, and a tilde ends the name of a backup.
pub fn is_config_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && !name.ends_with(b"~")
}

/// Whether a file is in a volume of a ConfigMap: the kubelet's writer keeps a link `..data` beside
/// the files (Kubernetes, `pkg/volume/util/atomic_writer.go`).
pub fn is_in_volume(path: &Path) -> bool {
    let data = path.parent().map(|dir| dir.join("..data"));
    data.is_some_and(|data| data.is_symlink())
}

/// The files that `path` stands for, and whether they were found by listing a directory.
fn files_at(path: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Ok(vec![(path.to_owned(), false)]);
        }
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if is_config_name(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names
        .into_iter()
        .map(|name| (path.join(name), true))
        .collect())
}

/// The document of one file; `None` if there is none any more, or if it was only `listed` and is
/// not a regular file.
fn read_one(path: &Path, listed: bool) -> Result<Option<Document>, Diagnostic> {
    let name = path.display().to_string();
    let file = match open(path) {
        Ok(Some(file)) => file,
        Ok(None) if listed => return Ok(None),
        Ok(None) => {
            let message = "neither a regular file nor a directory; name one of the two";
            return Err(Diagnostic::whole_file(&name, message));
        }
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    // One byte more than allowed tells a file of the greatest size from a larger one.
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    match file.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Document::from_bytes(name, bytes).map(Some),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// Opens a regular file; `None` for anything else, which might block its opener or never end.
fn open(path: &Path) -> io::Result<Option<File>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    // The file may have become a FIFO since.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

fn is_absence(error: &io::Error) -> bool {
    // A path below a file is as absent as one below nothing.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let name = path.display().to_string();
    Diagnostic::whole_file(&name, format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests;
