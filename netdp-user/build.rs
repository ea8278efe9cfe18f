//! Builds netdp-ebpf for the BPF target and puts the object into `OUT_DIR`.

use anyhow::Result;
use std::path::Path;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=../netdp-common/src");
    println!("cargo:rerun-if-changed=build.rs");
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../netdp-ebpf");
    ebpf_builder::build("netdp-ebpf", "netdp-ebpf", &root, &[])
}
