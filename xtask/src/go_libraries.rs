//! Locations of the shared libraries of Helm and Kustomize.

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use testbed::kube_programs;

/// A library in a PyPI package.
#[derive(Debug, Clone, Copy)]
pub struct GoLibrary {
    /// Name of the library, for messages.
    pub what: &'static str,
    /// Name of the package on PyPI.
    pub package: &'static str,
    /// Version of the package.
    pub version: &'static str,
    /// SHA-256 of its wheel, hexadecimal.
    pub sha256: &'static str,
    file: &'static str,
}

/// Library of Helm 4.3.0.
pub const HELM: GoLibrary = GoLibrary {
    what: "Helm, as a library",
    package: "helm-sdkpy",
    version: "0.1.32",
    sha256: "bcf5bf73cacc373bebedfb9c988969aa12a9eda86a140deba658fbf28eb789c5",
    file: "helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so",
};

/// Library of Kustomize's API 0.21.3.
pub const KUSTOMIZE: GoLibrary = GoLibrary {
    what: "Kustomize, as a library",
    package: "pykustomize",
    version: "0.1.4",
    sha256: "f8da6be12fb35b56158d2f9043a67d39c1ce84eae9c8f344c7ed934709192467",
    file: "pykustomize/_lib/linux-amd64/libpykustomize.so",
};

/// All libraries, in the order of installation.
pub const ALL: [GoLibrary; 2] = [HELM, KUSTOMIZE];

impl GoLibrary {
    /// Returns the directory into which `cargo xtask setup` unpacks the package, beside the
    /// Kubernetes programs.
    ///
    /// # Errors
    /// Returns an error if there is no cache directory.
    pub fn directory(&self) -> Result<PathBuf> {
        let beside = kube_programs::cache()?;
        Ok(beside.with_file_name(format!("{}-{}", self.package, self.version)))
    }

    /// Returns the path of the library.
    ///
    /// # Errors
    /// Returns an error if the library is not installed.
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

    /// Returns the library in this package, for the probe of a need.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn of_package(package: &str) -> Result<Self> {
        ALL.into_iter()
            .find(|library| library.package == package)
            .with_context(|| format!("no library in a package {package}"))
    }
}
