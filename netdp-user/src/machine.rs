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

/// Has freed memory returned to the kernel. By itself glibc raises the limit from which on it does so with
/// the largest piece that was ever freed, and the object of the programs is large: the agent would keep some
/// 16 MiB that it used once, at its start.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LEFT: libc::c_int = 128 << 10;
        // SAFETY: sets a parameter of the allocator (mallopt(3)).
        if unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, LEFT) } == 0 {
            log::debug!("the allocator refused M_TRIM_THRESHOLD: freed memory is kept");
        }
    }
}

/// Lets everything else on the node go first: for commands that walk through all mappings.
pub(crate) fn give_way() {
    const NICE: libc::c_int = 10;
    // SAFETY: lowers the priority of this process (setpriority(2)).
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        log::debug!("setpriority: {}", std::io::Error::last_os_error());
    }
}
