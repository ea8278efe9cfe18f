//! netdp of earlier versions, which upgrades begin with, built from this repository's history.

use super::process::output;
use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Last commit whose maps have layout 1.
const LAYOUT_1: &str = "af468ea9458a31d79cc974580db76bb0ba1859c0";

/// Returns the netdp program of layout 1. Builds it the first time, in two or three minutes; progress
/// goes to standard error.
///
/// # Errors
/// Returns an error if the commit is not in this clone, or the build fails.
pub fn netdp_of_layout_1() -> Result<PathBuf> {
    let dir = target_dir().join("earlier").join(&LAYOUT_1[..12]);
    let program = dir.join("netdp");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    // Tests run side by side; one builds and the others wait.
    let lock = dir.join("lock");
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("waiting for another build")?;
    if !program.exists() {
        build(LAYOUT_1, &dir, &program)
            .context("building netdp of layout 1, which upgrades begin with")?;
    }
    Ok(program)
}

/// Builds netdp as of a commit.
fn build(commit: &str, dir: &Path, program: &Path) -> Result<()> {
    let (source, archive, out) = (dir.join("source"), dir.join("source.tar"), dir.join("out"));
    for left in [&source, &out] {
        if left.exists() {
            fs::remove_dir_all(left).with_context(|| format!("removing {}", left.display()))?;
        }
    }
    fs::create_dir(&source).with_context(|| format!("making {}", source.display()))?;
    ensure_known(commit)?;
    eprintln!("netdp: building netdp of commit {commit}, two or three minutes");
    let mut git = git();
    git.arg("archive").arg("--output").arg(&archive).arg(commit);
    output(&mut git)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&source);
    output(&mut tar)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&source)
        .args([
            "build",
            "--locked",
            "--package",
            "netdp-user",
            "--bin",
            "netdp",
        ])
        // Its own, although dependencies are built twice: cargo names the build directory of a package
        // by its place in the workspace. In a shared one, either version would be given the eBPF
        // object of the other.
        .arg("--target-dir")
        .arg(&out)
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "cargo build: {status}");
    let built = out.join("debug/netdp");
    fs::rename(&built, program).with_context(|| format!("moving {}", built.display()))?;
    for left in [&source, &out] {
        fs::remove_dir_all(left).with_context(|| format!("removing {}", left.display()))?;
    }
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}

/// Checks that the commit is in this clone.
fn ensure_known(commit: &str) -> Result<()> {
    let mut git = git();
    git.args(["cat-file", "-e"])
        .arg(format!("{commit}^{{commit}}"));
    let known = git.output().context("starting git")?;
    if known.status.success() {
        return Ok(());
    }
    bail!(
        "commit {commit} is not in {}, where it is looked up with git. A shallow clone gets it with \
         `git fetch --unshallow`. git wrote: {}",
        root().display(),
        String::from_utf8_lossy(&known.stderr).trim()
    )
}

/// Returns a git command in this workspace, whoever owns it.
fn git() -> Command {
    let mut git = Command::new("git");
    let trusted = format!("safe.directory={}", root().display());
    git.arg("-C").arg(root()).arg("-c").arg(trusted);
    git
}

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}

/// Returns the target directory of this workspace.
fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root().join(named.unwrap_or_else(|| "target".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_not_in_the_clone_is_explained() {
        let told = format!("{:#}", ensure_known(&"0".repeat(40)).unwrap_err());
        for words in ["is not in", "git fetch --unshallow"] {
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
        ensure_known(LAYOUT_1).expect("the last commit of layout 1");
    }
}
