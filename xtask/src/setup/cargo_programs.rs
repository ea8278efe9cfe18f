//! Programs that cargo installs.

use crate::shell;
use anyhow::{Context as _, Result};

/// bpf-linker's LLVM must be at least as new as that of the compiler in /usr.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A program from crates.io.
#[derive(Debug)]
pub struct CargoProgram {
    /// Name of the crate and of the program.
    pub name: &'static str,
    version: &'static str,
    /// Additional arguments of `cargo install`.
    options: &'static [&'static str],
    /// Environment variables for its build.
    environment: &'static [(&'static str, &'static str)],
}

/// Linker of the eBPF programs, built against the LLVM of the compiler in /usr.
pub const BPF_LINKER: CargoProgram = CargoProgram {
    name: "bpf-linker",
    version: "0.13.0",
    options: &["--no-default-features", "--features", "llvm-22"],
    environment: &[("LLVM_PREFIX", LLVM_PREFIX)],
};

/// Generator of the list of crates in the image.
pub const CYCLONEDX: CargoProgram = CargoProgram {
    name: "cargo-cyclonedx",
    version: "0.5.9",
    options: &[],
    environment: &[],
};

impl CargoProgram {
    fn arguments(&self) -> Vec<&'static str> {
        let mut arguments = vec!["install", self.name, "--version", self.version];
        // None of them runs for long, and optimising takes most of the build time.
        arguments.extend(["--profile", "dev", "--locked"]);
        arguments.extend(self.options);
        arguments
    }

    /// Builds the program and installs it into cargo's bin directory.
    pub fn install(&self) -> Result<()> {
        let name = self.name;
        shell::progress(&format!("setup: cargo install {name} (some minutes)"));
        let install = || {
            let mut cargo = shell::cargo();
            cargo.args(self.arguments());
            cargo.envs(self.environment.iter().copied());
            shell::run_as_progress(&mut cargo)
        };
        if let Err(error) = install() {
            shell::progress(&format!("setup: {error}; trying once more"));
            install().with_context(|| {
                format!("building {name} failed twice; cargo's messages are above")
            })?;
        }
        Ok(())
    }

    /// Returns the command as it is typed in a shell.
    pub fn as_typed(&self) -> String {
        let mut line = String::new();
        for (name, value) in self.environment {
            line += &format!("{name}={value} ");
        }
        line + "cargo " + &self.arguments().join(" ")
    }
}
