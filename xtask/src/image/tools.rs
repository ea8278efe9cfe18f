//! An image for pods of tests, which also holds their namespaces.

use super::buildah::{self, Recipe};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What it is called.
pub const TOOLS: &str = "localhost/netdp-tools:1";

/// Programs of busybox that pods call by their names.
const NAMES: [&str; 4] = ["sh", "sleep", "timeout", "wget"];

/// Its containers sleep unless they are told otherwise.
const DOCKERFILE: &str = "\
FROM scratch
COPY . /
ENV PATH=/bin
USER 0:0
ENTRYPOINT [\"/bin/sleep\", \"infinity\"]
";

/// An image layout, as a tar archive, under any name: with busybox in it and
/// nothing else.
///
/// # Errors
/// `busybox` can't be read, or buildah failed.
pub fn tools(name: &str, busybox: &Path) -> Result<Vec<u8>> {
    let work = tempfile::tempdir()?;
    let [context, dockerfile, archive] =
        ["context", "Dockerfile", "image.tar"].map(|name| work.path().join(name));
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(context.join(directory))?;
    }
    fs::copy(busybox, context.join("bin/busybox"))
        .with_context(|| format!("copying {}", busybox.display()))?;
    for name in NAMES {
        symlink("/bin/busybox", context.join("bin").join(name))?;
    }
    fs::write(&dockerfile, DOCKERFILE)?;
    let recipe = Recipe {
        dockerfile: &dockerfile,
        context: &context,
        arguments: &[],
    };
    buildah::build(recipe, name, &archive)?;
    fs::read(&archive).context("reading the image that buildah wrote")
}
