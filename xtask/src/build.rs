//! `build`: target/release/netdp.

use crate::{setup, shell};
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Stdio;

/// Sets up, builds, and returns the program's path.
pub fn run() -> Result<PathBuf> {
    setup::run()?;
    shell::say("cargo build --release (two or three minutes the first time)");
    let out = shell::cargo()
        .args(["build", "--release", "--package", "netdp-user"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(out.status.success(), "cargo build: {}", out.status);
    executable(&String::from_utf8_lossy(&out.stdout))
        .context("cargo built no program of the name netdp")
}

/// The path of netdp in cargo's messages: the target directory may be anywhere.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "netdp")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"netdp"},"executable":"/t/release/netdp"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some("/t/release/netdp".into()));
        assert_eq!(executable("{}"), None);
    }
}
