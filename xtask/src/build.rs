//! `build`: target/release/netdp.

use crate::{setup, shell};
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Stdio;

/// Sets up, builds, and returns the program's path.
pub fn run() -> Result<PathBuf> {
    setup::run_without_api_server()?;
    shell::say("cargo build --release (two or three minutes the first time)");
    let out = shell::cargo()
        .args(["build", "--release", "--package", "netdp-user"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(out.status.success(), "cargo build: {}", out.status);
    shell::built_netdp(&String::from_utf8_lossy(&out.stdout))
        .context("cargo built no program of the name netdp")
}
