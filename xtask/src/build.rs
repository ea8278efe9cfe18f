//! `build`: target/release/netdp, and the build for the demo.

use crate::{setup, shell};
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Stdio;

/// Sets up, builds, and returns the path of the program.
pub fn run() -> Result<PathBuf> {
    setup::run_without_api_server()?;
    shell::progress("cargo build --release (two or three minutes the first time)");
    netdp(&["--release"])
}

/// Sets up only for the demo, builds the agent without optimisation, which takes a third of the
/// time, and returns the path of the program. The eBPF programs are those of a release.
pub fn for_demo() -> Result<PathBuf> {
    setup::run_for_demo()?;
    shell::progress("cargo build (about two minutes the first time)");
    netdp(&[])
}

fn netdp(profile: &[&str]) -> Result<PathBuf> {
    let out = shell::cargo()
        .args(["build", "--package", "netdp-user"])
        .args(profile)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(out.status.success(), "cargo build: {}", out.status);
    shell::built_netdp(&String::from_utf8_lossy(&out.stdout))
        .context("cargo built no program of the name netdp")
}
