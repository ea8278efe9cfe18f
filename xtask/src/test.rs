//! `test`: all tests.

use crate::{setup, shell};
use anyhow::Result;
use std::os::unix::process::CommandExt as _;
use xtask::image;

/// Sets up and replaces this process by `cargo test`, so that its output comes last.
pub fn run(arguments: &[String]) -> Result<()> {
    testbed::require_root("cargo xtask test")?;
    setup::run()?;
    if arguments.is_empty() {
        shell::progress("the image, which tests run under containerd");
        image::make(image::NAME, &image::target_dir()?)?;
        shell::progress("netdp of layout 1, which tests upgrade");
        testbed::netdp_of_layout_1()?;
    }
    shell::progress("cargo test (some minutes the first time)");
    let mut command = shell::cargo();
    command.arg("test");
    // cargo rejects package names together with the whole workspace.
    if !arguments.iter().any(|argument| names_package(argument)) {
        command.args(["--workspace", "--exclude", "netdp-ebpf"]);
    }
    command.args(arguments);
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        command.env("RUST_BACKTRACE", "1");
    }
    let line = shell::line(&command);
    Err(command.exec()).map_err(|error| anyhow::anyhow!("starting `{line}`: {error}"))
}

fn names_package(argument: &str) -> bool {
    argument.starts_with("-p") || argument.starts_with("--package")
}
