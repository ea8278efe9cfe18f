//! The machine that this runs on.

use anyhow::{Context as _, Result};
use std::fs;

/// Returns its name; empty if the kernel does not tell.
pub(crate) fn name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}

/// Returns the kernel's `boot_id`, another one after each boot.
///
/// # Errors
/// Returns an error if the kernel does not tell it.
pub(crate) fn boot_id() -> Result<String> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(FILE).context(FILE)?;
    Ok(text.trim().to_owned())
}
