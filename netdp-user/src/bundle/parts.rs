//! The parts of a bundle, in the order in which they are collected.

use super::anonymous::Names;
use super::counters::Reading;
use super::{Options, Part, Source, kernel, network};
use crate::datapath::Refusal;
use crate::logging;
use crate::machine;
use crate::state_dir::StateDir;
use crate::{pods, programs};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// Limit of the output of one part, in bytes: a bundle is made in the agent's container.
const LARGEST: u64 = 8 << 20;

/// Time limit of one part.
const PATIENCE: Duration = Duration::from_secs(30);

/// Refusals that are explained, the latest ones.
const EXPLAINED: usize = 20;

/// Collects all parts, and shows the progress on standard error.
pub(super) fn collect(from: &Source<'_>) -> Vec<Part> {
    let bpffs = from.options.bpffs;
    let state = StateDir::at(from.options.state_dir);
    let before = Reading::take(bpffs);
    let mut parts = Vec::new();
    let mut add = |name: &'static str, about: &'static str, make: &dyn Fn() -> Result<String>| {
        eprintln!("netdp: {name}");
        let content = make();
        if let Err(err) = &content {
            eprintln!("netdp: {name}: {err:#}");
        }
        parts.push(Part {
            name,
            about,
            content,
        });
    };
    let netdp = |arguments: &'static [&'static str]| move || from.netdp(arguments);
    add("status.txt", "netdp status", &netdp(&["status"]));
    add(
        "status.json",
        "the same as JSON",
        &netdp(&["status", "-o", "json"]),
    );
    add("policy.txt", "netdp policy", &netdp(&["policy"]));
    add(
        "policy.json",
        "the same as JSON",
        &netdp(&["policy", "-o", "json"]),
    );
    add(
        "history.json",
        "netdp history",
        &netdp(&["history", "-o", "json"]),
    );
    add("suggest.txt", "netdp suggest", &netdp(&["suggest"]));
    add(
        "flows-by-pod.txt",
        "netdp flows --summary=pod",
        &netdp(&["flows", "--summary=pod", "-n", "100"]),
    );
    add(
        "flows-by-destination.txt",
        "netdp flows --summary=destination",
        &netdp(&["flows", "--summary=destination", "-n", "100"]),
    );
    add(
        "flows-by-state.txt",
        "netdp flows --summary=state",
        &netdp(&["flows", "--summary=state"]),
    );
    if from.options.flows {
        add(
            "flows.txt",
            "the 10,000 mappings with most bytes",
            &netdp(&["flows", "--sort", "bytes", "-n", "10000"]),
        );
    }
    add("log.jsonl", "the agent's latest messages", &|| {
        logging::latest(&state)
    });
    add(
        "refusals.txt",
        "netdp explain of the latest refusals in the log",
        &|| from.refusals(&state),
    );
    add("kernel.txt", "the kernel", &kernel::version);
    add("sysctls.txt", "its settings", &kernel::sysctls);
    add("objects.json", "maps, programs and pins", &|| {
        kernel::objects(bpffs)
    });
    add("addresses.txt", "links and addresses", &network::addresses);
    add("rules.txt", "rules of routing", &network::rules);
    add("routes.txt", "routes of all tables", &network::routes);
    add("nft.txt", "nft list ruleset", &|| {
        from.tool("nft", &["list", "ruleset"])
    });
    for (name, tool) in [
        ("iptables.txt", "iptables-save"),
        ("ip6tables.txt", "ip6tables-save"),
    ] {
        add(name, tool, &|| from.tool(tool, &["-c", "-t", "nat"]));
    }
    add(
        "counters.json",
        "the counters, twice within ten seconds",
        &|| match &before {
            Ok(before) => before.and_again(bpffs),
            Err(err) => bail!("{err:#}"),
        },
    );
    parts
}

impl Source<'_> {
    /// Runs a command of netdp on the same directories. Exit statuses of commands that answer
    /// questions are no failures if something was printed.
    fn netdp(&self, arguments: &[&str]) -> Result<String> {
        let options = self.options;
        let mut all: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
        let mut add = |flag: &str, path: &std::path::Path| {
            all.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
        };
        add("--bpffs", options.bpffs);
        add("--state-dir", options.state_dir);
        for directory in options.tool_dirs {
            add("--tool-dir", directory);
        }
        if ["flows", "explain"].contains(&arguments[0]) {
            add("--cni-dir", options.cni_dir);
        }
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let (status, printed) = self.own.attempt(&all, PATIENCE, LARGEST)?;
        if printed.output.is_empty() {
            bail!("{status}: {}", printed.errors);
        }
        match printed.errors.is_empty() {
            true => Ok(printed.output),
            // JSON stays JSON.
            false if arguments.contains(&"json") => Ok(printed.output),
            false => Ok(format!("{}\n{}\n", printed.output, printed.errors)),
        }
    }

    /// Runs a program of the node, if it is there.
    fn tool(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let program = programs::find(name)?;
        let program = program.with_context(|| format!("{name} is not installed"))?;
        let (status, printed) = program.attempt(arguments, PATIENCE, LARGEST)?;
        if !status.success() {
            bail!("{status}: {}", printed.errors);
        }
        Ok(match self.options.anonymous {
            true => without_comments(&printed.output),
            false => printed.output,
        })
    }

    /// Explains the latest refusals that the log has, each destination once.
    fn refusals(&self, state: &StateDir) -> Result<String> {
        let log = logging::latest(state)?;
        let mut text = String::new();
        for (from, to) in latest_refusals(&log) {
            let arguments = ["explain", "--from", &from, &to];
            let answer = self.netdp(&arguments);
            let answer = answer.unwrap_or_else(|err| format!("{err:#}\n"));
            // Writing to a String can't fail.
            let _ = writeln!(text, "$ netdp explain --from {from} {to}\n{answer}");
        }
        if text.is_empty() {
            text.push_str("the log has no refusals\n");
        }
        Ok(text)
    }
}

/// A kept message, as far as it is of interest here.
#[derive(Deserialize)]
struct Message {
    msg: String,
}

/// Returns source and destination of the latest refusals, the latest first.
fn latest_refusals(log: &str) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in log.lines().rev() {
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        let Some(refusal) = Refusal::parse(&message.msg) else {
            continue;
        };
        let to = match refusal.port {
            Some(port) if refusal.to.contains(':') => format!("[{}]:{port}", refusal.to),
            Some(port) => format!("{}:{port}", refusal.to),
            None => refusal.to.to_owned(),
        };
        let case = (refusal.from.to_owned(), to);
        if seen.insert(case.clone()) {
            found.push(case);
        }
        if found.len() == EXPLAINED {
            break;
        }
    }
    found
}

/// Returns rules without their comments, in which others write names of services.
fn without_comments(rules: &str) -> String {
    const WORD: &str = "comment ";
    let mut out = String::with_capacity(rules.len());
    let mut rest = rules;
    while let Some((before, from)) = rest.split_once(WORD) {
        out.push_str(before);
        out.push_str(WORD);
        rest = match from.strip_prefix('"') {
            Some(quoted) if before.ends_with("--") => after_quotes(quoted),
            Some(quoted) => after_line(quoted),
            // iptables quotes only what needs it.
            None if before.ends_with("--") => from.trim_start_matches(|c| c != ' ' && c != '\n'),
            None => {
                rest = from;
                continue;
            }
        };
        out.push_str("\"\"");
    }
    out.push_str(rest);
    out
}

/// Returns what follows the end of a string in quotes, in which iptables escapes quotes and backslashes; it may
/// have several lines.
fn after_quotes(text: &str) -> &str {
    let mut is_escaped = false;
    let end = text.find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    end.map_or("", |end| &text[end + 1..])
}

/// Returns what follows the line in which a string in quotes ends, in which nft escapes nothing: after a quote
/// there may be more of it.
fn after_line(text: &str) -> &str {
    let quote = text.find('"').unwrap_or(text.len());
    let end = text[quote..].find('\n');
    end.map_or("", |end| &text[quote + end..])
}

/// Returns the names that an anonymous bundle hides.
pub(super) fn names(options: &Options<'_>) -> Names {
    let mut names = Names::default();
    let known = pods::Names::load(options.cni_dir, &StateDir::at(options.state_dir));
    for claim in known.claims() {
        names.namespaces.insert(claim.namespace.clone());
        names.pods.insert(claim.name.clone());
    }
    names.nodes.extend(hostname());
    names.nodes.extend(
        std::env::var("NODE_NAME")
            .ok()
            .filter(|name| !name.is_empty()),
    );
    names
}

/// Returns the node's name.
pub(super) fn hostname() -> Option<String> {
    let name = machine::name();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!name.is_empty() && name.chars().all(is_plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{latest_refusals, without_comments};

    #[test]
    fn each_refused_destination_is_explained_once_the_latest_first() {
        let line = |text: &str| format!("{{\"time\":\"x\",\"msg\":\"{text}\"}}\n");
        let mut log = String::from("half a line\n");
        for number in 0..30 {
            log += &line(&format!(
                "refused 172.16.0.2 to 10.2.0.{number} port 443: every port towards it is taken"
            ));
        }
        log +=
            &line("refused fd00::2 to fd00::9 port 53: the mapping tables are full (--max-flows)");
        log += &line("refused 172.16.0.2 to 10.2.0.29 port 443: every port towards it is taken");
        log += &line("attached to eth0");
        let found = latest_refusals(&log);
        assert_eq!(found.len(), 20);
        assert_eq!(found[0], ("172.16.0.2".into(), "10.2.0.29:443".into()));
        assert_eq!(found[1], ("fd00::2".into(), "[fd00::9]:53".into()));
        assert_eq!(found[2].1, "10.2.0.28:443");
    }

    #[test]
    fn comments_of_rules_are_left_out() {
        let rules = "-A A -m comment --comment \"shop/cart:http cluster IP\" -j X\n\
                     -A B -m comment --comment shop/cart -j Y\n\
                     -A B -m comment --comment \"a \\\"acme\\\" c\" -j Y\n\
                     -A B -m comment --comment \"acme\\\\\" -j Y\n\
                     -A B -m comment --comment \"two\nlines\" -j Y\n\
                     -A B -m comment --comment \"\" -j Y\n\
                     ip saddr 10.0.0.0/8 comment \"acme\" counter\n-A C -j Z\n\
                     -A D -m comment --comment last\n-A E -j Z\n\
                     ip saddr 10.0.0.1 comment \"a\\\"\n\
                     ip saddr 10.0.0.2 comment \"acme\"\n\
                     ip daddr 10.0.0.0/8 comment \"never ends";
        let expected = "-A A -m comment --comment \"\" -j X\n-A B -m comment --comment \"\" -j Y\n\
                        -A B -m comment --comment \"\" -j Y\n-A B -m comment --comment \"\" -j Y\n\
                        -A B -m comment --comment \"\" -j Y\n-A B -m comment --comment \"\" -j Y\n\
                        ip saddr 10.0.0.0/8 comment \"\"\n-A C -j Z\n\
                        -A D -m comment --comment \"\"\n-A E -j Z\n\
                        ip saddr 10.0.0.1 comment \"\"\n\
                        ip saddr 10.0.0.2 comment \"\"\n\
                        ip daddr 10.0.0.0/8 comment \"\"";
        assert_eq!(without_comments(rules), expected);
    }
}
