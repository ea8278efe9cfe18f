//! Metadata of the cargo workspace.

use crate::shell;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;

/// Returns the output of `cargo metadata` without dependencies.
///
/// # Errors
/// Returns an error if it fails, for example because Cargo.lock is out of date.
pub fn metadata() -> Result<Value> {
    let out = shell::cargo()
        .args(["metadata", "--no-deps", "--locked", "--format-version=1"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(out.status.success(), "cargo metadata: {}", out.status);
    serde_json::from_slice(&out.stdout).context("reading what cargo metadata wrote")
}

/// Returns cargo's target directory.
///
/// # Errors
/// Returns an error if the metadata does not contain it.
pub fn target_dir() -> Result<PathBuf> {
    metadata()?["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}
