//! Dependencies of the build, the tests and the demo, and their detection.

mod list;

pub use list::ALL;

use super::cargo_programs::CargoProgram;
use super::rust_target;
use crate::go_libraries::GoLibrary;
use crate::shell;
use std::path::Path;
use std::process::Command;
use testbed::{kube_programs, unpacked};

/// A dependency that must be on the machine.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Name that is valid on any distribution.
    pub what: &'static str,
    /// Purpose, as messages give it.
    pub why: &'static str,
    source: Source,
    probe: Probe,
    part: Part,
}

/// Source of a dependency.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// A Debian 12 package.
    Package(&'static str),
    /// Installed with `cargo install`.
    Cargo(&'static CargoProgram),
    /// Debian 12's etcd, kubectl and busybox, unpacked.
    Kubernetes,
    /// Debian 12's Kubernetes, built from source.
    KubernetesBuilt,
    /// A program of a Debian 12 package, unpacked.
    Unpacked,
    /// A PyPI package that contains a library.
    GoLibrary,
    /// Installed with `rustup target add`.
    RustTarget,
}

/// Detection of a dependency.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// One of these programs is in the path.
    Program(&'static [&'static str]),
    File(&'static str),
    /// A Kubernetes program is where tests look for it.
    Kubernetes(&'static str),
    /// An unpacked program is where tests look for it.
    Unpacked(&'static str),
    /// The library of this package is installed.
    GoLibrary(&'static str),
    /// The standard library for static programs is installed.
    RustTarget,
}

/// Part of the work that needs a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Compiling the eBPF programs without a nightly toolchain.
    Compiler,
    /// Linking the eBPF programs.
    Linker,
    /// Building the linker from source.
    LinkerBuild,
    /// Building Kubernetes' programs from source.
    KubernetesBuild,
    /// Building the image; also used by tests.
    Image,
    /// Building a release; also used by tests.
    Release,
    /// Running the tests only.
    Run,
    /// Running the demo; also used by tests.
    Demo,
}

impl Need {
    /// Returns its Debian 12 package, if there is one.
    pub fn package(&self) -> Option<&'static str> {
        match self.source {
            Source::Package(name) => Some(name),
            Source::Cargo(_)
            | Source::Kubernetes
            | Source::KubernetesBuilt
            | Source::Unpacked
            | Source::GoLibrary
            | Source::RustTarget => None,
        }
    }

    /// Reports whether [`kubernetes::install`](super::kubernetes::install) provides it.
    pub fn is_kubernetes(&self) -> bool {
        matches!(self.source, Source::Kubernetes) || self.is_built_kubernetes()
    }

    /// Reports whether it is built from Kubernetes' source.
    pub fn is_built_kubernetes(&self) -> bool {
        matches!(self.source, Source::KubernetesBuilt)
    }

    /// Reports whether only an API server and its tests need it.
    pub fn is_for_api_server(&self) -> bool {
        self.is_kubernetes() || self.part == Part::KubernetesBuild
    }

    /// Reports whether building or running the demo needs it.
    pub fn is_for_demo(&self) -> bool {
        match self.part {
            Part::Compiler | Part::Linker | Part::LinkerBuild | Part::Demo => true,
            Part::KubernetesBuild | Part::Image | Part::Release | Part::Run => false,
        }
    }

    /// Reports whether building the image needs it.
    pub fn is_for_image(&self) -> bool {
        match self.part {
            Part::Compiler | Part::Linker | Part::LinkerBuild | Part::Image => true,
            Part::KubernetesBuild | Part::Release | Part::Run | Part::Demo => false,
        }
    }

    /// Reports whether building a release needs it.
    pub fn is_for_release(&self) -> bool {
        self.is_for_image() || self.part == Part::Release
    }

    /// Returns the program, if cargo installs it.
    pub fn cargo_program(&self) -> Option<&'static CargoProgram> {
        match self.source {
            Source::Cargo(program) => Some(program),
            Source::Package(_)
            | Source::Kubernetes
            | Source::KubernetesBuilt
            | Source::Unpacked
            | Source::GoLibrary
            | Source::RustTarget => None,
        }
    }

    /// Reports whether [`unpacked`](super::unpacked) provides it.
    pub fn is_unpacked(&self) -> bool {
        matches!(self.source, Source::Unpacked)
    }

    /// Reports whether [`go_libraries`](super::go_libraries) installs it.
    pub fn is_go_library(&self) -> bool {
        matches!(self.source, Source::GoLibrary)
    }

    /// Reports whether rustup installs it.
    pub fn is_rust_target(&self) -> bool {
        matches!(self.source, Source::RustTarget)
    }

    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(any) => any.iter().any(|name| shell::has_program(name)),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Kubernetes(name) => kube_programs::find(name).is_ok(),
            Probe::Unpacked(name) => unpacked::find(name).is_ok(),
            Probe::GoLibrary(package) => {
                GoLibrary::of_package(package).is_ok_and(|library| library.path().is_ok())
            }
            Probe::RustTarget => rust_target::is_there(),
        }
    }
}

/// Returns the dependencies that this machine lacks.
pub fn missing() -> Vec<Need> {
    let linker = shell::has_program("bpf-linker");
    let built = ALL
        .iter()
        .filter(|need| need.is_built_kubernetes())
        .all(Need::is_there);
    let compiler = std::env::var_os("NETDP_EBPF_TOOLCHAIN").is_some() || has_nightly();
    ALL.iter()
        .filter(|need| match need.part {
            // A nightly is only of use with the linker, which is built against the LLVM of the
            // compiler in /usr.
            Part::Compiler => !(compiler && linker),
            Part::LinkerBuild => !linker,
            Part::KubernetesBuild => !built,
            Part::Linker | Part::Image | Part::Release | Part::Run | Part::Demo => true,
        })
        .filter(|need| !need.is_there())
        .copied()
        .collect()
}

/// Reports whether a nightly toolchain can build core for BPF.
fn has_nightly() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output();
    sysroot.is_ok_and(|out| {
        out.status.success()
            && Path::new(String::from_utf8_lossy(&out.stdout).trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
    })
}

#[cfg(test)]
mod tests;
