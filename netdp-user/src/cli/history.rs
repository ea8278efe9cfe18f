//! `netdp history`: the policies that have been in force on the node.

use super::args::{InstancePaths, Output};
use crate::policy::history::{self, Ask};
use anyhow::Result;
use clap::Args;

/// End of the help text.
const EXAMPLES: &str = "\
Examples:
  netdp history
  netdp history 6
  netdp history 6 7 -o json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct History {
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    /// Generation of a policy: shows its rules. With two, shows what differs from the first to the
    /// second.
    #[arg(value_name = "GEN", num_args = 0..=2)]
    generations: Vec<u64>,
    /// Number of policies in the list, the latest first.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
    count: usize,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl History {
    /// Runs the command.
    ///
    /// # Errors
    /// Returns an error if there is no history, or a generation is not remembered.
    pub(super) fn run(&self) -> Result<()> {
        let ask = match self.generations.as_slice() {
            [] => Ask::List(self.count),
            [generation] => Ask::Rules(*generation),
            [from, to, ..] => Ask::Changes(*from, *to),
        };
        history::print(&self.paths.state_dir, ask, self.output == Output::Json)
    }
}
