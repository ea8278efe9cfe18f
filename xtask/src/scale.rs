//! `scale`: cost of a million mappings.

use crate::{setup, shell};
use anyhow::Result;

/// Sets up and measures; the figures go to standard output.
pub fn run(mappings: u32) -> Result<()> {
    testbed::require_root("cargo xtask scale")?;
    setup::run_without_api_server()?;
    shell::progress("cargo bench (some minutes the first time)");
    shell::run(
        shell::cargo()
            .args(["bench", "-p", "netdp-user", "--bench", "scale", "--"])
            .arg(mappings.to_string()),
    )
}
