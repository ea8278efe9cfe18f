//! Debian 12's iptables (both backends and both families) and nft, with the libraries that they
//! need: apt resolves them, mmdebstrap extracts them. Nothing is installed, and no package script
//! runs.

use crate::shell;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Packages of the programs that netdp runs.
const PACKAGES: &str = "iptables,nftables";

/// Excluded paths, in dpkg's syntax: documentation except the licences, character sets, and files
/// that no program of the image loads.
const FILTERS: [&str; 9] = [
    "path-exclude=/usr/share/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/bin/*",
    "path-exclude=/usr/lib/*/gconv*",
    "path-exclude=/lib/systemd*",
    "path-exclude=/lib/*/libmvec.so.*",
    "path-exclude=/lib/*/libnss_*",
    "path-exclude=/lib/*/libnsl.so.*",
    "path-exclude=/etc/*",
];

/// Writes apt's metadata of each package to `status.d`, where image scanners look for packages that
/// were installed without dpkg.
const WRITE_STATUS: &str = r#"
set -e
mkdir "$1/var/lib/dpkg/status.d"
for package in "$1"/var/cache/apt/archives/*.deb; do
    name=$(dpkg-deb --field "$package" Package)
    dpkg-deb --field "$package" >"$1/var/lib/dpkg/status.d/$name"
done"#;

/// Directory, in an unpacked tree, that [`WRITE_STATUS`] writes.
const STATUS: &str = "var/lib/dpkg/status.d";

/// Paths that become part of the image.
const KEPT: [&str; 3] = ["./lib*", "./usr", "./var/lib/dpkg/status.d"];

/// Unpacks the packages below `into`, which must not exist, in the current versions of apt's
/// archives.
///
/// # Errors
/// Returns an error if apt cannot download a package, or if a file cannot be written.
pub fn unpack(into: &Path) -> Result<()> {
    let above = into.parent().context("no directory for the packages")?;
    // In the same file system, so that it can be renamed when it is complete.
    let work = tempfile::tempdir_in(above)?;
    let archive = work.path().join("debian.tar");
    let tree = work.path().join("tree");
    shell::progress(&format!("mmdebstrap --include={PACKAGES} (half a minute)"));
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .env("SOURCE_DATE_EPOCH", "0")
        .args(["--quiet", "--variant=extract", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        .arg(format!("--extract-hook={WRITE_STATUS}"));
    for filter in FILTERS {
        mmdebstrap.arg(format!("--dpkgopt={filter}"));
    }
    mmdebstrap.arg("bookworm").arg(&archive).args(sources()?);
    shell::run_as_progress(&mut mmdebstrap)?;
    fs::create_dir(&tree)?;
    shell::run_as_progress(
        Command::new("tar")
            .args(["--extract", "--no-same-owner", "--wildcards", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&tree)
            .args(KEPT),
    )?;
    fs::rename(&tree, into).with_context(|| format!("moving {} into place", into.display()))
}

/// Returns this machine's Debian 12 archives as lines of a sources.list, because their mirror is
/// known to work. If there are none, mmdebstrap uses Debian's own.
fn sources() -> Result<Vec<String>> {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format"])
        .arg("deb $(REPO_URI) $(CODENAME) $(COMPONENT)")
        .args(["Created-By: Packages", "Origin: Debian", "Component: main"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting apt-get")?;
    ensure!(
        targets.status.success(),
        "apt-get indextargets: {}",
        targets.status
    );
    Ok(of_debian_12(&String::from_utf8_lossy(&targets.stdout)))
}

fn of_debian_12(sources: &str) -> Vec<String> {
    let mut lines: Vec<_> = sources
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(2)
                .is_some_and(|suite| suite.starts_with("bookworm"))
        })
        .map(str::to_owned)
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Returns the packages of an unpacked tree as components of the bill of materials.
///
/// # Errors
/// Returns an error if the tree has no package list, or if an entry cannot be read.
pub fn components(tree: &Path) -> Result<Vec<Value>> {
    let status = tree.join(STATUS);
    let mut files = fs::read_dir(&status)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .with_context(|| format!("listing {}", status.display()))?;
    ensure!(!files.is_empty(), "no package in {}", status.display());
    files.sort_unstable();
    files
        .iter()
        .map(|path| {
            let fields = fs::read_to_string(path)?;
            component(&fields).with_context(|| format!("no package in {}", path.display()))
        })
        .collect()
}

/// Returns the component for a package, from the fields of its control file.
fn component(fields: &str) -> Option<Value> {
    let field = |name: &str| {
        fields
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let [name, version, arch] = [field("Package")?, field("Version")?, field("Architecture")?];
    let purl = format!("pkg:deb/debian/{name}@{version}?arch={arch}&distro=debian-12");
    Some(json!({
        "type": "library",
        "name": name,
        "version": version,
        "bom-ref": purl,
        "purl": purl,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_of_debian_12_are_taken() {
        let sources = "\
deb http://mirror.example/debian/ bookworm main
deb http://mirror.example/debian/ trixie main
deb http://mirror.example/debian-security/ bookworm-security main
deb http://mirror.example/debian/ bookworm main
";
        assert_eq!(
            of_debian_12(sources),
            [
                "deb http://mirror.example/debian-security/ bookworm-security main",
                "deb http://mirror.example/debian/ bookworm main",
            ]
        );
        assert!(of_debian_12("").is_empty());
    }

    #[test]
    fn a_package_is_described_by_its_control_file() {
        let fields =
            "Package: libgmp10\nSource: gmp\nVersion: 2:6.2.1+dfsg1-1.1\nArchitecture: amd64\n";
        let component = component(fields).unwrap();
        assert_eq!(component["version"], "2:6.2.1+dfsg1-1.1");
        assert_eq!(
            component["purl"],
            "pkg:deb/debian/libgmp10@2:6.2.1+dfsg1-1.1?arch=amd64&distro=debian-12"
        );
        assert!(super::component("Package: libgmp10\n").is_none());
    }
}
