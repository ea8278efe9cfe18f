//! Programs of Debian packages that are unpacked, not installed, because the packages would start
//! services.

use super::{apt, kubernetes};
use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use testbed::unpacked;

/// Packages, and the programs of each.
const PACKAGES: [(&str, &[&str]); 2] = [
    ("prometheus", &["usr/bin/prometheus", "usr/bin/promtool"]),
    (
        "prometheus-alertmanager",
        &["usr/bin/prometheus-alertmanager"],
    ),
];

/// Instructions for manual installation.
pub const BY_HAND: &str =
    "have prometheus (2.42 or later), promtool and prometheus-alertmanager in the path";

/// Unpacks the packages with missing programs to where tests look for these.
pub fn install_missing() -> Result<()> {
    let cache = unpacked::cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    for (package, programs) in PACKAGES {
        let named = || {
            programs.iter().filter_map(|program| {
                let program = Path::new(program);
                Some((program, program.file_name()?))
            })
        };
        if named().all(|(_, name)| unpacked::find(&name.to_string_lossy()).is_ok()) {
            continue;
        }
        let work = tempfile::tempdir_in(&cache)?;
        apt::unpack(package, work.path())?;
        for (program, name) in named() {
            kubernetes::keep(&work.path().join(program), &cache.join(name))?;
        }
        shell::progress(&format!("setup: unpacked {package}"));
    }
    Ok(())
}
