//! Builds a crate of eBPF programs for the BPF target and puts the object into `OUT_DIR`.
//!
//! Toolchain, in order of preference: `NETDP_EBPF_TOOLCHAIN` (a rustup toolchain or a sysroot
//! path); a nightly with rust-src; a sysroot at /usr that has a precompiled core for the BPF target
//! (Debian's libstd-rust-web-dev-bpf).
#![expect(
    clippy::print_stdout,
    reason = "build scripts give cargo their instructions on standard output"
)]

mod strip;

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "NETDP_EBPF_TOOLCHAIN";

/// Builds the object `object` of the package in the directory `root` of this workspace with these features. Must be called
/// by a build script's main thread, before it has started another.
///
/// # Errors
/// Returns an error if there is no linker or toolchain for the BPF target, if `root` is not UTF-8,
/// if the programs do not compile, or if the object can't be stripped.
pub fn build(package: &str, object: &str, root: &Path, features: &[&str]) -> Result<()> {
    println!("cargo:rerun-if-env-changed={OVERRIDE}");
    find_linker()?;
    let toolchain = choose_toolchain()?;
    // aya-ebpf uses an unstable feature of inline assembly. The crate's name, instead of "1", keeps
    // everything else on the stable language.
    if toolchain != "nightly" && std::env::var_os("RUSTC_BOOTSTRAP").is_none() {
        // SAFETY: a build script's main thread, before any other exists.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf") };
    }
    aya_build::build_ebpf(
        [aya_build::Package {
            name: package,
            root_dir: root.to_str().context("the path is not UTF-8")?,
            no_default_features: false,
            features,
        }],
        aya_build::Toolchain::Custom(&toolchain),
    )
    .context("building the eBPF programs failed; the compiler's words are above")?;
    let out = std::env::var_os("OUT_DIR").context("no OUT_DIR: only for build scripts")?;
    let object = PathBuf::from(out).join(object);
    strip::strip(&object).with_context(|| format!("stripping {}", object.display()))
}

fn choose_toolchain() -> Result<String> {
    if let Ok(chosen) = std::env::var(OVERRIDE) {
        return Ok(chosen);
    }
    let nightly = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output();
    if let Ok(out) = nightly
        && out.status.success()
        && let Ok(sysroot) = String::from_utf8(out.stdout)
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    {
        return Ok("nightly".into());
    }
    if Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib").is_dir() {
        return Ok("/usr".into());
    }
    bail!(
        "no Rust toolchain for the BPF target.\n\
         Run `cargo xtask setup` (as root), or install one of:\n  \
         * a nightly with its sources: rustup toolchain install nightly --component rust-src\n  \
         * Debian 12: apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf\n\
         or name one in {OVERRIDE}."
    )
}

fn find_linker() -> Result<()> {
    if Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_err()
    {
        bail!(
            "bpf-linker is not installed or not in PATH.\n\
             Run `cargo xtask setup` (as root), or: cargo install bpf-linker --version 0.13.0"
        );
    }
    Ok(())
}
