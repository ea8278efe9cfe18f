//! Completions for kubectl: it runs `kubectl_complete-netdp` with the words of the line after `netdp`,
//! and reads one candidate a line, then a directive (cobra's format).

use super::run::Kubectl;
use clap::{Arg, Command};
use std::collections::BTreeSet;

/// Cobra's directives: no names of files, and names of files as well.
const NO_FILES: &str = ":4";
const FILES: &str = ":0";

/// Flags of kubectl that select cluster and user.
const ACCESS: [&str; 5] = ["--kubeconfig", "--context", "--cluster", "--user", "--as"];

/// Returns the completions of the last word.
pub(crate) fn complete(command: &Command, words: &[String]) -> String {
    let line = Line::read(command, words);
    let access = ACCESS.map(|flag| (flag, line.value(&[flag])));
    let kubectl = Kubectl::new(&access);
    let mut text = String::new();
    for candidate in line.candidates(|arguments| kubectl.names(arguments)) {
        text += &candidate;
        text.push('\n');
    }
    let directive = match line.open {
        Some("--kubeconfig") => FILES,
        _ => NO_FILES,
    };
    text + directive + "\n"
}

/// A line up to the word that is to be completed.
#[derive(Debug)]
struct Line<'a> {
    command: &'a Command,
    /// The command of the plugin.
    named: Option<&'a Command>,
    /// Flags with their values, in order.
    flags: Vec<(&'a str, &'a str)>,
    /// The flag whose value is to be completed.
    open: Option<&'a str>,
    /// Number of words after the command that are no flags and no values of flags.
    words: usize,
    /// The typed part of the word.
    last: &'a str,
}

impl<'a> Line<'a> {
    fn read(command: &'a Command, words: &'a [String]) -> Self {
        let (last, before) = match words.split_last() {
            Some((last, before)) => (last.as_str(), before),
            None => ("", [].as_slice()),
        };
        let mut line = Self {
            command,
            named: None,
            flags: Vec::new(),
            open: None,
            words: 0,
            last,
        };
        for word in before {
            let word = word.as_str();
            if let Some(flag) = line.open.take() {
                line.flags.push((flag, word));
            } else if let Some((flag, value)) =
                word.split_once('=').filter(|_| word.starts_with('-'))
            {
                line.flags.push((flag, value));
            } else if line.takes_value(word) {
                line.open = Some(word);
            } else if line.named.is_none() {
                line.named = command.find_subcommand(word);
            } else if !word.starts_with('-') {
                line.words += 1;
            }
        }
        line
    }

    fn arguments(&self) -> impl Iterator<Item = &'a Arg> {
        let named = self.named.into_iter().flat_map(Command::get_arguments);
        named.chain(self.command.get_arguments())
    }

    /// Reports whether a word is a flag whose value is the next word.
    fn takes_value(&self, word: &str) -> bool {
        let is_it = |it: &Arg| {
            let long = word.strip_prefix("--");
            let short = word.strip_prefix('-').and_then(|word| word.parse().ok());
            (long.is_some() && it.get_long() == long)
                || (short.is_some() && it.get_short() == short)
        };
        self.arguments()
            .any(|it| is_it(it) && it.get_action().takes_values())
    }

    /// Returns the last value of a flag, by one of its names.
    fn value(&self, names: &[&str]) -> Option<&'a str> {
        let mut given = self.flags.iter().rev();
        let found = given.find(|(flag, _)| names.contains(flag));
        found.map(|(_, value)| *value)
    }

    /// Returns the candidates; `names` lists names of objects.
    fn candidates(&self, names: impl Fn(&[&str]) -> Vec<String>) -> BTreeSet<String> {
        let all = match (self.open, self.named) {
            (Some("--node"), _) => names(&["nodes"]),
            (Some("-n" | "--namespace" | "--agent-namespace"), _) => names(&["namespaces"]),
            (Some(_), _) => Vec::new(),
            (None, _) if self.last.starts_with('-') => {
                let long = self.arguments().filter_map(Arg::get_long);
                long.map(|long| format!("--{long}")).collect()
            }
            (None, None) => {
                let commands = self.command.get_subcommands();
                let commands = commands.filter(|it| !it.is_hide_set());
                commands.map(|it| it.get_name().to_owned()).collect()
            }
            (None, Some(named)) => {
                let is_destination = named.get_name() == "explain" && self.words == 1;
                let (kind, beginning) = match is_destination {
                    true => ("services", "svc/"),
                    false => ("pods", ""),
                };
                let found = match self.value(&["-n", "--namespace"]) {
                    Some(namespace) => names(&[kind, "--namespace", namespace]),
                    None => names(&[kind]),
                };
                let found = found.into_iter();
                found.map(|name| format!("{beginning}{name}")).collect()
            }
        };
        let all = all.into_iter();
        all.filter(|it| it.starts_with(self.last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{ACCESS, Line};
    use clap::{Arg, Command};

    fn command() -> Command {
        let explain = Command::new("explain")
            .arg(Arg::new("node").long("node"))
            .arg(Arg::new("namespace").long("namespace").short('n'));
        Command::new("netdp")
            .args(ACCESS.map(|flag| Arg::new(flag).long(flag.trim_start_matches('-'))))
            .subcommand(explain)
            .subcommand(Command::new("status"))
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn completed(line: &[&str]) -> Vec<String> {
        let names = |arguments: &[&str]| match arguments {
            ["nodes"] => vec!["node-a".to_owned()],
            ["namespaces"] => vec!["shop".to_owned(), "default".to_owned()],
            ["pods", "--namespace", "shop"] => vec!["cart-5d9".to_owned()],
            ["pods"] => vec!["one".to_owned(), "two".to_owned()],
            ["services", "--namespace", "shop"] => vec!["db".to_owned()],
            other => panic!("{other:?}"),
        };
        let (command, words) = (command(), words(line));
        let line = Line::read(&command, &words);
        line.candidates(names).into_iter().collect()
    }

    #[test]
    fn commands_flags_and_names_are_completed() {
        assert_eq!(completed(&[""]), ["explain", "status"]);
        assert_eq!(completed(&["ex"]), ["explain"]);
        assert_eq!(completed(&["explain", "--no"]), ["--node"]);
        assert_eq!(completed(&["explain", "--node", ""]), ["node-a"]);
        assert_eq!(completed(&["explain", "-n", "s"]), ["shop"]);
        assert_eq!(completed(&["explain", "-n", "shop", ""]), ["cart-5d9"]);
        assert_eq!(
            completed(&["explain", "--namespace=shop", ""]),
            ["cart-5d9"]
        );
        assert_eq!(
            completed(&["explain", "-n", "shop", "cart-5d9", "svc/"]),
            ["svc/db"]
        );
        assert_eq!(completed(&["status", "one", "t"]), ["two"]);
        assert_eq!(completed(&["status", "t"]), ["two"]);
        assert_eq!(completed(&["--con"]), ["--context"]);
        assert_eq!(completed(&["explain", "--context", ""]), [""; 0]);
        // A value is no command.
        assert_eq!(completed(&["--context", "status", "e"]), ["explain"]);
    }

    #[test]
    fn cluster_and_user_are_those_of_the_line() {
        let command = command();
        let words = words(&[
            "--context",
            "red",
            "explain",
            "--kubeconfig=/k",
            "--context=blue",
            "--as",
            "",
        ]);
        let line = Line::read(&command, &words);
        let access = ACCESS.map(|flag| line.value(&[flag]));
        assert_eq!(access, [Some("/k"), Some("blue"), None, None, None]);
        assert_eq!(line.open, Some("--as"));
    }
}
