//! Rust target of the image's program.

use crate::shell;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Reports whether cargo's compiler has the target's standard library.
pub fn is_there() -> bool {
    let out = Command::new("rustc")
        .current_dir(shell::root())
        .args([
            "--print",
            "target-libdir",
            "--target",
            &shell::static_target(),
        ])
        .output();
    out.is_ok_and(|out| {
        out.status.success() && Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir()
    })
}

/// Returns the command that installs it.
pub fn as_typed() -> String {
    format!("rustup target add {}", shell::static_target())
}

/// Installs it with rustup if it is missing.
pub fn install_if_missing() -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let target = shell::static_target();
    shell::progress(&format!("setup: rustup target add {target}"));
    shell::run_as_progress(
        Command::new("rustup")
            .current_dir(shell::root())
            .args(["target", "add", &target]),
    )
}
