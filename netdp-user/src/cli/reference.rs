//! Generates docs/reference.md from the command line's definition, the configuration's keys and the
//! timeouts, and compares it with the file.

use super::Cli;
use super::kubectl::Plugin;
use super::values::TIMEOUTS;
use crate::config::{DEFAULT_CIDR_LIMIT, DEFAULT_RESYNC_INTERVAL, Key};
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use netdp_common::flow::Timeouts;
use std::fmt::Write as _;
use std::path::Path;

const HEAD: &str = "\
# Reference: commands, flags, configuration keys

Generated from the source code by `NETDP_REWRITE_DOCS=1 cargo test -p netdp-user --lib reference`; the same test without
the variable fails if this page is out of date. `netdp COMMAND --help` prints the same.

";

const KEYS: &str = "\
## Configuration keys

The format of ip-masq-agent, YAML or JSON. Letter case of keys does not matter. How documents are merged and which prefix
decides: [configuration.md](configuration.md).

| key | default | meaning |
|---|---|---|
";

const TIMEOUT_HEAD: &str = "
## Timeouts

For `--timeout NAME=DURATION`: how long both directions must be silent before a mapping ends; a second or more. The RFCs behind
the defaults are named in `netdp-common/src/flow/timeouts.rs`.

| name | default | mapping |
|---|---|---|
";

/// Returns default and meaning of a key.
fn key(key: Key) -> (String, &'static str) {
    match key {
        Key::NonMasqueradeCidrs => (
            "`10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`; with `--nomasq-all-reserved-ranges` \
             the reserved ranges too"
                .to_owned(),
            "destinations that see the pod's own address. `[]` masquerades everything; a key \
             without a value is an error",
        ),
        Key::MasqueradeCidrs => (
            "none".to_owned(),
            "destinations that see the node's address although a non-masquerade CIDR covers them; \
             netdp's own key, which ip-masq-agent ignores",
        ),
        Key::MasqLinkLocal => ("`false`".to_owned(), "masquerade `169.254.0.0/16` too"),
        Key::MasqLinkLocalIpv6 => ("`false`".to_owned(), "masquerade `fe80::/10` too"),
        Key::ResyncInterval => (
            format!("`{}s`", DEFAULT_RESYNC_INTERVAL.as_secs()),
            "how often configuration and datapath are compared although no change was reported; \
             a Go duration such as `1m30s`",
        ),
        Key::CidrLimit => (
            format!("`{DEFAULT_CIDR_LIMIT}`"),
            "how many CIDRs this file may list, both lists together",
        ),
        Key::AutoNonMasquerade => (
            "none".to_owned(),
            "the cluster's own networks to bypass besides all lists: `pods` (pod CIDRs of all Nodes, \
             and `--pod-cidr`), `services` (ServiceCIDRs, and `--service-cidr`), `nodes` (InternalIPs \
             of all Nodes); netdp's own key, which ip-masq-agent ignores",
        ),
    }
}

/// Returns the meaning of a timeout.
fn timeout(name: &str) -> &'static str {
    match name {
        "tcp-opening" => "TCP, not established yet",
        "tcp-established" => "TCP, established",
        "tcp-unreplied" => "TCP, picked up in mid-stream, no reply yet",
        "tcp-half-closed" => "TCP, one side has closed",
        "tcp-closing" => "TCP after both FINs or a RST",
        "udp-unreplied" => "UDP without a reply",
        "udp-replied" => "UDP with replies",
        "udp-lookup" => {
            "UDP to a port below 1024, one query and its reply and nothing since. Below two \
             minutes it takes effect with the next sweep that is due"
        }
        "icmp" => "ICMP queries",
        "generic" => "every other protocol",
        _ => panic!("no meaning of the timeout {name}"),
    }
}

/// Formats seconds in the largest units that hold them: `2h4m`.
fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    units
        .into_iter()
        .filter_map(|(unit, name)| {
            let count = rest / unit;
            rest %= unit;
            (count != 0).then(|| format!("{count}{name}"))
        })
        .collect()
}

/// Converts a help text to a line of Markdown: flags and globs as code.
fn markdown(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_end_matches(['.', ',', ';', ':', ')']);
        if word.contains('`') || !(core.starts_with("--") || core.contains('*')) {
            return word.replace('|', "\\|").replace('<', "&lt;");
        }
        format!("`{core}`{}", &word[core.len()..])
    };
    text.split_whitespace()
        .map(word)
        .collect::<Vec<_>>()
        .join(" ")
}

fn name(arg: &Arg) -> String {
    let Some(long) = arg.get_long() else {
        let value = arg.get_value_names().map_or("", |names| names[0].as_str());
        let value = value.replace('|', "\\|");
        let more = match arg.get_action() {
            ArgAction::Append => "…",
            _ => "",
        };
        return match arg.is_required_set() {
            true => format!("`{value}{more}`"),
            false => format!("`[{value}{more}]`"),
        };
    };
    let mut text = format!("--{long}");
    if arg.get_action().takes_values() {
        let values = arg.get_possible_values();
        let value = if values.is_empty() {
            let names = arg.get_value_names();
            names.map_or("VALUE", |names| &names[0]).replace('|', "\\|")
        } else {
            let values: Vec<_> = values.iter().map(|value| value.get_name()).collect();
            values.join("\\|")
        };
        let _ = match arg.is_require_equals_set() {
            true => write!(text, "[={value}]"),
            false => write!(text, " {value}"),
        };
    }
    let short = arg.get_short().map(|short| format!("`-{short}`, "));
    format!("{}`{text}`", short.unwrap_or_default())
}

fn default(arg: &Arg) -> String {
    let mut parts = Vec::new();
    if let Some(variable) = arg.get_env() {
        parts.push(format!("`${}`", variable.display()));
    }
    let values: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.display().to_string())
        .filter(|value| !value.is_empty())
        .collect();
    if arg.get_id() == "state_dir" {
        // Clap's default depends on the machine.
        parts.push("`/run/netdp`".to_owned());
    } else if !values.is_empty() {
        parts.push(format!("`{}`", values.join("`, `")));
    }
    if parts.is_empty() {
        parts.push(
            if arg.get_action().takes_values() {
                "none"
            } else {
                "off"
            }
            .to_owned(),
        );
    }
    parts.join(", else ")
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = markdown(&help.map(ToString::to_string).unwrap_or_default());
    if !text.ends_with('.') {
        text.push('.');
    }
    if !arg.get_action().takes_values() {
        return text;
    }
    for value in arg.get_possible_values() {
        if let Some(help) = value.get_help() {
            let help = markdown(&help.to_string());
            let _ = write!(text, " `{}`: {help}", value.get_name());
            if !text.ends_with('.') {
                text.push('.');
            }
        }
    }
    text
}

/// Writes a table of flags.
fn table<'a>(text: &mut String, args: impl Iterator<Item = &'a Arg>) {
    *text += "| flag | default | meaning |\n|---|---|---|\n";
    let shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
    for arg in args.filter(shown) {
        let (name, default, meaning) = (name(arg), default(arg), meaning(arg));
        let _ = writeln!(text, "| {name} | {default} | {meaning} |");
    }
}

/// Writes the section of kubectl's plugin: its commands, the flags that all have, those that find the
/// agent, and those of single commands.
fn plugin(text: &mut String) {
    let plugin = Plugin::command();
    let about = plugin.get_about().map(ToString::to_string);
    let about = markdown(&about.unwrap_or_default());
    let _ = write!(text, "\n## `kubectl netdp`\n\n{about}\n\n");
    *text += "| command | does |\n|---|---|\n";
    for command in plugin.get_subcommands() {
        let about = command.get_about().map(ToString::to_string);
        let about = markdown(&about.unwrap_or_default());
        let _ = writeln!(text, "| `{}` | {about} |", command.get_name());
    }
    *text += "\nFlags of all commands:\n\n";
    table(text, plugin.get_arguments());
    let common = plugin.find_subcommand("status").unwrap();
    *text += "\nFlags of all but `fleet`; `who` has the `--agent-…` flags only. Other arguments are those of \
         netdp's command:\n\n";
    table(text, common.get_arguments());
    for name in ["who", "fleet", "support-bundle"] {
        let command = plugin.find_subcommand(name).unwrap();
        let is_common = |arg: &&Arg| {
            let is_same = |it: &Arg| it.get_id() == arg.get_id() && it.get_help() == arg.get_help();
            common.get_arguments().any(is_same)
        };
        let _ = write!(text, "\nOf `kubectl netdp {name}`:\n\n");
        table(text, command.get_arguments().filter(|arg| !is_common(arg)));
    }
}

/// Writes the section of a command, then those of its subcommands.
fn section(text: &mut String, command: &Command, path: &str) {
    let about = command.get_long_about().or(command.get_about());
    let about = markdown(&about.map(ToString::to_string).unwrap_or_default());
    if command.get_subcommands().next().is_none() {
        let _ = write!(text, "\n## `{path}`\n\n{about}.\n\n");
        table(text, command.get_arguments());
        let ignored: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_hide_set())
            .filter_map(|arg| arg.get_long().map(|long| format!("`--{long}`")))
            .collect();
        if !ignored.is_empty() {
            let ignored = ignored.join(", ");
            let _ = write!(
                text,
                "\nAccepted for compatibility and ignored: {ignored}.\n"
            );
        }
    }
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        section(text, command, &format!("{path} {}", command.get_name()));
    }
}

fn document() -> String {
    let mut text = HEAD.to_owned() + KEYS;
    for known in Key::ALL {
        let (default, meaning) = key(known);
        let _ = writeln!(text, "| `{}` | {default} | {meaning} |", known.name());
    }
    text += TIMEOUT_HEAD;
    for (name, timeout_of) in TIMEOUTS {
        let default = duration(*timeout_of(&mut Timeouts::default()));
        let _ = writeln!(text, "| `{name}` | `{default}` | {} |", timeout(name));
    }
    section(&mut text, &Cli::command(), "netdp");
    plugin(&mut text);
    text
}

#[test]
fn the_reference_is_that_of_the_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let wanted = document();
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "docs/reference.md is out of date; NETDP_REWRITE_DOCS=1 rewrites it"
    );
}

#[test]
fn durations_are_written_in_their_largest_units() {
    for (seconds, text) in [(60, "1m"), (7_440, "2h4m"), (432_000, "5d"), (90, "1m30s")] {
        assert_eq!(duration(seconds), text);
    }
}
