//! An OCI image with netdp, Debian's iptables and nft, and nothing that they do not use. buildah
//! builds it from `deploy/Dockerfile`. The same sources, compiler and packages give the same image.

mod binary;
mod buildah;
mod debian;
mod revision;
mod sbom;
mod tools;
mod workspace;

use crate::shell;
use anyhow::{Context as _, Result, ensure};
use buildah::Recipe;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use tools::{TOOLS, tools};
pub use workspace::target_dir;

/// Documents in the image besides the bill of materials.
const DOCUMENTS: [&str; 4] = [
    "LICENSE-APACHE",
    "LICENSE-GPL2",
    "LICENSE-MIT",
    "docs/operations.md",
];

/// Shells, and where they look for completions below `/usr/local/share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/netdp"),
    ("fish", "fish/vendor_completions.d/netdp.fish"),
    ("zsh", "zsh/site-functions/_netdp"),
];

/// Default name of the image. No registry answers at `localhost`, so no third party's image can be
/// pulled by mistake.
pub const NAME: &str = concat!("localhost/netdp:", env!("CARGO_PKG_VERSION"));

/// Entrypoint of the image; arguments follow it, as those of ip-masq-agent follow its entrypoint.
pub const ENTRYPOINT: [&str; 2] = ["/usr/local/bin/netdp", "run"];

/// A built image and its files.
#[derive(Debug, Clone)]
pub struct Image {
    /// Path of the OCI image layout, a tar archive.
    pub archive: PathBuf,
    /// Path of the CycloneDX document.
    pub sbom: PathBuf,
    /// Path of the program in it, which is statically linked.
    pub program: PathBuf,
    /// Digest of the manifest, by which registries identify the image.
    pub digest: String,
    /// Architecture as OCI names it: `amd64` or `arm64`.
    pub arch: &'static str,
    /// Size of the program in bytes.
    pub program_size: u64,
    /// Size of the archive in bytes.
    pub size: u64,
}

/// Source of the Debian packages, and with it what an image is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// The current versions in apt's archives: for use. The program names the revision of the sources.
    Latest,
    /// Those of the last build in this target directory, if there was one: for tests.
    Kept,
}

/// Builds netdp in a target directory and puts the image into its `image` directory, with the
/// packages of the last build.
///
/// # Errors
/// Returns an error if a build fails, or if a file cannot be written.
pub fn make(name: &str, target_dir: &Path) -> Result<Image> {
    make_with(name, target_dir, Packages::Kept)
}

/// Builds the image as [`make`] does, with a choice of the packages.
///
/// # Errors
/// Returns an error if a build fails, if apt cannot download a package, or if a file cannot be
/// written.
pub fn make_with(name: &str, target_dir: &Path, packages: Packages) -> Result<Image> {
    let (target, arch) = binary::target()?;
    // What is built for tests has none, so that it is not built anew for each commit.
    let revision = match packages {
        Packages::Latest => revision::revision(&shell::root()),
        Packages::Kept => None,
    };
    let program = binary::build(&target, target_dir, revision.as_deref())?;
    let directory = target_dir.join("image");
    make_directory(&directory)?;
    let _turn = turn(&directory.join("lock"))?;

    let context = directory.join("context");
    make_directory(&context)?;
    let debian = context.join("debian");
    if packages == Packages::Latest {
        remove_tree(&debian)?;
    }
    if !debian.exists() {
        debian::unpack(&debian)?;
    }
    let sbom = sbom::document(&target, debian::components(&debian)?)?;
    let sbom = serde_json::to_vec_pretty(&sbom)?;
    fill(&context, &program, &sbom)?;

    let stem = format!("netdp-{}-{arch}", env!("CARGO_PKG_VERSION"));
    let archive = directory.join(format!("{stem}.tar"));
    shell::progress("buildah bud --file deploy/Dockerfile");
    let recipe = Recipe {
        dockerfile: &dockerfile(),
        context: &context,
        arguments: &[
            ("VERSION", env!("CARGO_PKG_VERSION")),
            ("REVISION", revision.as_deref().unwrap_or("unknown")),
        ],
    };
    let digest = buildah::build(recipe, name, &archive)?;
    let image = Image {
        sbom: directory.join(format!("{stem}.cdx.json")),
        digest,
        arch,
        program_size: fs::metadata(&program)?.len(),
        size: fs::metadata(&archive)?.len(),
        program,
        archive,
    };
    write(&image.sbom, &sbom)?;
    Ok(image)
}

fn dockerfile() -> PathBuf {
    shell::root().join("deploy/Dockerfile")
}

/// Acquires an exclusive lock, which is held until the file is dropped.
fn turn(path: &Path) -> Result<File> {
    let lock = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    lock.lock()
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(lock)
}

/// Fills the build context with everything except Debian's packages. The umask has no effect on it.
fn fill(context: &Path, program: &Path, sbom: &[u8]) -> Result<()> {
    let documents = context.join("doc");
    let rootfs = context.join("rootfs");
    for directory in [&documents, &rootfs] {
        remove_tree(directory)?;
    }
    make_directory(&documents)?;
    copy(program, &context.join("netdp"))?;
    describe(program, &context.join("share"))?;
    for document in DOCUMENTS {
        let from = shell::root().join(document);
        let name = from.file_name().unwrap_or(from.as_os_str());
        copy(&from, &documents.join(name))?;
    }
    write(&documents.join("sbom.cdx.json"), sbom)?;
    // Copies symbolic links as links.
    shell::run_as_progress(
        Command::new("cp")
            .args(["--recursive", "--no-dereference"])
            .arg(shell::root().join("deploy/rootfs"))
            .arg(&rootfs),
    )?;
    shell::run_as_progress(
        Command::new("chmod")
            .args(["--recursive", "u=rwX,go=rX"])
            .args([&documents, &rootfs, &context.join("share")]),
    )
}

/// Makes a directory with the man pages and the completions of the program, as they lie in
/// `/usr/local/share`.
///
/// # Errors
/// Returns an error if the program fails, or if a file cannot be written.
pub fn describe(program: &Path, share: &Path) -> Result<()> {
    remove_tree(share)?;
    let pages = share.join("man/man1");
    shell::run_as_progress(Command::new(program).args(["man", "--dir"]).arg(&pages))?;
    for (name, file) in COMPLETIONS {
        let path = share.join(file);
        if let Some(directory) = path.parent() {
            make_directory(directory)?;
        }
        let script = Command::new(program).args(["completion", name]).output();
        let script = script.with_context(|| format!("running {}", program.display()))?;
        ensure!(
            script.status.success() && !script.stdout.is_empty(),
            "netdp completion {name} failed: {}",
            String::from_utf8_lossy(&script.stderr)
        );
        write(&path, &script.stdout)?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} readable", path.display()))
}

fn remove_tree(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_has_the_entrypoint_that_tests_run() {
        let dockerfile = fs::read_to_string(dockerfile()).unwrap();
        let entrypoint = dockerfile
            .lines()
            .find_map(|line| line.strip_prefix("ENTRYPOINT "))
            .unwrap();
        let words: Vec<String> = serde_json::from_str(entrypoint).unwrap();
        assert_eq!(words, ENTRYPOINT);
    }
}
