//! `setup`: installs missing dependencies, once.

pub mod apt;
mod cargo_programs;
mod go_libraries;
mod kubernetes;
mod needs;
mod rust_target;
mod system;
mod unpacked;

use crate::shell;
use anyhow::{Result, bail};
use cargo_programs::BPF_LINKER;
use needs::Need;
use std::fmt::Write as _;
use system::System;
use testbed::is_root;

/// Installs missing dependencies; returns quickly if there are none.
pub fn run() -> Result<()> {
    install(|_| true)
}

/// Installs all but the dependencies of tests with a Kubernetes API server, which take minutes to
/// build.
pub fn run_without_api_server() -> Result<()> {
    install(|need| !need.is_for_api_server())
}

/// Installs only the dependencies of the demo.
pub fn run_for_demo() -> Result<()> {
    install(Need::is_for_demo)
}

/// Installs only the dependencies of the image.
pub fn run_for_image() -> Result<()> {
    install(Need::is_for_image)
}

/// Installs only the dependencies of a release.
pub fn run_for_release() -> Result<()> {
    install(Need::is_for_release)
}

fn install(wanted: impl Fn(&Need) -> bool) -> Result<()> {
    let look = || -> Vec<Need> { needs::missing().into_iter().filter(&wanted).collect() };
    let missing = look();
    if missing.is_empty() {
        shell::progress("setup: everything is installed");
        return Ok(());
    }
    shell::progress(&format!("setup: missing here:\n{}", table(&missing)));
    let system = System::of_this_machine();
    if !system.is_supported() {
        bail!(by_hand(&system));
    }
    if !is_root()
        && missing
            .iter()
            .any(|need| need.package().is_some() || need.is_kubernetes())
    {
        bail!(
            "installing packages needs root. Run `cargo xtask setup` as root, or these commands:\n{}",
            commands(&missing)
        );
    }
    apt::install(&packages(&missing))?;
    for program in missing.iter().filter_map(Need::cargo_program) {
        program.install()?;
    }
    if missing.iter().any(Need::is_kubernetes) {
        let built = missing.iter().filter(|need| need.is_built_kubernetes());
        kubernetes::install_missing(&built.map(|need| need.what).collect::<Vec<_>>())?;
    }
    if missing.iter().any(Need::is_unpacked) {
        unpacked::install_missing()?;
    }
    if missing.iter().any(Need::is_go_library) {
        go_libraries::install_missing()?;
    }
    if missing.iter().any(Need::is_rust_target) {
        rust_target::install_if_missing()?;
    }
    let still = look();
    if !still.is_empty() {
        bail!(
            "installed without an error, but still missing:\n{}",
            table(&still)
        );
    }
    shell::progress("setup: done");
    Ok(())
}

/// Returns the packages of the needs, each once.
fn packages(missing: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = missing.iter().filter_map(Need::package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn table(needs: &[Need]) -> String {
    let mut table = String::new();
    for need in needs {
        let _ = writeln!(table, "  {:<44} {}", need.what, need.why);
    }
    table
}

/// Returns the commands that install the missing dependencies on Debian 12.
fn commands(missing: &[Need]) -> String {
    let mut lines = String::new();
    let packages = packages(missing);
    if !packages.is_empty() {
        let _ = writeln!(
            lines,
            "  apt-get update\n  apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    for program in missing.iter().filter_map(Need::cargo_program) {
        let _ = writeln!(lines, "  {}", program.as_typed());
    }
    if missing.iter().any(Need::is_go_library) {
        let _ = writeln!(lines, "  {}", go_libraries::BY_HAND);
    }
    if missing.iter().any(Need::is_rust_target) {
        let _ = writeln!(lines, "  {}", rust_target::as_typed());
    }
    if missing.iter().any(Need::is_kubernetes) {
        let _ = writeln!(lines, "  {}", kubernetes::BY_HAND);
    }
    if missing.iter().any(Need::is_unpacked) {
        let _ = writeln!(lines, "  {}", unpacked::BY_HAND);
    }
    lines
}

/// Returns the list of dependencies for a distribution that setup does not support.
fn by_hand(system: &System) -> String {
    format!(
        "setup knows Debian 12 only, and this is {system}. Install by hand what is listed as \
         missing above.\nFor the eBPF programs, one of:\n  \
         * a nightly toolchain with its sources, and bpf-linker built against an LLVM at least as \
         new as that nightly's:\n      \
         rustup toolchain install nightly --component rust-src\n      \
         cargo install bpf-linker\n  \
         * a Rust of at least 1.95 in /usr with a precompiled core for bpfel-unknown-none (as \
         Debian 12's libstd-rust-web-dev-bpf has), and bpf-linker built against an LLVM at least \
         as new as that Rust's:\n      {}\n\
         Then run the same command again.",
        BPF_LINKER.as_typed()
    ) + "For the cluster and the API server in tests: "
        + kubernetes::BY_HAND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_once() {
        let all = packages(needs::ALL);
        let mut once = all.clone();
        once.dedup();
        assert_eq!(all, once);
        assert!(all.contains(&"redis-tools"));
    }

    #[test]
    fn commands_install_what_is_missing_and_no_more() {
        let curl: Vec<Need> = needs::ALL
            .iter()
            .filter(|need| need.what == "curl")
            .copied()
            .collect();
        let typed = commands(&curl);
        assert!(typed.contains("--no-install-recommends curl\n"), "{typed}");
        assert!(!typed.contains("bpf-linker"), "{typed}");
    }

    #[test]
    fn programs_of_crates_io_have_a_version() {
        let all = commands(needs::ALL);
        for pinned in [
            "cargo install cargo-cyclonedx --version 0.5.9 --profile dev --locked\n",
            "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 ",
        ] {
            assert!(all.contains(pinned), "{all}");
        }
    }
}
