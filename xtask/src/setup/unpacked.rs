//! Programs of Debian packages that are unpacked, not installed, because the packages would start
//! services.

use super::{apt, kubernetes};
use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use testbed::unpacked;

/// Packages, and the files below /usr that are kept of each.
const PACKAGES: [(&str, &[&str]); 2] = [
    ("prometheus", &["bin/prometheus", "bin/promtool"]),
    (
        "prometheus-alertmanager",
        &[
            "bin/prometheus-alertmanager",
            "share/prometheus/alertmanager/default.tmpl",
            "share/prometheus/alertmanager/email.tmpl",
        ],
    ),
];

/// Instructions for manual installation.
pub const BY_HAND: &str =
    "have prometheus (2.42 or later), promtool and prometheus-alertmanager in the path";

/// Unpacks the packages with missing programs to where tests look for these.
pub fn install_missing() -> Result<()> {
    let usr = unpacked::usr()?;
    fs::create_dir_all(&usr).with_context(|| format!("making {}", usr.display()))?;
    for (package, files) in PACKAGES {
        let mut programs = files.iter().filter_map(|file| file.strip_prefix("bin/"));
        if programs.all(|name| unpacked::find(name).is_ok()) {
            continue;
        }
        let work = tempfile::tempdir_in(&usr)?;
        apt::unpack(package, work.path())?;
        // Programs come last: they show that the package is complete.
        for file in files.iter().rev() {
            let to = usr.join(file);
            let directory = to.parent().unwrap_or(&usr);
            fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
            kubernetes::keep(&work.path().join("usr").join(file), &to)?;
        }
        shell::progress(&format!("setup: unpacked {package}"));
    }
    Ok(())
}
