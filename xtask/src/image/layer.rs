//! One layer: a tar archive that depends on nothing but its files.

use super::digest;
use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use std::collections::BTreeMap;
use std::io::Write as _;
use tar::{Builder, EntryType, Header};

/// What is at a path of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Directory,
    File { mode: u32, content: Vec<u8> },
    Link(String),
}

/// The files of an image, by path. All belong to root and have the time 0, and
/// they are written in the order of their paths, so that the same files give
/// the same bytes on every machine.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Puts a file, with the directories above it, at a path like
    /// `usr/bin/netdp`.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        let content = content.into();
        self.put(path, Entry::File { mode, content });
    }

    /// Makes a directory, with those above it.
    pub fn directory(&mut self, path: &str) {
        self.put(path, Entry::Directory);
    }

    /// Makes a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.put(path, Entry::Link(to.into()));
    }

    fn put(&mut self, path: &str, entry: Entry) {
        for (slash, _) in path.match_indices('/') {
            self.0
                .entry(path[..slash].into())
                .or_insert(Entry::Directory);
        }
        self.0.insert(path.into(), entry);
    }

    /// The tar archive of these files, packed.
    ///
    /// # Errors
    /// A path is too long for tar.
    pub fn pack(&self) -> Result<Layer> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            append(&mut archive, path, entry).with_context(|| format!("packing {path}"))?;
        }
        let archive = archive.into_inner()?;
        // No name, no time and no operating system in the header.
        let mut gzip = GzBuilder::new()
            .mtime(0)
            .operating_system(255)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&archive)?;
        Ok(Layer {
            diff_id: digest(&archive),
            packed: gzip.finish()?,
        })
    }
}

fn append(archive: &mut Builder<Vec<u8>>, path: &str, entry: &Entry) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match entry {
        Entry::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            archive.append_data(&mut header, format!("{path}/"), &[][..])?;
        }
        Entry::File { mode, content } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content.as_slice())?;
        }
        Entry::Link(to) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, path, to)?;
        }
    }
    Ok(())
}

/// A packed layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The digest of the archive before it was packed.
    pub diff_id: String,
    /// The archive, packed with gzip.
    pub packed: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.file("usr/bin/netdp", 0o755, "program");
        tree.link("ip-masq-agent", "usr/bin/netdp");
        tree.directory("run/netdp");
        tree
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let layer = tree().pack().unwrap();
        let unpacked = flate2::read::GzDecoder::new(layer.packed.as_slice());
        let mut archive = tar::Archive::new(unpacked);
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            paths,
            [
                "ip-masq-agent",
                "run/",
                "run/netdp/",
                "usr/",
                "usr/bin/",
                "usr/bin/netdp"
            ]
        );
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(tree().pack().unwrap().packed, tree().pack().unwrap().packed);
        let mut other = tree();
        other.file("usr/bin/netdp", 0o755, "Program");
        assert_ne!(
            tree().pack().unwrap().diff_id,
            other.pack().unwrap().diff_id
        );
    }
}
