//! Shadow mode: netdp translates nothing and compares its decisions with netfilter's.

use super::super::RunOptions;
use super::Engine;
use crate::datapath;
use crate::shadow::Shadow;
use crate::state_dir::StateDir;
use anyhow::{Result, bail};

pub(super) fn start(options: &RunOptions) -> Result<Engine> {
    if datapath::is_pinned(&options.bpffs) {
        bail!(
            "an eBPF datapath is in force in {}: there is nothing to compare with; remove it with \
             netdp detach",
            options.bpffs.display()
        );
    }
    let dir = StateDir::at(&options.state_dir);
    Ok(Engine::Shadow(Shadow::start(&options.chains.name, dir)?))
}
