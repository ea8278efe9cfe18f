//! Programs that cargo installs.

use crate::shell;
use anyhow::{Context as _, Result};

/// bpf-linker's LLVM has to be at least as new as that of the compiler in /usr.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A program of crates.io.
#[derive(Debug)]
pub struct CargoProgram {
    /// The crate, and the program.
    pub name: &'static str,
    version: &'static str,
    /// Further words for `cargo install`.
    options: &'static [&'static str],
    /// What building it takes in the environment.
    environment: &'static [(&'static str, &'static str)],
}

/// Links the eBPF programs; built against the LLVM of the compiler in /usr.
pub const BPF_LINKER: CargoProgram = CargoProgram {
    name: "bpf-linker",
    version: "0.13.0",
    options: &["--no-default-features", "--features", "llvm-22"],
    environment: &[("LLVM_PREFIX", LLVM_PREFIX)],
};

/// Lists the crates of the image.
pub const CYCLONEDX: CargoProgram = CargoProgram {
    name: "cargo-cyclonedx",
    version: "0.5.9",
    options: &[],
    environment: &[],
};

impl CargoProgram {
    fn arguments(&self) -> Vec<&'static str> {
        let mut arguments = vec!["install", self.name, "--version", self.version];
        // None of them works for long: optimising takes most of the time.
        arguments.extend(["--profile", "dev", "--locked"]);
        arguments.extend(self.options);
        arguments
    }

    /// Builds it and installs it where cargo installs programs.
    pub fn install(&self) -> Result<()> {
        let name = self.name;
        shell::say(&format!("setup: cargo install {name} (some minutes)"));
        let install = || {
            let mut cargo = shell::cargo();
            cargo.args(self.arguments());
            cargo.envs(self.environment.iter().copied());
            shell::run_as_progress(&mut cargo)
        };
        if let Err(error) = install() {
            shell::say(&format!("setup: {error}; trying once more"));
            install().with_context(|| {
                format!("building {name} failed twice; cargo's messages are above")
            })?;
        }
        Ok(())
    }

    /// The command, for a person to type.
    pub fn as_typed(&self) -> String {
        let mut line = String::new();
        for (name, value) in self.environment {
            line += &format!("{name}={value} ");
        }
        line + "cargo " + &self.arguments().join(" ")
    }
}
