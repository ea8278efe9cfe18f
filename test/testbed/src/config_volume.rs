//! A configuration directory that is updated the way a ConfigMap volume is.

use super::workdir::WorkDir;
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Key in the ConfigMap, and therefore name of the file in the volume.
const KEY: &str = "ip-masq-agent";

/// A mounted ConfigMap: `ip-masq-agent` is a symlink to `..data/ip-masq-agent`, and `..data` one to
/// a directory that is never modified, only replaced.
#[derive(Debug)]
pub struct ConfigVolume {
    dir: WorkDir,
    version: u32,
}

impl ConfigVolume {
    /// Creates a volume with `content` in its only file.
    pub fn new(content: &str) -> Result<Self> {
        let mut volume = Self {
            dir: WorkDir::new("config")?,
            version: 0,
        };
        volume.write(content)?;
        symlink(Path::new("..data").join(KEY), volume.file())?;
        Ok(volume)
    }

    /// Returns the directory, for `--config`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of the file in it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path().join(KEY)
    }

    /// Replaces the content with one rename, as the kubelet does. The change is visible when this
    /// returns.
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
