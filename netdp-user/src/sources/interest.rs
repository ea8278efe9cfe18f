//! Selection of the file system changes that can affect the result of [`read`](super::file::read).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind};

use super::file::is_config_name;

/// Limit of symbolic links in one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// The directories to watch for some paths, and the relevant entries in them. All paths are
/// absolute and, except for their last component, free of symbolic links.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// Directories to watch, not recursively. Their own removal or renaming is relevant, too.
    pub dirs: BTreeSet<PathBuf>,
    /// Relevant entries: the files, each symbolic link on the way to them, and for a path that ends
    /// early, the missing entry.
    entries: HashSet<PathBuf>,
    /// Directories in which every configuration file is relevant.
    whole: HashSet<PathBuf>,
}

impl Interest {
    /// Resolves `paths` in their current state.
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let mut interest = Self::default();
        for path in paths {
            let Some(dir) = interest.resolve(path) else {
                continue;
            };
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| is_config_name(&entry.file_name())) {
                // In a ConfigMap volume this leads through `..data`, and swapping that link is the
                // change.
                if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    interest.resolve(&entry.path());
                }
            }
            interest.dirs.insert(dir.clone());
            interest.whole.insert(dir);
        }
        interest
    }

    /// Walks along `path`, recording what the walk depends on; returns the directory that it leads
    /// to, if it is one.
    ///
    /// Real directories on the way are not watched for renaming: that is rare, and those near the
    /// root are busy. The resync detects it.
    fn resolve(&mut self, path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let mut rest: VecDeque<OsString> = components(&path);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let entry = here.join(name);
            let kind = fs::symlink_metadata(&entry).map(|metadata| metadata.file_type());
            if let Ok(kind) = kind
                && kind.is_dir()
            {
                here = entry;
                continue;
            }
            self.dirs.insert(here.clone());
            self.entries.insert(entry.clone());
            // Missing, or a regular file, where the path ends.
            if !kind.is_ok_and(|kind| kind.is_symlink()) {
                return None;
            }
            links += 1;
            let target = fs::read_link(&entry).ok()?;
            if links > MAX_LINKS {
                return None;
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for name in components(&target).into_iter().rev() {
                rest.push_front(name);
            }
        }
        Some(here)
    }

    /// Reports whether `event` may have changed the content of the paths.
    ///
    /// A write is relevant when the writer closes the file: before that, the file may be
    /// incomplete.
    pub(crate) fn concerns(&self, event: &Event) -> bool {
        let kept = match event.kind {
            EventKind::Create(_) | EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => true,
            // These include our own reads.
            _ => return event.need_rescan(),
        };
        event.paths.iter().any(|path| {
            let in_whole = || {
                let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                    return false;
                };
                self.whole.contains(dir) && is_config_name(name)
            };
            self.entries.contains(path) || in_whole() || (kept && self.dirs.contains(path))
        })
    }
}

/// Returns the components of `path` without the root and `.`.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind, RenameMode};

    use super::*;

    fn event(kind: EventKind, path: PathBuf) -> Event {
        Event::new(kind).add_path(path)
    }

    #[test]
    fn only_what_matters_concerns() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let paths = [root.join("dir"), root.join("file"), root.join("a/b/c")];
        let interest = Interest::of(&paths);
        assert_eq!(
            interest.dirs,
            BTreeSet::from([root.clone(), root.join("dir")])
        );

        let create = EventKind::Create(CreateKind::File);
        let close = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let remove = EventKind::Remove(RemoveKind::Folder);
        let rename = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let metadata = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        for (kind, path, expected) in [
            (create, "dir/x", true),
            (close, "dir/x", true),
            (rename, "dir/x", true),
            (metadata, "dir/x", true),
            (create, "dir/.x.swp", false),
            (close, "dir/x~", false),
            (close, "file", true),
            (remove, "file", true),
            (close, "other", false),
            (remove, "dir", true),
            (rename, "dir", true),
            (create, "a", true),
            (create, "b", false),
            // Reads, and unfinished writes.
            (
                EventKind::Access(AccessKind::Open(AccessMode::Any)),
                "file",
                false,
            ),
            (
                EventKind::Access(AccessKind::Close(AccessMode::Read)),
                "file",
                false,
            ),
            (
                EventKind::Modify(ModifyKind::Data(DataChange::Any)),
                "file",
                false,
            ),
        ] {
            let seen = interest.concerns(&event(kind, root.join(path)));
            assert_eq!(seen, expected, "{kind:?} {path}");
        }
        let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(interest.concerns(&lost));
    }

    #[test]
    fn every_link_on_the_way_is_watched() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        for dir in ["etc", "mnt/real", "data/..v1"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        symlink("../mnt/link", root.join("etc/config")).unwrap();
        symlink(root.join("mnt/real"), root.join("mnt/link")).unwrap();
        symlink("../../data/..data/file", root.join("mnt/real/file")).unwrap();
        symlink("..v1", root.join("data/..data")).unwrap();
        fs::write(root.join("data/..v1/file"), "").unwrap();

        let entries = |interest: &Interest| -> BTreeSet<PathBuf> {
            let relative = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_owned();
            interest.entries.iter().map(relative).collect()
        };
        let expected = [
            "data/..data",
            "data/..v1/file",
            "etc/config",
            "mnt/link",
            "mnt/real/file",
        ];
        let expected: BTreeSet<_> = expected.into_iter().map(PathBuf::from).collect();
        let by_file = Interest::of(&[root.join("etc/config/file")]);
        assert_eq!(entries(&by_file), expected);
        assert!(by_file.whole.is_empty());
        let by_dir = Interest::of(&[root.join("etc/./config")]);
        assert_eq!(entries(&by_dir), expected);
        assert_eq!(by_dir.whole, HashSet::from([root.join("mnt/real")]));

        symlink("loop", root.join("loop")).unwrap();
        let circle = Interest::of(&[root.join("loop/x")]);
        assert_eq!(entries(&circle), BTreeSet::from([PathBuf::from("loop")]));
    }
}
