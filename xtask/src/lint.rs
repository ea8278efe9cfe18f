//! `lint`: format, lints, licences.

use crate::shell;
use anyhow::{Context as _, Result};
use std::process::Stdio;

/// Runs them all; the first that finds something ends it.
pub fn run() -> Result<()> {
    component("fmt", "rustfmt")?;
    component("clippy", "clippy")?;
    shell::say("cargo fmt --check");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::say("cargo clippy");
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "netdp-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    shell::say("cargo clippy of the eBPF programs, as if for this machine");
    shell::run(
        shell::cargo()
            .args(["clippy", "--package", "netdp-ebpf", "--", "-D", "warnings"])
            // aya-ebpf uses unstable inline assembly, see netdp-user/build.rs.
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            // Without std there is no unwinding, which this machine's target
            // would otherwise have.
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )?;
    licences()
}

/// Fails with the way to get it if the toolchain lacks a component.
fn component(subcommand: &str, component: &str) -> Result<()> {
    let there = shell::cargo()
        .args([subcommand, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    anyhow::ensure!(
        there,
        "this toolchain has no cargo {subcommand}: rustup component add {component}"
    );
    Ok(())
}

fn licences() -> Result<()> {
    if !shell::has_program("cargo-deny") {
        shell::say("cargo install cargo-deny, which checks licences (about three minutes, once)");
        shell::run_as_progress(shell::cargo().args(["install", "cargo-deny", "--locked"]))
            .context("cargo-deny checks the licences of dependencies")?;
    }
    shell::say("cargo deny check");
    shell::run(shell::cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}
