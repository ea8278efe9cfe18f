//! `lint`: format, lints, documentation, spelling, licences, advisories.

use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Version of the spelling checker; its dictionary changes with each version.
const TYPOS: &str = "1.52.0";

/// Runs all checks; stops at the first that fails. With `advisories`, it is an error if the
/// advisory database is unavailable.
pub fn run(advisories: bool) -> Result<()> {
    component("fmt", "rustfmt")?;
    component("clippy", "clippy")?;
    shell::progress("cargo fmt --check");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::progress("cargo clippy");
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
    shell::progress("cargo clippy of what `cargo xtask` is built of first");
    shell::run(shell::cargo().args([
        "clippy",
        "--package",
        "xtask",
        "--no-default-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    shell::progress("cargo clippy of the eBPF programs, as if for this machine");
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
            // Without std there is no unwinding, which is the default for this machine's target.
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )?;
    documentation()?;
    spelling()?;
    licences()?;
    check_advisories(advisories)
}

/// Builds the documentation of all crates, private items included; a warning is an error.
fn documentation() -> Result<()> {
    let doc = |packages: &[&str]| {
        let mut doc = shell::cargo();
        doc.arg("doc").args(packages);
        doc.args(["--no-deps", "--document-private-items"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        doc
    };
    shell::progress("cargo doc");
    shell::run(&mut doc(&["--workspace", "--exclude", "netdp-ebpf"]))?;
    shell::progress("cargo doc of the eBPF programs");
    shell::run(
        doc(&["--package", "netdp-ebpf"])
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )
}

/// Checks the spelling of all files that git tracks (typos.toml).
fn spelling() -> Result<()> {
    let installed = Command::new("typos")
        .arg("--version")
        .output()
        .is_ok_and(|out| {
            String::from_utf8_lossy(&out.stdout).trim_end() == format!("typos-cli {TYPOS}")
        });
    if !installed {
        shell::progress("cargo install typos-cli, which checks spelling (a few minutes, once)");
        let install = ["install", "typos-cli", "--locked", "--version", TYPOS];
        shell::run_as_progress(shell::cargo().args(install))
            .context("typos-cli checks the spelling")?;
    }
    shell::progress("typos");
    shell::run(Command::new("typos").current_dir(shell::root()))
}

/// Returns an error that contains the installation command if the toolchain lacks a component.
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
        shell::progress(
            "cargo install cargo-deny, which checks licences (about three minutes, once)",
        );
        shell::run_as_progress(shell::cargo().args(["install", "cargo-deny", "--locked"]))
            .context("cargo-deny checks the licences of dependencies")?;
    }
    shell::progress("cargo deny check");
    shell::run(shell::cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

/// Checks dependencies for known vulnerabilities. The database is fetched again; if that fails, an
/// existing one is used unless it is too old (`maximum-db-staleness` in deny.toml).
fn check_advisories(required: bool) -> Result<()> {
    shell::progress("cargo deny fetch db");
    let fetched = shell::run(shell::cargo().args(["deny", "fetch", "db"]));
    if let Err(error) = &fetched {
        let there = database().is_some_and(|path| has_directory(&path));
        if !there {
            let message = "ADVISORIES NOT CHECKED: the RustSec database can't be fetched, and \
                           there is no earlier copy; run this again with network access";
            anyhow::ensure!(!required, "{message}: {error:#}");
            shell::progress(message);
            return Ok(());
        }
        shell::progress("the RustSec database can't be fetched: using the last copy");
    }
    let mut check = shell::cargo();
    check.arg("deny");
    if fetched.is_err() {
        check.arg("--offline");
    }
    check.args(["check", "advisories"]);
    shell::progress(&shell::line(&check));
    shell::run(&mut check)
}

/// Reports whether the directory has a copy of a database: a failed fetch leaves only a lock file.
fn has_directory(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.flatten().any(|entry| entry.path().is_dir())
}

/// Returns the directory of cargo-deny's databases.
fn database() -> Option<PathBuf> {
    Some(shell::cargo_home()?.join("advisory-dbs"))
}
