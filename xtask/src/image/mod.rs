//! An OCI image with netdp in it, Debian's iptables and nft, and nothing that they
//! do not use, made without a container engine. The same sources, compiler and packages
//! give the same image.

mod binary;
mod debian;
mod layer;
mod layout;
mod sbom;
mod tools;

use crate::shell;
use anyhow::{Context as _, Result};
use layer::Tree;
use layout::About;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

pub use tools::{TOOLS, tools};

/// Where the program is in the image.
const PROGRAM: &str = "usr/local/bin/netdp";

/// Where documents are in the image.
const DOCUMENTS: &str = "usr/share/doc/netdp";

/// The names under which manifests of others start what netdp replaces:
/// ip-masq-agent's image has its program at the top, and k8s-custom-iptables runs
/// `sh -c /run.sh`. There is no shell: netdp knows this one command line.
const NAMES: [&str; 3] = ["ip-masq-agent", "run.sh", "bin/sh"];

/// A directory that the image is mounted or written below.
const DIRECTORIES: [&str; 6] = ["cfg", "dev", "etc/config", "proc", "run/netdp", "sys"];

/// The name of the image unless it is given another. No registry answers to
/// `localhost`: nobody else's image can be pulled by mistake.
pub const NAME: &str = concat!("localhost/netdp:", env!("CARGO_PKG_VERSION"));

/// What a container of the image runs; its arguments come after it, as those of
/// ip-masq-agent come after its entrypoint.
pub const ENTRYPOINT: [&str; 2] = ["/usr/local/bin/netdp", "run"];

/// An image that was made.
#[derive(Debug, Clone)]
pub struct Image {
    /// The OCI image layout, a tar archive.
    pub archive: PathBuf,
    /// The CycloneDX document.
    pub sbom: PathBuf,
    /// The program in it, which needs nothing else.
    pub program: PathBuf,
    /// The digest of the manifest.
    pub digest: String,
    /// The size of the program, in bytes.
    pub program_size: u64,
    /// The size of the archive, in bytes.
    pub size: u64,
}

/// Builds netdp in a target directory and puts the image into `image` in it.
///
/// # Errors
/// Building failed, or a file can't be written.
pub fn make(name: &str, target_dir: &Path) -> Result<Image> {
    let (target, arch) = binary::target()?;
    let program = binary::build(&target, target_dir)?;
    let mut sbom = sbom::document(&sbom::metadata(&target)?)?;
    let (tree, packages) = debian::netfilter()?;
    sbom::add(&mut sbom, packages);
    let sbom = serde_json::to_vec_pretty(&sbom)?;
    let about = About {
        name: name.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        arch,
        title: "netdp",
        entrypoint: &ENTRYPOINT,
    };
    let layers = [tree.pack()?, contents(&read(&program)?, &sbom)?.pack()?];
    let layout = layout::layout(&about, &layers)?;
    let stem = format!("netdp-{}-{}", about.version, about.arch);
    let image = Image {
        archive: target_dir.join(format!("image/{stem}.tar")),
        sbom: target_dir.join(format!("image/{stem}.cdx.json")),
        digest: layout.digest,
        program_size: fs::metadata(&program)?.len(),
        size: layout.archive.len() as u64,
        program,
    };
    write(&image.archive, &layout.archive)?;
    write(&image.sbom, &sbom)?;
    Ok(image)
}

/// The directory that cargo builds in.
///
/// # Errors
/// Cargo does not say.
pub fn target_dir() -> Result<PathBuf> {
    Ok(sbom::metadata(&binary::target()?.0)?
        .target_directory
        .into_std_path_buf())
}

/// The files of the image.
fn contents(program: &[u8], sbom: &[u8]) -> Result<Tree> {
    let mut tree = Tree::default();
    for directory in DIRECTORIES {
        tree.directory(directory);
    }
    tree.file(PROGRAM, 0o755, program);
    for name in NAMES {
        tree.link(name, &format!("/{PROGRAM}"));
    }
    tree.file("etc/passwd", 0o644, "root:x:0:0:root:/:/sbin/nologin\n");
    tree.file("etc/group", 0o644, "root:x:0:\n");
    tree.file(&format!("{DOCUMENTS}/sbom.cdx.json"), 0o644, sbom);
    for document in ["LICENSE-APACHE", "LICENSE-MIT", "docs/operations.md"] {
        let name = document.rsplit('/').next().unwrap_or(document);
        let content = read(&shell::root().join(document))?;
        tree.file(&format!("{DOCUMENTS}/{name}"), 0o644, content);
    }
    Ok(tree)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

/// A digest in OCI's form, `sha256:…`.
fn digest(content: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
