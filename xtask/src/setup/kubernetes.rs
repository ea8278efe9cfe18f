//! Kubernetes for tests and for the cluster demo, from Debian 12's packages.
//!
//! Debian's packages of etcd and kubectl are unpacked, not installed, because etcd would run as a
//! service. The same goes for the static busybox of test pods, which would replace the machine's
//! own. Debian has the other Kubernetes programs only as source.

use super::apt;
use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use testbed::kube_programs::{self, VERSION};

/// Unpacked packages and the program in each.
const UNPACKED: [(&str, &str); 3] = [
    ("etcd-server", "usr/bin/etcd"),
    ("kubernetes-client", "usr/bin/kubectl"),
    ("busybox-static", "bin/busybox"),
];

/// Instructions for manual installation.
pub const BY_HAND: &str = "let KUBEBUILDER_ASSETS name a directory with busybox (a static one), \
                           etcd, kube-apiserver, kube-controller-manager, kube-proxy, kube-scheduler, kubectl and \
                           kubelet (of Kubernetes 1.20 or later)";

/// Directory of Go 1.19 in Debian.
const GO: &str = "/usr/lib/go-1.19/bin";

/// Unpacks the missing packages, builds `wanted` from source, and installs all of it where tests
/// look.
pub fn install_missing(wanted: &[&str]) -> Result<()> {
    let cache = kube_programs::cache()?;
    let work = cache.join("build");
    let missing = |name: &str| kube_programs::find(name).is_err();
    let start = || -> Result<()> {
        // Left behind by an interrupted run.
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))
    };
    for (package, file) in UNPACKED {
        let file = Path::new(file);
        let name = file.file_name().unwrap_or_default();
        if missing(&name.to_string_lossy()) {
            start()?;
            apt::unpack(package, &work)?;
            keep(&work.join(file), &cache.join(name))?;
        }
    }
    if !wanted.is_empty() {
        start()?;
        build(wanted, &work)?;
        for name in wanted {
            let built = work.join("source/_output/local/go/bin").join(name);
            keep(&built, &cache.join(name))?;
        }
    }
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    Ok(())
}

fn build(programs: &[&str], work: &Path) -> Result<()> {
    apt::unpack_source("kubernetes", work)?;
    let source = work.join("source");
    replace_reflect2(&source)?;
    let what: Vec<_> = programs.iter().map(|name| format!("cmd/{name}")).collect();
    let names = programs.join(", ");
    shell::progress(&format!(
        "setup: building {names} {VERSION} (five to ten minutes with two cores, once)"
    ));
    let path = std::env::var("PATH").unwrap_or_default();
    shell::run_with_clock(
        Command::new("make")
            .current_dir(&source)
            .arg(format!("WHAT={}", what.join(" ")))
            .args(["GOLDFLAGS=-s -w", &format!("KUBE_GIT_VERSION=v{VERSION}")])
            .env("PATH", format!("{GO}:{path}"))
            .env("GOCACHE", work.join("gocache"))
            .env("GOPATH", work.join("gopath"))
            .envs([("CGO_ENABLED", "0"), ("GOPROXY", "off")])
            .env("GOFLAGS", "-mod=vendor"),
        &format!("setup: building {names}"),
    )
}

/// Replaces the copy of reflect2 in the sources: it is older than Go 1.18 and misreads its maps, so
/// that the server would panic on some requests. Debian has a newer version.
fn replace_reflect2(source: &Path) -> Result<()> {
    const NEW: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";
    let old = source.join("vendor/github.com/modern-go/reflect2");
    let is_code = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "go" || extension == "s")
    };
    let code_in = |dir: &Path| -> Result<Vec<_>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            files.push(entry?.path());
        }
        files.retain(|path| is_code(path));
        Ok(files)
    };
    for file in code_in(&old)? {
        fs::remove_file(file)?;
    }
    for file in code_in(Path::new(NEW))? {
        fs::copy(&file, old.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Installs a program atomically where tests look.
pub(super) fn keep(program: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(program, &new)
        .and_then(|_| fs::rename(&new, to))
        .with_context(|| format!("keeping {} as {}", program.display(), to.display()))
}
