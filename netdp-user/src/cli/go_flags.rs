//! Command lines of the programs that netdp replaces: ip-masq-agent's, in Go's notation and without
//! a subcommand, and the one of k8s-custom-iptables' manifest.

use crate::iptables::CUSTOM_CHAIN;
use crate::upstream::{custom_iptables, masq_agent};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Message if a shell was requested.
const NO_SHELL: &str = "netdp: error: netdp's image has no shell; its only program is netdp, for \
                        example: kubectl exec POD -- netdp status";

/// Reports whether the program was called as a shell for anything but that script, and prints a
/// message if so.
pub(super) fn is_shell(args: &[OsString]) -> bool {
    let wanted = args.first().is_some_and(|program| is_called(program, "sh"));
    let refused = wanted && !is_script(args);
    if refused {
        eprintln!("{NO_SHELL}");
    }
    refused
}

fn is_called(program: &OsStr, name: &str) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(name))
}

/// Reports whether this is k8s-custom-iptables' command line, or the one that its shell would run.
fn is_script(args: &[OsString]) -> bool {
    match args {
        [program] => is_called(program, custom_iptables::SCRIPT),
        [shell, flag, command] => {
            is_called(shell, "sh") && flag == "-c" && command == custom_iptables::SCRIPT_PATH
        }
        _ => false,
    }
}

/// Returns netdp's equivalent of k8s-custom-iptables' command line: it masquerades the networks of
/// the mounted file, by a chain of its own, and leaves all other destinations and ip-masq-agent's
/// chain as they are.
fn equivalent_of_script() -> Vec<OsString> {
    vec![
        "netdp".into(),
        "run".into(),
        format!("--config={}", custom_iptables::DIRECTORY).into(),
        "--default-action=bypass".into(),
        format!("--masq-chain={CUSTOM_CHAIN}").into(),
    ]
}

/// Returns the command line in clap's notation. `known` reports whether a word is a subcommand.
///
/// Flags without a subcommand belong to `run`, and so does everything when the program is called
/// `ip-masq-agent`. For `run`, `-flag` is `--flag`, as in Go's `flag` package.
pub(super) fn normalise(
    args: impl IntoIterator<Item = OsString>,
    known: impl Fn(&str) -> bool,
) -> Vec<OsString> {
    let args: Vec<OsString> = args.into_iter().collect();
    if is_script(&args) {
        return equivalent_of_script();
    }
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let mut rest: Vec<OsString> = args.collect();
    let first = rest.first().and_then(|arg| arg.to_str()).unwrap_or("");
    let is_command = known(first) || matches!(first, "-h" | "--help" | "-V" | "help");
    let is_version = matches!(first, "--version" | "--version=true" | "--version=raw");
    let called_upstream = is_called(&program, masq_agent::NAME);
    if is_version {
        return vec![program, "--version".into()];
    }
    if !is_command && (called_upstream || first.starts_with('-')) {
        rest.insert(0, "run".into());
    }
    if rest.first().is_some_and(|command| command == "run") {
        rest = rest.into_iter().map(long).collect();
    }
    std::iter::once(program).chain(rest).collect()
}

/// Returns `-flag` as `--flag`, and anything else unchanged.
fn long(arg: OsString) -> OsString {
    match arg.to_str().and_then(|text| text.strip_prefix('-')) {
        Some(name) if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name != "h" => {
            format!("--{name}").into()
        }
        _ => arg,
    }
}

/// Parses a boolean as Go's `strconv.ParseBool` does.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false (or 1, t, T, 0, f, F)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_shell, normalise};

    #[test]
    fn a_shell_is_refused_except_for_the_script() {
        let is_refused =
            |line: &str| is_shell(&line.split(' ').map(Into::into).collect::<Vec<_>>());
        for shell in [
            "sh",
            "/bin/sh",
            "sh -c ls",
            "sh /run.sh",
            "sh -c /run.sh -x",
        ] {
            assert!(is_refused(shell), "{shell}");
        }
        for other in [
            "sh -c /run.sh",
            "/bin/sh -c /run.sh",
            "netdp",
            "/run.sh",
            "netdp sh",
        ] {
            assert!(!is_refused(other), "{other}");
        }
    }

    fn normalised(line: &str) -> String {
        let args = line.split(' ').map(Into::into);
        let known = |word: &str| matches!(word, "run" | "status");
        let args = normalise(args, known).into_iter();
        args.map(|arg| arg.into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn flags_alone_are_those_of_run() {
        for (line, expected) in [
            ("netdp", "netdp"),
            ("netdp status -o json", "netdp status -o json"),
            ("netdp -h", "netdp -h"),
            ("netdp --help", "netdp --help"),
            ("netdp --version=raw", "netdp --version"),
            ("netdp wrong", "netdp wrong"),
            ("netdp --v=2", "netdp run --v=2"),
            ("netdp -v=2 -logtostderr", "netdp run --v=2 --logtostderr"),
            ("netdp -v 2", "netdp run --v 2"),
            ("netdp run -enable-ipv6", "netdp run --enable-ipv6"),
            ("netdp run -h", "netdp run -h"),
            ("netdp run --to-ports 1-2", "netdp run --to-ports 1-2"),
            ("/netdp -masq-chain=X", "/netdp run --masq-chain=X"),
            ("/ip-masq-agent", "/ip-masq-agent run"),
            ("ip-masq-agent --v=2", "ip-masq-agent run --v=2"),
            ("/ip-masq-agent status", "/ip-masq-agent status"),
            (
                "sh -c /run.sh",
                "netdp run --config=/cfg --default-action=bypass --masq-chain=NETDP-CUSTOM",
            ),
            (
                "/run.sh",
                "netdp run --config=/cfg --default-action=bypass --masq-chain=NETDP-CUSTOM",
            ),
        ] {
            assert_eq!(normalised(line), expected, "{line}");
        }
    }

    #[test]
    fn the_scripts_chain_is_the_one_that_is_taken_over() {
        let chain = format!(" --masq-chain={}", crate::iptables::CUSTOM_CHAIN);
        assert!(normalised("/run.sh").ends_with(&chain));
    }
}
