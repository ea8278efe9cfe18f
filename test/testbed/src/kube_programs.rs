//! Locations of etcd, kube-apiserver and the other Kubernetes programs.

use super::unpacked::netdp_cache;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Environment variable with a directory of etcd, kube-apiserver and kubectl, as in the test
/// environments of other Kubernetes projects.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// Kubernetes version in Debian 12.
pub const VERSION: &str = "1.20.2";

/// Returns the directory to which `cargo xtask setup` installs them: below `$XDG_CACHE_HOME` or
/// `~/.cache`.
pub fn cache() -> Result<PathBuf> {
    Ok(netdp_cache()?.join(format!("kubernetes-{VERSION}")))
}

/// Returns the path of a program: in `$KUBEBUILDER_ASSETS` if present, otherwise where setup
/// installed it.
pub fn find(name: &str) -> Result<PathBuf> {
    let assets = std::env::var_os(ASSETS).map(PathBuf::from);
    let found = assets
        .into_iter()
        .chain(cache().ok())
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    match found {
        Some(file) => Ok(file),
        None => bail!(
            "there is no {name}: run `cargo xtask setup`, or let {ASSETS} name a directory that \
             has it"
        ),
    }
}
