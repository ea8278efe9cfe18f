//! Where etcd, kube-apiserver and their companions are.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// The variable that names a directory with etcd, kube-apiserver and kubectl,
/// as the test environments of other Kubernetes projects use it.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The version of Kubernetes that Debian 12 has.
pub const VERSION: &str = "1.20.2";

/// Where `cargo xtask setup` leaves them: below `$XDG_CACHE_HOME`, or
/// `~/.cache`.
pub fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place for a cache")?;
    Ok(base.join(format!("netdp/kubernetes-{VERSION}")))
}

/// The program of this name: in `$KUBEBUILDER_ASSETS` if that has it, else
/// where setup left it.
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
