//! Version of the program, and the revision of the sources that it was built from.

use std::sync::LazyLock;

/// Version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of the sources, followed by `-dirty` if files differed from it. `cargo xtask image` and
/// `release` set it; in a development build it is unknown, so that a commit builds nothing anew.
pub(crate) const REVISION: &str = match option_env!("NETDP_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Version and revision, as `--version` prints them.
pub(crate) static LONG: LazyLock<String> =
    LazyLock::new(|| format!("{VERSION} (revision {REVISION})"));
