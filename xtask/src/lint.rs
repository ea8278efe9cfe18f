//! `lint`: format, lints, licences, advisories.

use crate::shell;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Stdio;

/// Runs them all; the first that finds something ends it. With `advisories`, it is an error that those
/// can't be had.
pub fn run(advisories: bool) -> Result<()> {
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
    shell::say("cargo clippy of what `cargo xtask` is built of first");
    shell::run(shell::cargo().args([
        "clippy",
        "--package",
        "xtask",
        "--no-default-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    shell::say("cargo clippy of the eBPF programs, as if for this machine");
    shell::run(
        shell::cargo()
            .args(["clippy", "--package", "netdp-ebpf"])
            .args([
                "--package",
                "bench-ebpf",
                "--features",
                "bench-ebpf/programs",
            ])
            .args(["--", "-D", "warnings"])
            // aya-ebpf uses unstable inline assembly, see netdp-ebpf/builder.
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            // Without std there is no unwinding, which this machine's target
            // would otherwise have.
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )?;
    licences()?;
    check_advisories(advisories)
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

/// Known vulnerabilities of dependencies. The database is fetched anew; one of an earlier time will do,
/// if it is not too old (`maximum-db-staleness` in deny.toml).
fn check_advisories(required: bool) -> Result<()> {
    shell::say("cargo deny fetch db");
    let fetched = shell::run(shell::cargo().args(["deny", "fetch", "db"]));
    if let Err(error) = &fetched {
        let there = database().is_some_and(|path| path.is_dir());
        if !there {
            let message = "ADVISORIES WERE NOT CHECKED: the database of RustSec can't be fetched, and there is \
                           none of an earlier time; run this again where it can be fetched";
            anyhow::ensure!(!required, "{message}: {error:#}");
            shell::say(message);
            return Ok(());
        }
        shell::say("the database of RustSec can't be fetched: that of the last time has to do");
    }
    let mut check = shell::cargo();
    check.args(["deny", "check"]);
    if fetched.is_err() {
        check.arg("--disable-fetch");
    }
    check.arg("advisories");
    shell::say(&shell::line(&check));
    shell::run(&mut check)
}

/// Where cargo-deny keeps its databases.
fn database() -> Option<PathBuf> {
    Some(shell::cargo_home()?.join("advisory-dbs"))
}
