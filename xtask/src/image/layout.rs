//! The image as an OCI image layout in a tar archive, which `ctr images import`,
//! `skopeo copy oci-archive:` and `podman load` read.

use super::digest;
use super::layer::Layer;
use anyhow::{Context as _, Result};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;

/// The time of an image that shall not depend on when it was made.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What an image is called and says about itself.
#[derive(Debug, Clone)]
pub struct About {
    /// With registry and tag: `localhost/netdp:0.1.0`.
    pub name: String,
    /// For example `0.1.0`.
    pub version: String,
    /// As OCI calls the machine: `amd64` or `arm64`.
    pub arch: Arch,
    /// What is in it, in a word.
    pub title: &'static str,
    /// What a container of it runs unless it is told otherwise.
    pub entrypoint: &'static [&'static str],
}

/// An image layout, packed.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The digest of the image's manifest, by which registries know it.
    pub digest: String,
    /// The tar archive.
    pub archive: Vec<u8>,
}

/// Puts layers together; the first is the lowest.
///
/// # Errors
/// A part of the image can't be described in OCI's terms.
pub fn layout(about: &About, layers: &[Layer]) -> Result<Layout> {
    let mut blobs = Blobs::default();
    let config = blobs.add(MediaType::ImageConfig, configuration(about, layers)?)?;
    let layers = layers
        .iter()
        .map(|layer| blobs.add(MediaType::ImageLayerGzip, layer.packed.clone()))
        .collect::<Result<Vec<_>>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .annotations(labels(about))
        .build()?;
    let mut manifest = blobs.add(MediaType::ImageManifest, canonical(&manifest)?)?;
    let digest = manifest.digest().to_string();
    manifest.set_platform(Some(
        PlatformBuilder::default()
            .architecture(about.arch.clone())
            .os(Os::Linux)
            .build()?,
    ));
    manifest.set_annotations(Some(HashMap::from([
        ("io.containerd.image.name".into(), about.name.clone()),
        (
            "org.opencontainers.image.ref.name".into(),
            about.version.clone(),
        ),
    ])));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![manifest])
        .build()?;
    Ok(Layout {
        digest,
        archive: blobs.pack(&canonical(&index)?)?,
    })
}

/// What the image runs if nobody says otherwise.
fn configuration(about: &About, layers: &[Layer]) -> Result<Vec<u8>> {
    let config = ConfigBuilder::default()
        .user("0:0")
        .env(vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ])
        .entrypoint(
            about
                .entrypoint
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>(),
        )
        .working_dir("/")
        .labels(labels(about))
        .build()?;
    let step = HistoryBuilder::default()
        .created(EPOCH)
        .created_by("cargo xtask image")
        .build()?;
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(
            layers
                .iter()
                .map(|layer| layer.diff_id.clone())
                .collect::<Vec<_>>(),
        )
        .build()?;
    let configuration = ImageConfigurationBuilder::default()
        .created(EPOCH)
        .architecture(about.arch.clone())
        .os(Os::Linux)
        .config(config)
        .rootfs(rootfs)
        .history(vec![step; layers.len()])
        .build()?;
    canonical(&configuration)
}

fn labels(about: &About) -> HashMap<String, String> {
    let label =
        |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.into());
    HashMap::from([
        label("title", about.title),
        label("version", &about.version),
        label("licenses", "Apache-2.0 OR MIT"),
    ])
}

/// JSON with the keys in order: the crate keeps labels in hash maps, whose order
/// is another one in each process.
fn canonical(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

/// Contents by digest, as a layout keeps them.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest = digest(&content);
        let hex = digest.trim_start_matches("sha256:");
        let descriptor = DescriptorBuilder::default()
            .media_type(kind)
            .digest(Sha256Digest::from_str(hex)?)
            .size(content.len() as u64)
            .build()?;
        self.0.insert(hex.to_owned(), content);
        Ok(descriptor)
    }

    fn pack(&self, index: &[u8]) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut file = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            header.set_mtime(0);
            archive
                .append_data(&mut header, path, content)
                .with_context(|| format!("packing {path}"))
        };
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file("index.json", index)?;
        for (hex, content) in &self.0 {
            file(&format!("blobs/sha256/{hex}"), content)?;
        }
        Ok(archive.into_inner()?)
    }
}
