//! Image builds with buildah, which is in Debian 12.

use crate::shell;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Input of an image build.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// Path of the Dockerfile.
    pub dockerfile: &'a Path,
    /// Build context: the directory from which it copies files.
    pub context: &'a Path,
    /// Values of its `ARG`s.
    pub arguments: &'a [(&'a str, &'a str)],
}

/// Builds an image and writes it to a tar archive, as an OCI image layout. Returns the digest of
/// its manifest, by which registries identify it. The same files give the same digest: all times
/// are 0, and no cached layer is used.
///
/// # Errors
/// Returns an error if buildah fails, with its message on standard error, or if its files cannot be
/// written.
pub fn build(recipe: Recipe<'_>, name: &str, archive: &Path) -> Result<String> {
    // A separate image store: the machine's own is not used.
    let work = tempfile::tempdir().context("making a directory for buildah")?;
    let buildah = |what: &str| {
        let mut command = Command::new("buildah");
        command
            // Works on every file system, and inside a container.
            .args(["--storage-driver", "vfs"])
            .arg("--root")
            .arg(work.path().join("store"))
            .arg("--runroot")
            .arg(work.path().join("run"))
            .arg(what);
        command
    };
    let mut bud = buildah("bud");
    bud.args(["--quiet", "--format", "oci", "--timestamp", "0"])
        // Does not need runc or user namespaces.
        .args(["--isolation", "chroot"])
        // The label contains buildah's version, which must not affect the image.
        .args(["--identity-label=false", "--no-cache"]);
    for (name, value) in recipe.arguments {
        bud.arg("--build-arg").arg(format!("{name}={value}"));
    }
    bud.args(["--tag", name, "--file"])
        .arg(recipe.dockerfile)
        .arg(recipe.context);
    // It prints the digest of the configuration, not of the image.
    shell::run(bud.stdout(Stdio::null()))?;

    let digest = work.path().join("digest");
    let layout = work.path().join("layout");
    shell::run_as_progress(
        buildah("push")
            .args(["--quiet", "--compression-level", "9", "--digestfile"])
            .arg(&digest)
            .arg(name)
            .arg(format!("oci:{}:{name}", layout.display())),
    )?;
    // buildah's own archives hold the times at which it wrote their files.
    shell::run_as_progress(
        Command::new("tar")
            .args(["--create", "--sort=name", "--format=gnu", "--mtime=@0"])
            .args([
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mode=u=rwX,go=rX",
            ])
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(&layout)
            .args(["blobs", "index.json", "oci-layout"]),
    )?;
    fs::read_to_string(&digest)
        .map(|digest| digest.trim().to_owned())
        .context("reading the digest that buildah wrote")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Builds an image of one file in a directory of its own; returns its digest and its archive.
    fn built(content: &str, mode: u32) -> (String, Vec<u8>) {
        let work = tempfile::tempdir().unwrap();
        let [context, dockerfile, archive] =
            ["context", "Dockerfile", "image.tar"].map(|name| work.path().join(name));
        fs::create_dir(&context).unwrap();
        let file = context.join("file");
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        fs::write(
            &dockerfile,
            "FROM scratch\nARG VERSION\nLABEL version=$VERSION\nCOPY file /file\n",
        )
        .unwrap();
        // An existing file is replaced.
        fs::write(&archive, "no archive").unwrap();
        let recipe = Recipe {
            dockerfile: &dockerfile,
            context: &context,
            arguments: &[("VERSION", "1")],
        };
        let digest = build(recipe, "localhost/test:1", &archive).unwrap();
        (digest, fs::read(&archive).unwrap())
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        let (first, archive) = built("one", 0o644);
        let text = String::from_utf8_lossy(&archive).into_owned();
        for part in ["index.json", "oci-layout", &first, "localhost/test:1"] {
            assert!(text.contains(part), "{part}");
        }
        let (again, other) = built("one", 0o644);
        assert_eq!(again, first);
        assert!(other == archive, "two archives of one image differ");
        assert_ne!(built("two", 0o644).0, first);
        assert_ne!(built("one", 0o755).0, first);
    }

    #[test]
    fn a_context_that_lacks_a_file_is_an_error() {
        let work = tempfile::tempdir().unwrap();
        let dockerfile = work.path().join("Dockerfile");
        fs::write(&dockerfile, "FROM scratch\nCOPY file /file\n").unwrap();
        let recipe = Recipe {
            dockerfile: &dockerfile,
            context: work.path(),
            arguments: &[],
        };
        let archive = work.path().join("image.tar");
        assert!(build(recipe, "localhost/test:1", &archive).is_err());
        assert!(!archive.exists());
    }
}
