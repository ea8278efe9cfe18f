//! `netdp completion` and `netdp man`: what shells and man(1) know of the command line.

use super::Cli;
use super::output::write_out;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use std::fs;
use std::path::PathBuf;

/// The name of the program.
const NAME: &str = "netdp";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp completion bash > /etc/bash_completion.d/netdp
  netdp completion zsh > /usr/local/share/zsh/site-functions/_netdp")]
pub(super) struct Completion {
    /// Shell that reads the script.
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    ///
    /// # Errors
    /// Returns an error if standard output cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), NAME, &mut script);
        write_out(&String::from_utf8_lossy(&script), true)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp man flows | man -l -
  netdp man --dir /usr/local/share/man/man1")]
pub(super) struct ManPages {
    /// Command, as in `netdp man config check`; without one, the page of netdp itself.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of all commands to this directory instead; it is created if missing.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

impl ManPages {
    /// Prints a page, or writes all of them.
    ///
    /// # Errors
    /// Returns an error if there is no such command, or if a page cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        let mut root = Cli::command();
        root.build();
        if let Some(dir) = &self.dir {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            return clap_mangen::generate_to(root, dir)
                .with_context(|| format!("writing man pages to {}", dir.display()));
        }
        let mut command = &root;
        for word in &self.command {
            let Some(found) = command.find_subcommand(word) else {
                bail!(
                    "netdp has no command {:?}; `netdp help` lists them",
                    self.command.join(" ")
                );
            };
            command = found;
        }
        write_out(&page(command)?, true)
    }
}

/// Returns the page of a command, in roff.
fn page(command: &Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    fn visible(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        found.push((path.to_owned(), command.clone()));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            visible(sub, &format!("{path}-{}", sub.get_name()), found);
        }
    }

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        let pages = ManPages {
            command: Vec::new(),
            dir: Some(dir.path().join("man1")),
        };
        pages.run().unwrap();
        let mut commands = Vec::new();
        visible(&Cli::command(), NAME, &mut commands);
        assert!(commands.len() > 8);
        for (path, command) in commands {
            let file = dir.path().join(format!("man1/{path}.1"));
            let page = fs::read_to_string(&file).unwrap_or_else(|err| panic!("{path}: {err}"));
            for flag in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                if let Some(long) = flag.get_long() {
                    let long = long.replace('-', "\\-");
                    assert!(page.contains(&long), "{path}: --{long}");
                }
            }
        }
    }

    #[test]
    fn the_page_of_an_unknown_command_is_refused() {
        let pages = ManPages {
            command: vec!["config".into(), "verify".into()],
            dir: None,
        };
        let told = pages.run().unwrap_err().to_string();
        assert!(told.contains("config verify"), "{told}");
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }
}
