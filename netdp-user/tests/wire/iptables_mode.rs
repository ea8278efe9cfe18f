//! The cases in iptables mode. iptables_mode.txt lists those that fail there, with the reasons; it
//! is the table of docs/iptables-mode.md.

use super::CASES;
use super::bed::Subject;
use super::controls::{CHANCE, DATAPATH_ONLY, Score, scores};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const SOURCE: &str = include_str!("iptables_mode.txt");

const BEGIN: &str = "<!-- differences: made from netdp-user/tests/wire/iptables_mode.txt -->\n";
const END: &str = "<!-- end of differences -->\n";

/// Returns the lines `cases: reason`.
fn differences() -> impl Iterator<Item = (Vec<&'static str>, &'static str)> {
    SOURCE.lines().filter_map(|line| {
        let (cases, why) = line.split_once(": ")?;
        Some((cases.split(' ').collect(), why))
    })
}

fn listed() -> BTreeMap<&'static str, &'static str> {
    let all = differences().flat_map(|(cases, why)| cases.into_iter().map(move |case| (case, why)));
    all.collect()
}

/// Compares the failures in iptables mode with the list; see the test that calls it.
pub fn run() {
    let listed = listed();
    let mut wrong = String::new();
    for case in listed.keys().chain(DATAPATH_ONLY) {
        if !CASES.iter().any(|known| known.name == *case) {
            let _ = writeln!(wrong, "there is no case {case}");
        }
    }
    for (&(case, _), (score, why)) in &scores(&[Subject::NetdpIptables]) {
        let name = CASES[case].name;
        let as_listed = match score {
            _ if CHANCE.contains(&name) => true,
            Score::Pass => !listed.contains_key(name) && !DATAPATH_ONLY.contains(&name),
            Score::Fail => listed.contains_key(name),
            Score::Void => DATAPATH_ONLY.contains(&name),
        };
        if !as_listed {
            let _ = writeln!(wrong, "{name}: {score:?} {why}");
        }
    }
    assert!(wrong.is_empty(), "not as listed:\n{wrong}");
}

fn table() -> String {
    let mut text = String::from("\n| Cases | In iptables mode |\n|---|---|\n");
    for (cases, why) in differences() {
        let cases: Vec<_> = cases.iter().map(|case| format!("`{case}`")).collect();
        let _ = writeln!(text, "| {} | {why} |", cases.join(" "));
    }
    text + "\n"
}

/// Compares docs/iptables-mode.md with the list; see the test that calls it.
pub fn check_document() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/iptables-mode.md");
    let found = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = found
        .split_once(BEGIN)
        .context("no beginning of the table")?;
    let (_, after) = rest.split_once(END).context("no end of the table")?;
    let wanted = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        fs::write(&path, &wanted)?;
        return Ok(());
    }
    ensure!(
        found == wanted,
        "docs/iptables-mode.md does not have the table of iptables_mode.txt; NETDP_REWRITE_DOCS=1 writes it anew"
    );
    Ok(())
}
