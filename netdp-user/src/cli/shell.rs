//! `netdp completion` and `netdp man`: what shells and man(1) know of the command line, and what bash asks
//! netdp for.

use super::Cli;
use super::args::CniDir;
use super::output::write_out;
use crate::codes::Code;
use crate::pods::Names;
use crate::state_dir::{self, StateDir};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use nix::net::if_::if_nameindex;
use std::collections::BTreeSet;
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
        let mut script = String::from_utf8_lossy(&script).into_owned();
        if self.shell == Shell::Bash {
            script += ASKING;
        }
        write_out(&script, true)
    }
}

/// What bash does before the script that is made of the command line: values that only the node knows.
const ASKING: &str = r#"
_netdp_asking() {
    local cur="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}"
    local at kind= word directories=()
    # bash takes --pod=NAME for three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $before == = ]]; then
        before="${COMP_WORDS[COMP_CWORD - 2]}"
    fi
    case "$before" in
        --pod | --from) kind=pods ;;
        --uplink) kind=interfaces ;;
        codes) [[ $COMP_CWORD == 2 ]] && kind=codes ;;
    esac
    if [[ -z $kind || $cur == -* ]]; then
        _netdp "$@"
        return
    fi
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "${COMP_WORDS[at]}" in
            --cni-dir | --state-dir) directories+=("${COMP_WORDS[at]}" "${COMP_WORDS[at + 1]}") ;;
        esac
    done
    COMPREPLY=()
    while read -r word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done < <("${COMP_WORDS[0]}" candidates "${directories[@]}" "$kind" 2>/dev/null)
}
complete -F _netdp_asking -o nosort -o bashdefault -o default netdp
"#;

/// Values that only the node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Pods of the node whose names are known, as NAMESPACE/POD.
    Pods,
    /// Interfaces.
    Interfaces,
    /// Codes of findings.
    Codes,
}

#[derive(Debug, Args)]
pub(super) struct Candidates {
    /// What to list.
    kind: Kind,
    /// Directory of the agent's state.
    #[arg(long, value_name = "DIR", default_value_os_t = state_dir::default_path())]
    state_dir: PathBuf,
    #[command(flatten)]
    pods: CniDir,
}

impl Candidates {
    /// Prints the values, one a line.
    ///
    /// # Errors
    /// Returns an error if standard output cannot be written, or the interfaces cannot be listed.
    pub(super) fn run(&self) -> Result<()> {
        let all: BTreeSet<String> = match self.kind {
            Kind::Codes => Code::ALL.iter().map(ToString::to_string).collect(),
            Kind::Interfaces => {
                let links = if_nameindex().context("listing the interfaces")?;
                let names = links
                    .iter()
                    .map(|link| link.name().to_string_lossy().into_owned());
                names.filter(|name| name != "lo").collect()
            }
            Kind::Pods => {
                let names = Names::load(&self.pods.cni_dir, &StateDir::at(&self.state_dir));
                let there = names.claims().filter(|claim| claim.until.is_none());
                there
                    .map(|it| format!("{}/{}", it.namespace, it.name))
                    .collect()
            }
        };
        let lines = all.into_iter().filter(|value| is_plain(value));
        write_out(&lines.map(|value| value + "\n").collect::<String>(), false)
    }
}

/// Reports whether a value means nothing else to a shell: it gets into the line that is typed.
fn is_plain(value: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@');
    !value.starts_with('-') && value.chars().all(is_plain)
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
    fn what_a_shell_would_run_is_no_candidate() {
        for plain in ["shop/cart-5d9", "eth0.100", "NDP101", "br_x@1"] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in ["$(reboot)", "`x`", "a;b", "--all", "a b", "é"] {
            assert!(!is_plain(other), "{other}");
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
