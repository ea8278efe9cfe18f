//! Where the shared libraries of Helm and Kustomize are.

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use testbed::kube_programs;

/// A library in a package of the Python Package Index.
#[derive(Debug, Clone, Copy)]
pub struct GoLibrary {
    /// What it is.
    pub what: &'static str,
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The SHA-256 of its wheel.
    pub sha256: &'static str,
    file: &'static str,
}

/// Helm 4.3.0.
pub const HELM: GoLibrary = GoLibrary {
    what: "Helm, as a library",
    package: "helm-sdkpy",
    version: "0.1.32",
    sha256: "bcf5bf73cacc373bebedfb9c988969aa12a9eda86a140deba658fbf28eb789c5",
    file: "helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so",
};

/// Kustomize's API 0.21.3.
pub const KUSTOMIZE: GoLibrary = GoLibrary {
    what: "Kustomize, as a library",
    package: "pykustomize",
    version: "0.1.4",
    sha256: "f8da6be12fb35b56158d2f9043a67d39c1ce84eae9c8f344c7ed934709192467",
    file: "pykustomize/_lib/linux-amd64/libpykustomize.so",
};

/// Both.
pub const ALL: [GoLibrary; 2] = [HELM, KUSTOMIZE];

impl GoLibrary {
    /// Where `cargo xtask setup` unpacks the package: beside the programs of
    /// Kubernetes.
    ///
    /// # Errors
    /// There is no place for a cache.
    pub fn directory(&self) -> Result<PathBuf> {
        let beside = kube_programs::cache()?;
        Ok(beside.with_file_name(format!("{}-{}", self.package, self.version)))
    }

    /// The library.
    ///
    /// # Errors
    /// It is not there.
    pub fn path(&self) -> Result<PathBuf> {
        let path = self.directory()?.join(self.file);
        ensure!(
            path.is_file(),
            "there is no {} at {}: run `cargo xtask setup`",
            self.what,
            path.display()
        );
        Ok(path)
    }

    /// The library of a name, for a need's probe.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn of_package(package: &str) -> Result<Self> {
        ALL.into_iter()
            .find(|library| library.package == package)
            .with_context(|| format!("no library in a package {package}"))
    }
}
