//! Installation of Helm and Kustomize from Python packages, whose libraries work without Python.

use crate::go_libraries::{ALL, GoLibrary};
use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use std::process::Command;

/// Instructions for other distributions.
pub const BY_HAND: &str = "cargo xtask setup (downloads Helm and Kustomize by pip3)";

/// Downloads the missing libraries.
pub fn install_missing() -> Result<()> {
    for library in ALL.iter().filter(|library| library.path().is_err()) {
        install(library).with_context(|| format!("getting {}", library.what))?;
    }
    Ok(())
}

fn install(library: &GoLibrary) -> Result<()> {
    let target = library.directory()?;
    let base = target.parent().context("a cache has a directory above")?;
    fs::create_dir_all(base).with_context(|| format!("making {}", base.display()))?;
    // In the same file system, so that it can be renamed when it is complete.
    let work = tempfile::tempdir_in(base)?;
    let list = work.path().join("requirements.txt");
    fs::write(
        &list,
        format!(
            "{}=={} --hash=sha256:{}\n",
            library.package, library.version, library.sha256
        ),
    )?;
    shell::progress(&format!(
        "setup: pip3 download {} {}, for {} (up to a minute)",
        library.package, library.version, library.what
    ));
    // The packages require a newer Python than Debian's, but it is not used.
    shell::run_as_progress(
        Command::new("pip3")
            .args([
                "download",
                "--quiet",
                "--no-deps",
                "--ignore-requires-python",
            ])
            .args(["--only-binary", ":all:", "--require-hashes", "--dest"])
            .arg(work.path())
            .arg("--requirement")
            .arg(&list),
    )?;
    let wheel = fs::read_dir(work.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "whl"))
        .context("pip3 downloaded no wheel")?;
    let unpacked = work.path().join("unpacked");
    shell::run_as_progress(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .args([&wheel, &unpacked]),
    )?;
    fs::rename(&unpacked, &target)
        .with_context(|| format!("moving {} into place", target.display()))
}
