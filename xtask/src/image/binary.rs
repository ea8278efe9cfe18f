//! Program of the image: statically linked, and reproducible on every machine.

use super::revision;
use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Returns the Rust target and OCI's name of this machine's architecture: images are for the
/// architecture on which they are built.
///
/// # Errors
/// Returns an error if the architecture is not supported.
pub fn target() -> Result<(String, &'static str)> {
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image for {other}: only for x86_64 and aarch64"),
    };
    Ok((shell::static_target(), arch))
}

/// Builds netdp in the target directory and returns the path of the program. `revision`: the revision of
/// the sources, if the program is to name it.
///
/// # Errors
/// Returns an error if the compiler fails; its messages are on standard error.
pub fn build(target: &str, target_dir: &Path, revision: Option<&str>) -> Result<PathBuf> {
    shell::progress(&format!(
        "cargo build --release --target {target} (about three minutes the first time)"
    ));
    let flags = flags(target_dir)?;
    let mut cargo = shell::cargo();
    if let Some(revision) = revision {
        cargo.env(revision::VARIABLE, revision);
    }
    let out = cargo
        .args(["build", "--release", "--locked", "--package", "netdp-user"])
        .args(["--bin", "netdp", "--target", target])
        .arg("--message-format=json-render-diagnostics")
        .env("CARGO_TARGET_DIR", target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC_WRAPPER", wrapper(target_dir, &flags)?)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(
        out.status.success(),
        "cargo build: {}. If the target {target} is missing: rustup target add {target}",
        out.status
    );
    shell::built_netdp(&String::from_utf8_lossy(&out.stdout))
        .context("cargo built no program of the name netdp")
}

/// Returns compiler flags that replace this machine's paths, which occur in panic messages and in
/// the line information of the eBPF programs, by fixed ones.
fn flags(target_dir: &Path) -> Result<Vec<String>> {
    let cargo_home = shell::cargo_home().context("neither CARGO_HOME nor HOME is set")?;
    let root = shell::root()
        .canonicalize()
        .context("locating the workspace")?;
    let paths = [
        (cargo_home.as_path(), "/cargo"),
        (root.as_path(), "/netdp"),
        // The target directory is usually inside the workspace: the last matching prefix applies.
        (target_dir, "/target"),
    ];
    Ok(paths
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect())
}

/// Writes a wrapper that runs the compiler with these flags. A separate cargo builds the eBPF
/// programs: it does not receive the flags of this one, but it honours `RUSTC_WRAPPER`.
fn wrapper(target_dir: &Path, flags: &[String]) -> Result<PathBuf> {
    let quoted: Vec<String> = flags
        .iter()
        .map(|flag| format!("'{}'", flag.replace('\'', r"'\''")))
        .collect();
    let script = format!("#!/bin/sh\nexec \"$@\" {}\n", quoted.join(" "));
    let path = target_dir.join("image/rustc-wrapper");
    // Rewriting it would fail while another process runs it.
    if fs::read_to_string(&path).is_ok_and(|there| there == script) {
        return Ok(path);
    }
    fs::create_dir_all(target_dir.join("image"))
        .and_then(|()| fs::write(&path, script))
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
