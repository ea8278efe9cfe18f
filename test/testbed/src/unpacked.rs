//! Locations of programs whose Debian packages `cargo xtask setup` unpacks instead of installing,
//! because the packages would start services.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// Returns netdp's own directory below `$XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn netdp_cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: there is no place for a cache")?;
    Ok(base.join("netdp"))
}

/// Returns the directory that stands for `/usr`, to which `cargo xtask setup` unpacks.
pub fn usr() -> Result<PathBuf> {
    Ok(netdp_cache()?.join("unpacked"))
}

/// Returns the path of a program: in `$PATH` if present, otherwise where setup unpacked it.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(usr().map(|usr| usr.join("bin")))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    match found {
        Some(file) => Ok(file),
        None => bail!("there is no {name}: run `cargo xtask setup`"),
    }
}
