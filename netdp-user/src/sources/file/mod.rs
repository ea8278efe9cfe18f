//! Configuration files: discovery and reading.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(crate) use super::watch::Watcher;
use crate::config::{Diagnostic, Document, MAX_DOCUMENT_BYTES, Rejected};
use crate::misspelling::nearest;

/// Limit of the total size of all files, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// Limit of directory entries that are compared with a missing name.
const MAX_SIBLINGS: usize = 1000;

/// Similarity above which a name counts as a misspelling.
const MIN_SIMILARITY: f64 = 0.9;

/// Reads the documents at `paths`, in their order. A path is a file, or a directory whose regular
/// files are all read, sorted by name, except those that [`is_config_name`] excludes. A missing
/// path yields no document: see [`missing`].
///
/// # Errors
/// Returns errors for everything that exists but cannot be read, is too large, or is not UTF-8.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Document>, Rejected> {
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

/// Returns those of `paths` that do not exist, so that a caller can report them. They are read as
/// soon as they appear.
pub(crate) fn missing(paths: &[PathBuf]) -> Vec<&Path> {
    let missing = |path: &&PathBuf| fs::metadata(path).is_err_and(|error| is_absence(&error));
    paths.iter().filter(missing).map(PathBuf::as_path).collect()
}

/// Returns a suggestion for a path that does not exist: it lists several paths, or has a similar
/// name.
pub(crate) fn suggest(path: &Path) -> Option<String> {
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

/// Reports whether a file of this name in a configuration directory is read: hidden files are
/// internal to ConfigMap volumes and editors, and a trailing tilde marks a backup.
pub(crate) fn is_config_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && !name.ends_with(b"~")
}

/// Reports whether a file is in a ConfigMap volume: the kubelet's writer keeps a link `..data`
/// beside the files (Kubernetes, `pkg/volume/util/atomic_writer.go`).
pub(crate) fn is_in_volume(path: &Path) -> bool {
    let data = path.parent().map(|dir| dir.join("..data"));
    data.is_some_and(|data| data.is_symlink())
}

/// Returns the files that `path` stands for, and whether they were found by listing a directory.
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

/// Reads the document of one file; `None` if the file has vanished, or if it was only `listed` and
/// is not a regular file.
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
    // One byte beyond the limit distinguishes a file of the maximum size from a larger one.
    let limit = MAX_DOCUMENT_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    match file.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Document::from_bytes(name, bytes).map(Some),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// Opens a regular file; `None` for anything else, which might block on open or never end.
fn open(path: &Path) -> io::Result<Option<File>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    // The file may have been replaced by a FIFO since.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

fn is_absence(error: &io::Error) -> bool {
    // A path below a regular file does not exist either.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let name = path.display().to_string();
    Diagnostic::whole_file(&name, format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests;
