//! The machine that this runs on.

/// Returns its name; empty if the kernel does not tell.
pub(crate) fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}
