//! Image of test pods and of their sandboxes.

use super::buildah::{self, Recipe};
use anyhow::{Context as _, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Name of the image.
pub const TOOLS: &str = "localhost/netdp-tools:1";

/// busybox applets that pods call by name.
const NAMES: [&str; 4] = ["sh", "sleep", "timeout", "wget"];

/// Dockerfile of the image; its default command sleeps.
const DOCKERFILE: &str = "\
FROM scratch
COPY . /
ENV PATH=/bin
USER 0:0
ENTRYPOINT [\"/bin/sleep\", \"infinity\"]
";

/// Returns an image with busybox and nothing else, as a tar archive of an OCI image layout, under
/// any name.
///
/// # Errors
/// Returns an error if `busybox` cannot be read or buildah fails.
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
