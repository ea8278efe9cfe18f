//! `netdp support-bundle`.

use super::args::{CniDir, InstancePaths};
use crate::bundle::{self, Options};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// End of the help text.
const EXAMPLES: &str = "\
The bundle has no Secrets, kubeconfigs, tokens or environment, and no document of the configuration.
It has names of pods and addresses, unless --anonymous replaces them.

Examples:
  netdp support-bundle --preview
  netdp support-bundle -o bundle.tar.gz --anonymous";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SupportBundle {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Archive to write (tar.gz); - is standard output. Only its owner can read it. The
    /// default is netdp-bundle-NODE-SECONDS.tar.gz in the working directory.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// List the files and their sizes, and write none.
    #[arg(long, conflicts_with = "output")]
    preview: bool,
    /// Replace pods, namespaces, nodes, hosts and addresses by substitutes, the same throughout the bundle.
    /// Addresses that share a prefix go on sharing one.
    #[arg(long)]
    anonymous: bool,
    /// Include single mappings, the 10,000 with most bytes.
    #[arg(long)]
    flows: bool,
    #[command(flatten)]
    pods: CniDir,
}

impl SupportBundle {
    /// Runs the command.
    ///
    /// # Errors
    /// Returns an error if the archive can't be written.
    pub(super) fn run(&self) -> Result<()> {
        bundle::make(&Options {
            bpffs: &self.paths.bpffs,
            state_dir: &self.paths.state_dir,
            cni_dir: &self.pods.cni_dir,
            tool_dirs: &self.paths.programs,
            output: self.output.as_deref(),
            preview: self.preview,
            anonymous: self.anonymous,
            flows: self.flows,
        })
    }
}
