//! `kube` and `soak`: measurements and fault injection with a real Kubernetes API server.

use crate::{setup, shell};
use anyhow::Result;

/// Sets up and measures the latency of edits and the cost of an idle agent; prints the figures.
pub fn measure() -> Result<()> {
    testbed::require_root("cargo xtask kube")?;
    setup::run()?;
    shell::progress("cargo bench (some minutes the first time)");
    shell::run(shell::cargo().args(["bench", "-p", "netdp-user", "--bench", "kube"]))
}

/// Sets up and injects API server faults for this many minutes.
pub fn soak(minutes: u32) -> Result<()> {
    testbed::require_root("cargo xtask soak")?;
    setup::run()?;
    shell::progress(&format!(
        "cargo test, then {minutes} minutes of a hostile API server"
    ));
    let seconds = u64::from(minutes) * 60;
    shell::run(
        shell::cargo()
            .args(["test", "-p", "netdp-user", "--test", "kube", "--"])
            .args(["soak::", "--nocapture"])
            .env("NETDP_SOAK_SECONDS", seconds.to_string()),
    )
}
