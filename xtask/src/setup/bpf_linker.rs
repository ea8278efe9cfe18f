//! bpf-linker, built against the LLVM of the compiler in /usr.

use crate::shell;
use anyhow::{Context as _, Result};

/// Its LLVM has to be at least as new as the compiler's.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

const ARGUMENTS: [&str; 10] = [
    "install",
    "bpf-linker",
    "--version",
    "0.13.0",
    // It is LLVM that works; the rest need not be optimised, which takes most of the time.
    "--profile",
    "dev",
    "--locked",
    "--no-default-features",
    "--features",
    "llvm-22",
];

/// Builds and installs it where cargo installs programs.
pub fn install_if_missing() -> Result<()> {
    if shell::has_program("bpf-linker") {
        return Ok(());
    }
    shell::say("setup: cargo install bpf-linker, which links eBPF programs (about a minute)");
    let install = || {
        shell::run_as_progress(
            shell::cargo()
                .args(ARGUMENTS)
                .env("LLVM_PREFIX", LLVM_PREFIX),
        )
    };
    if let Err(error) = install() {
        shell::say(&format!("setup: {error}; trying once more"));
        install().context("building bpf-linker failed twice; cargo's words are above")?;
    }
    Ok(())
}

/// The command, for a person to type.
pub fn as_typed() -> String {
    format!("LLVM_PREFIX={LLVM_PREFIX} cargo {}", ARGUMENTS.join(" "))
}
