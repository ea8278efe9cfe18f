//! The archive: tar, compressed by gzip.

use super::BundleFile;
use crate::time;
use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

/// Directory that the archive unpacks to.
const DIRECTORY: &str = "netdp-bundle";

/// Packs the files.
///
/// # Errors
/// Returns an error if a name does not fit in the format.
pub(super) fn pack(files: &[BundleFile]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for file in files {
        let mut header = Header::new_gnu();
        header.set_size(file.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time::now());
        let path = format!("{DIRECTORY}/{}", file.name);
        builder
            .append_data(&mut header, &path, file.text.as_bytes())
            .with_context(|| format!("packing {path}"))?;
    }
    let packed = builder.into_inner().context("packing")?;
    packed.finish().context("compressing")
}
