//! Installation of Debian packages with apt.

use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File that lists the security archive, written if no other file lists it.
const SECURITY_LIST: &str = "/etc/apt/sources.list.d/netdp-bookworm-security.list";

/// Keys that sign Debian's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt's sandbox user cannot write to root's directories.
const UNSANDBOXED: [&str; 2] = ["-o", "APT::Sandbox::User=root"];

/// Installs packages without recommended ones.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    update()?;
    if !without_candidate(packages)?.is_empty() {
        add_security_archive()?;
        update()?;
    }
    let absent = without_candidate(packages)?;
    ensure!(
        absent.is_empty(),
        "apt finds no package {}, which is in Debian 12's main or security archive: check that \
         `bookworm` and `bookworm-security`, component main, are among apt's sources, and that \
         their mirrors are up to date",
        absent.join(", ")
    );
    shell::progress(&format!(
        "setup: apt-get install {} (some minutes the first time)",
        packages.join(" ")
    ));
    with_retry(
        || {
            let mut command = apt_get("install");
            command
                .args(["--yes", "--no-install-recommends"])
                .args(packages);
            command
        },
        "installing packages",
    )
}

/// Unpacks a package below `into` without installing it, so that a service in it is not set up.
pub fn unpack(package: &str, into: &Path) -> Result<()> {
    shell::progress(&format!("setup: apt-get download {package}"));
    with_retry(
        || {
            let mut command = apt_get("download");
            command.current_dir(into).args(UNSANDBOXED).arg(package);
            command
        },
        &format!("downloading {package}"),
    )?;
    let archive = only_file(into, &format!("{package}_"), ".deb")?;
    shell::run_as_progress(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(into),
    )
}

/// Unpacks the source of a package of the main archive to `into/source`. The source lists are kept
/// separate, so that the machine's own stay unchanged.
pub fn unpack_source(package: &str, into: &Path) -> Result<()> {
    let archives = archives()?;
    let main = main_archive(&archives).context(
        "apt's sources lack Debian 12's main archive (bookworm, component main), whose sources \
         are needed",
    )?;
    let signed_by = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    let list = into.join("source.list");
    fs::write(&list, format!("deb-src {signed_by}{main} bookworm main\n"))?;
    fs::create_dir_all(into.join("lists/partial"))?;
    let apt = |what: &str| {
        let mut command = apt_get(what);
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        command
            .current_dir(into)
            .args(UNSANDBOXED)
            .args(["-o", &option("Dir::Etc::sourcelist", &list)])
            .args(["-o", "Dir::Etc::sourceparts=/dev/null"])
            .args(["-o", &option("Dir::State::lists", &into.join("lists"))])
            .args([
                "-o",
                "Dir::Cache::pkgcache=",
                "-o",
                "Dir::Cache::srcpkgcache=",
            ]);
        command
    };
    shell::progress(&format!(
        "setup: fetching the source of {package} from {main}"
    ));
    with_retry(|| apt("update"), "fetching the list of sources")?;
    with_retry(
        || {
            let mut command = apt("source");
            command.args(["--download-only", package]);
            command
        },
        &format!("downloading the source of {package}"),
    )?;
    let description = only_file(into, &format!("{package}_"), ".dsc")?;
    // apt has verified the checksums against the signed list.
    shell::run_as_progress(
        Command::new("dpkg-source")
            .current_dir(into)
            .args(["--no-check", "--extract"])
            .arg(description)
            .arg("source"),
    )
}

/// Returns the only file in `dir` whose name has this beginning and end.
fn only_file(dir: &Path, begin: &str, end: &str) -> Result<PathBuf> {
    let mut found = None;
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name.starts_with(begin) && name.ends_with(end) {
            found = Some(dir.join(name));
        }
    }
    found.with_context(|| format!("apt left no {begin}*{end} in {}", dir.display()))
}

fn update() -> Result<()> {
    shell::progress("setup: apt-get update, to know the packages there are");
    with_retry(|| apt_get("update"), "fetching the lists of packages")
}

fn apt_get(what: &str) -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Waits for another apt to finish; fails if a mirror fails.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(["-o", "APT::Update::Error-Mode=any"])
        .args(["-o", "Dpkg::Use-Pty=0", "--quiet", what]);
    command
}

/// Runs a command, and again if it fails: mirrors sometimes fail.
fn with_retry(command: impl Fn() -> Command, what: &str) -> Result<()> {
    if let Err(error) = shell::run_as_progress(&mut command()) {
        shell::progress(&format!("setup: {error}; trying once more"));
        shell::run_as_progress(&mut command()).with_context(|| {
            format!(
                "{what} failed twice; apt's messages are above. Are the network and the mirror up?"
            )
        })?;
    }
    Ok(())
}

/// Returns the packages that apt cannot install, or not in the version with LLVM 22.
fn without_candidate<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let out = Command::new("apt-cache")
        .arg("policy")
        .args(packages)
        .output()
        .context("starting apt-cache")?;
    let known = String::from_utf8_lossy(&out.stdout);
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !has_candidate(&known, package))
        .collect())
}

fn has_candidate(policy: &str, package: &str) -> bool {
    let heading = format!("{package}:");
    policy
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|version| version != "(none)")
}

/// Returns the archives of apt's lists, one per line.
fn archives() -> Result<String> {
    let uris = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Created-By: Packages", "Codename: bookworm"])
        .output()
        .context("starting apt-get")?;
    Ok(String::from_utf8_lossy(&uris.stdout).into_owned())
}

/// Adds the security archive, which has the BPF compiler. A bare Debian 12, as made by debootstrap,
/// lists only the main archive; mirrors carry both.
fn add_security_archive() -> Result<()> {
    let Some(security) = security_beside(&archives()?) else {
        return Ok(());
    };
    let line = format!("deb {security} bookworm-security main\n");
    shell::progress(&format!(
        "setup: the compiler for BPF is in Debian's security archive, which apt's sources lack; \
         adding {SECURITY_LIST}: {line}"
    ));
    fs::write(SECURITY_LIST, line).with_context(|| format!("writing {SECURITY_LIST}"))
}

fn security_beside(uris: &str) -> Option<String> {
    main_archive(uris).map(|main| format!("{main}-security"))
}

fn main_archive(uris: &str) -> Option<&str> {
    uris.lines()
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
curl:
  Installed: (none)
  Candidate: 7.88.1-10
  Version table:
     7.88.1-10 500
llvm-22-dev:
  Installed: (none)
  Candidate: (none)
  Version table:
";

    #[test]
    fn a_candidate_is_a_version() {
        assert!(has_candidate(POLICY, "curl"));
        assert!(!has_candidate(POLICY, "llvm-22-dev"));
        assert!(!has_candidate(POLICY, "never-heard-of"));
    }

    #[test]
    fn the_security_archive_is_beside_the_main_one() {
        let beside = |uris| security_beside(uris).unwrap();
        assert_eq!(
            beside("https://other.example/tools/\nhttp://mirror.example/debian/\n"),
            "http://mirror.example/debian-security"
        );
        assert_eq!(security_beside("http://mirror.example/ubuntu/"), None);
    }
}
