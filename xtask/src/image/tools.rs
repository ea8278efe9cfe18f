//! An image for pods of tests, which also holds their namespaces.

use super::binary;
use super::layer::Tree;
use super::layout::{About, layout};
use super::read;
use anyhow::Result;
use std::path::Path;

/// What it is called.
pub const TOOLS: &str = "localhost/netdp-tools:1";

/// Programs of busybox that pods call by their names.
const NAMES: [&str; 4] = ["sh", "sleep", "timeout", "wget"];

/// An image layout, as a tar archive, under any name: with busybox in it and
/// nothing else. Its containers sleep unless they are told otherwise.
///
/// # Errors
/// `busybox` can't be read.
pub fn tools(name: &str, busybox: &Path) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.file("bin/busybox", 0o755, read(busybox)?);
    for name in NAMES {
        tree.link(&format!("bin/{name}"), "/bin/busybox");
    }
    for directory in ["proc", "sys", "dev", "tmp", "etc"] {
        tree.directory(directory);
    }
    let about = About {
        name: name.into(),
        version: name.rsplit(':').next().unwrap_or_default().into(),
        arch: binary::target()?.1,
        title: "tools",
        entrypoint: &["/bin/sleep", "infinity"],
    };
    Ok(layout(&about, &[tree.pack()?])?.archive)
}
