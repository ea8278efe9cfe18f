//! Manipulation of pinned links by third parties.

use anyhow::{Context as _, Result};
use aya::EbpfLoader;
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use std::path::Path;

/// Replaces the program of a pinned TCX link by one whose maps contain no uplink, so that it leaves
/// every packet unmodified.
pub fn update_to_stranger(pin: &Path) -> Result<()> {
    static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdp-ebpf"));
    let mut loader = EbpfLoader::new();
    for map in ["SNAT", "REV_SNAT", "INBOUND"] {
        loader.map_max_entries(map, 1024);
    }
    let mut object = loader.load(OBJECT)?;
    let program = object
        .program_mut("ingress_rev_snat")
        .context("no program")?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load()?;
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
    Ok(())
}
