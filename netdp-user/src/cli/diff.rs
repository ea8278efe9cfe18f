//! `netdp diff`: what a configuration would change against the policy in force.

use super::args::{InstancePaths, Output};
use super::check::Inputs;
use crate::config::{self, Options};
use crate::policy::diff;
use crate::rollback::Fallback;
use crate::state_dir::StateDir;
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// End of the help text.
const EXAMPLES: &str = "\
Examples:
  netdp diff /etc/config
  netdp diff configmap.yaml --pod-cidr=172.16.0.0/16
  netdp diff - -o json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Diff {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// File, directory of files, or - for standard input; may hold ConfigMaps and lists of them. All
    /// that the agent is to read.
    #[arg(value_name = "FILE", required_unless_present = "targets")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    inputs: Inputs,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Diff {
    /// Runs the command; exit statuses as those of `diff`: 0 if nothing differs, 1 if rules do.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, or the policy in force is not known.
    pub(super) fn run(&self) -> Result<ExitCode> {
        let (documents, mut errors) = self.inputs.read(&self.files)?;
        let options = self.options();
        let mut cluster = self.inputs.policy.cluster_cidrs();
        let dir = StateDir::at(&self.paths.state_dir);
        cluster.auto.add_saved(dir.last_networks());
        let loaded = match config::load_for_cluster(&documents, &options, &cluster) {
            Ok(loaded) => Some(loaded),
            Err(rejected) => {
                errors.extend(rejected.errors);
                None
            }
        };
        let (Some(loaded), true) = (loaded, errors.is_empty()) else {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            bail!("the configuration is invalid:\n{}", lines.join("\n"));
        };
        let json = self.output == Output::Json;
        let (bpffs, state_dir) = (&self.paths.bpffs, &self.paths.state_dir);
        let differs = diff::print(bpffs, state_dir, &loaded.config, json)?;
        Ok(match differs {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }

    /// Returns the options of the configuration: those that are given, and those of the agent.
    fn options(&self) -> Options {
        let given = self.inputs.policy.options();
        let state_dir = StateDir::at(&self.paths.state_dir);
        let Ok(Fallback { config: agents, .. }) = Fallback::read(&state_dir) else {
            return given;
        };
        Options {
            enable_ipv6: given.enable_ipv6 || agents.enable_ipv6,
            nomasq_all_reserved_ranges: given.nomasq_all_reserved_ranges
                || agents.nomasq_all_reserved_ranges,
            default_action: given.default_action.or(agents.default_action),
        }
    }
}
