//! A directory of configuration that changes the way a ConfigMap volume does.

use super::workdir::WorkDir;
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The key of the ConfigMap, and so the file's name in the volume.
const KEY: &str = "ip-masq-agent";

/// A mounted ConfigMap: `ip-masq-agent` links to `..data/ip-masq-agent`, and
/// `..data` to a directory that is never changed but replaced.
#[derive(Debug)]
pub struct ConfigVolume {
    dir: WorkDir,
    version: u32,
}

impl ConfigVolume {
    /// A volume with `content` in its only file.
    pub fn new(content: &str) -> Result<Self> {
        let mut volume = Self {
            dir: WorkDir::new("config")?,
            version: 0,
        };
        volume.write(content)?;
        symlink(Path::new("..data").join(KEY), volume.file())?;
        Ok(volume)
    }

    /// The directory, for `--config`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file in it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path().join(KEY)
    }

    /// Replaces the content by one rename, as kubelet does. The change is there
    /// when this returns.
    pub fn write(&mut self, content: &str) -> Result<()> {
        self.swap(content).context("changing the configuration")
    }

    fn swap(&mut self, content: &str) -> Result<()> {
        let name = |version| format!("..version_{version}");
        let old = self.path().join(name(self.version));
        self.version += 1;
        let new = self.path().join(name(self.version));
        fs::create_dir(&new)?;
        fs::write(new.join(KEY), content)?;
        let link = self.path().join("..data_tmp");
        symlink(name(self.version), &link)?;
        fs::rename(&link, self.path().join("..data"))?;
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_follows_every_swap() {
        let mut volume = ConfigVolume::new("one").unwrap();
        assert_eq!(fs::read_to_string(volume.file()).unwrap(), "one");
        let before = fs::read_link(volume.path().join("..data")).unwrap();
        volume.write("two").unwrap();
        assert_eq!(fs::read_to_string(volume.file()).unwrap(), "two");
        assert!(!volume.path().join(before).exists());
    }
}
