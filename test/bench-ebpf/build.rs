//! Linker options of the eBPF object; with the feature `object`, builds it.

use anyhow::Result;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH")? == "bpf" {
        // As in netdp-ebpf's build script.
        println!("cargo:rustc-link-arg=--disable-expand-memcpy-in-order");
    }
    #[cfg(feature = "object")]
    {
        println!("cargo:rerun-if-changed=../../netdp-common/src");
        let root = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
        ebpf_builder::build("bench-ebpf", "netdp-bench", &root, &["programs"])?;
    }
    Ok(())
}
