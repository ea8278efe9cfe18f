//! Debian's iptables, both kinds and both families, and nft: programs, their
//! modules, and the libraries that they are linked with. Packages are unpacked, not installed.

use super::layer::Tree;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use tar::{Archive, EntryType};

/// What `apt-cache depends --recurse` lists for iptables and nftables, without what
/// their programs do not load.
const PACKAGES: [&str; 17] = [
    "iptables",
    "libbsd0",
    "libc6",
    "libedit2",
    "libgmp10",
    "libip4tc2",
    "libip6tc2",
    "libjansson4",
    "libmd0",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftables1",
    "libnftnl11",
    "libtinfo6",
    "libxtables12",
    "nftables",
];

/// The part of a package's name that names the machine.
const LIBRARIES: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};

/// The files, and for each package its entry in the bill of materials.
///
/// # Errors
/// apt can't download a package, or a package is not what it was.
pub fn netfilter() -> Result<(Tree, Vec<Value>)> {
    let directory = tempfile::tempdir()?;
    shell::say(&format!("apt-get download {}", PACKAGES.join(" ")));
    shell::run_as_progress(
        Command::new("apt-get")
            .current_dir(directory.path())
            // The user that apt downloads as can't write here.
            .args(["-o", "APT::Sandbox::User=root", "--quiet", "download"])
            .args(PACKAGES),
    )?;
    let mut archives: Vec<_> = fs::read_dir(directory.path())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    archives.sort();
    ensure!(
        archives.len() == PACKAGES.len(),
        "apt-get left {archives:?}"
    );
    let mut tree = Tree::default();
    let mut components = Vec::new();
    for archive in archives {
        unpack(&archive, &mut tree).with_context(|| format!("unpacking {}", archive.display()))?;
        components.push(component(&archive)?);
    }
    // The lock of iptables-legacy; pods mount the node's.
    tree.file("run/xtables.lock", 0o600, "");
    Ok((tree, components))
}

fn unpack(package: &Path, tree: &mut Tree) -> Result<()> {
    let unpacked = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .output()
        .context("starting dpkg-deb")?;
    ensure!(unpacked.status.success(), "dpkg-deb: {}", unpacked.status);
    for entry in Archive::new(unpacked.stdout.as_slice()).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./");
        if !is_wanted(path) {
            continue;
        }
        match entry.header().entry_type() {
            EntryType::Regular => {
                let mode = entry.header().mode()?;
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                tree.file(path, mode, content);
            }
            EntryType::Symlink => {
                let to = entry.link_name()?.context("a link to nothing")?;
                tree.link(path, &to.to_string_lossy());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Programs, libraries that they load, licences.
fn is_wanted(path: &str) -> bool {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let in_libraries =
        directory == format!("lib/{LIBRARIES}") || directory == format!("usr/lib/{LIBRARIES}");
    let of_libc = ["ld-linux", "libc.so", "libm.so"];
    let of_netfilter = ["libip", "libmnl", "libnf", "libxtables"];
    let of_nft = [
        "libbsd.so",
        "libedit.so",
        "libgmp.so",
        "libjansson.so",
        "libmd.so",
        "libtinfo.so",
    ];
    path.starts_with("usr/sbin/")
        || directory == "lib64"
        || directory == "lib"
        || directory == format!("usr/lib/{LIBRARIES}/xtables")
        || (in_libraries
            && of_libc
                .iter()
                .chain(&of_netfilter)
                .chain(&of_nft)
                .any(|prefix| file.starts_with(prefix)))
        || (directory.starts_with("usr/share/doc/") && file == "copyright")
}

/// `NAME_VERSION_ARCH.deb` as a component of the bill of materials.
fn component(package: &Path) -> Result<Value> {
    let name = package.file_stem().unwrap_or_default().to_string_lossy();
    let fields: Vec<&str> = name.split('_').collect();
    let [name, version, arch] = fields[..] else {
        anyhow::bail!("{name} is no package's file name");
    };
    // apt writes the colon of an epoch so.
    let version = version.replace("%3a", ":");
    let purl = format!("pkg:deb/debian/{name}@{version}?arch={arch}&distro=debian-12");
    Ok(json!({
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
    fn only_what_the_programs_load_is_taken() {
        for wanted in [
            "usr/sbin/xtables-nft-multi",
            "usr/sbin/nft",
            "usr/lib/x86_64-linux-gnu/libgmp.so.10",
            "lib/x86_64-linux-gnu/libtinfo.so.6",
            "lib/x86_64-linux-gnu/libc.so.6",
            "lib64/ld-linux-x86-64.so.2",
            "usr/lib/x86_64-linux-gnu/libnftnl.so.11",
            "usr/lib/x86_64-linux-gnu/xtables/libxt_addrtype.so",
            "usr/share/doc/iptables/copyright",
        ] {
            let wanted = wanted.replace("x86_64-linux-gnu", LIBRARIES);
            assert!(is_wanted(&wanted), "{wanted}");
        }
        for unwanted in [
            "lib/x86_64-linux-gnu/libnss_files.so.2",
            "lib/x86_64-linux-gnu/libtic.so.6",
            "usr/share/man/man8/iptables.8.gz",
            "usr/lib/x86_64-linux-gnu/gconv/UTF-7.so",
            "etc/ld.so.conf.d/x86_64-linux-gnu.conf",
        ] {
            assert!(!is_wanted(unwanted), "{unwanted}");
        }
    }

    #[test]
    fn a_package_is_named_by_its_file() {
        let component = component(Path::new("/t/libc6_2.36-9+deb12u14_amd64.deb")).unwrap();
        assert_eq!(component["version"], "2.36-9+deb12u14");
        assert_eq!(
            component["purl"],
            "pkg:deb/debian/libc6@2.36-9+deb12u14?arch=amd64&distro=debian-12"
        );
    }
}
