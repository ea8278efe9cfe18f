//! Completions for kubectl: it runs `kubectl_complete-netdp` with the words of the line after `netdp`,
//! and reads one candidate a line, then a directive (cobra's format).

use super::run::Kubectl;
use clap::Command;
use std::collections::BTreeSet;

/// Cobra's directive: no names of files.
const NO_FILES: &str = ":4";

/// Returns the completions of the last word.
pub(crate) fn complete(command: &Command, words: &[String]) -> String {
    let kubectl = Kubectl::default();
    let mut text = String::new();
    for candidate in candidates(command, words, |arguments| kubectl.names(arguments)) {
        text += &candidate;
        text.push('\n');
    }
    text + NO_FILES + "\n"
}

/// Returns the candidates; `names` lists names of objects.
fn candidates(
    command: &Command,
    words: &[String],
    names: impl Fn(&[&str]) -> Vec<String>,
) -> BTreeSet<String> {
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", [].as_slice()),
    };
    let named = before.iter().find_map(|word| command.find_subcommand(word));
    let flag = before.last().map_or("", String::as_str);
    let all = match (named, flag) {
        (_, "--node") => names(&["nodes"]),
        (_, "-n" | "--namespace" | "--agent-namespace") => names(&["namespaces"]),
        (None, _) => {
            let commands = command.get_subcommands().filter(|it| !it.is_hide_set());
            commands.map(|it| it.get_name().to_owned()).collect()
        }
        (Some(named), _) if last.starts_with('-') => named
            .get_arguments()
            .chain(command.get_arguments())
            .filter_map(|it| Some(format!("--{}", it.get_long()?)))
            .collect(),
        (Some(_), _) => {
            let at = before
                .iter()
                .position(|it| it == "-n" || it == "--namespace");
            let namespace = at.and_then(|at| before.get(at + 1));
            match namespace {
                Some(namespace) => names(&["pods", "--namespace", namespace]),
                None => names(&["pods"]),
            }
        }
    };
    all.into_iter().filter(|it| it.starts_with(last)).collect()
}

#[cfg(test)]
mod tests {
    use super::candidates;
    use clap::{Arg, Command};

    fn completed(words: &[&str]) -> Vec<String> {
        let explain = Command::new("explain").arg(Arg::new("node").long("node"));
        let command = Command::new("netdp")
            .subcommand(explain)
            .subcommand(Command::new("status"));
        let names = |arguments: &[&str]| match arguments {
            ["nodes"] => vec!["node-a".to_owned()],
            ["namespaces"] => vec!["shop".to_owned(), "default".to_owned()],
            ["pods", "--namespace", "shop"] => vec!["cart-5d9".to_owned()],
            ["pods"] => vec!["one".to_owned(), "two".to_owned()],
            other => panic!("{other:?}"),
        };
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(&command, &words, names).into_iter().collect()
    }

    #[test]
    fn commands_flags_and_names_are_completed() {
        assert_eq!(completed(&[""]), ["explain", "status"]);
        assert_eq!(completed(&["ex"]), ["explain"]);
        assert_eq!(completed(&["explain", "--n"]), ["--node"]);
        assert_eq!(completed(&["explain", "--node", ""]), ["node-a"]);
        assert_eq!(completed(&["explain", "-n", "s"]), ["shop"]);
        assert_eq!(completed(&["explain", "-n", "shop", ""]), ["cart-5d9"]);
        assert_eq!(completed(&["status", "t"]), ["two"]);
    }
}
