//! docs/nat-behaviour.md: generated from requirements.txt, which has each line with its level,
//! netdp's status, and the tests that prove it.

use super::CASES;
use super::controls::NOT_YET;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const SOURCE: &str = include_str!("requirements.txt");

struct Line<'a> {
    number: &'a str,
    level: &'a str,
    /// Status: `yes`, `no: why` or `choice: why`.
    status: &'a str,
    what: &'a str,
    tests: Vec<&'a str>,
    netfilter: &'a str,
    cilium: &'a str,
}

fn line(block: &str) -> Result<Line<'_>> {
    let mut lines = block.lines();
    let mut head = lines.next().unwrap_or_default().splitn(3, ' ');
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name))
            .map(str::trim)
            .with_context(|| format!("no {name} in {block:?}"))
    };
    Ok(Line {
        what: field("what:")?,
        tests: field("tests:")?.split_whitespace().collect(),
        netfilter: field("netfilter:")?,
        cilium: field("cilium:")?,
        number: head.next().unwrap_or_default(),
        level: head.next().unwrap_or_default(),
        status: head.next().unwrap_or_default(),
    })
}

impl Line<'_> {
    fn check(&self, known: &BTreeSet<String>) -> Result<()> {
        let number = self.number;
        ensure!(
            ["M", "S", "B"].contains(&self.level),
            "{number}: {:?}",
            self.level
        );
        for &test in &self.tests {
            ensure!(known.contains(test), "{number}: there is no test {test}");
            let passes = !NOT_YET.contains(&test);
            ensure!(
                passes || self.status != "yes",
                "{number}: {test} does not pass"
            );
        }
        match self.status.split_once(": ") {
            None if self.status == "yes" => {
                ensure!(!self.tests.is_empty(), "{number}: no test shows it");
            }
            Some(("no" | "choice", _)) => {}
            _ => bail!("{number}: the status {:?}", self.status),
        }
        Ok(())
    }

    fn row(&self) -> String {
        let status = match self.status.split_once(": ") {
            Some(("choice", why)) => format!("by choice: {why}"),
            Some((no, why)) => format!("**{no}**: {why}"),
            None => self.status.to_owned(),
        };
        let tests: Vec<_> = self.tests.iter().map(|test| format!("`{test}`")).collect();
        format!(
            "| {} | {} | {} | {status} | {} | {} | {} |\n",
            self.number,
            self.level,
            self.what,
            tests.join(" "),
            self.netfilter,
            self.cilium
        )
    }
}

/// Returns the names of all functions in the workspace's sources: the possible names of tests.
fn functions() -> Result<BTreeSet<String>> {
    let mut known: BTreeSet<_> = CASES.iter().map(|case| case.name.to_owned()).collect();
    for dir in [
        "netdp-common/src",
        "netdp-common/tests",
        "netdp-user/src",
        "netdp-user/tests",
        "test",
        "xtask",
    ] {
        collect(&root().join(dir), &mut known)?;
    }
    Ok(known)
}

fn collect(dir: &Path, known: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, known)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            for line in fs::read_to_string(&path)?.lines() {
                if let Some(name) = line
                    .trim_start()
                    .trim_start_matches("pub ")
                    .strip_prefix("fn ")
                {
                    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                    known.insert(name[..end.unwrap_or(name.len())].to_owned());
                }
            }
        }
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> Result<String> {
    let known = functions()?;
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    let mut text = String::from(
        "# NAT behaviour, line by line\n\n\
         Requirements of an egress SNAT datapath, from the RFCs and from what netfilter's users\n\
         rely on; whether netdp meets them; and the test that shows it. M: users break without\n\
         it. S: it should. B: beyond what netfilter's masquerade and Cilium do. The column for\n\
         netfilter has observations on Linux 6.18, mostly by the same tests\n\
         (netdp-user/tests/wire).\n\n\
         Generated from netdp-user/tests/wire/requirements.txt by\n\
         `NETDP_REWRITE_DOCS=1 cargo test -p netdp-user --test wire the_document`.\n",
    );
    for block in SOURCE.split("\n\n").map(str::trim) {
        if let Some(title) = block.strip_prefix("# ") {
            write!(
                text,
                "\n## {title}\n\n\
                 | Line | Level | Behaviour | netdp | Shown by | netfilter | Cilium |\n\
                 |---|---|---|---|---|---|---|\n"
            )?;
            continue;
        }
        let line = line(block)?;
        line.check(&known)?;
        shown.extend(&line.tests);
        text += &line.row();
    }
    for case in CASES {
        ensure!(
            shown.contains(case.name),
            "no line names the case {}",
            case.name
        );
    }
    Ok(text)
}

/// Compares docs/nat-behaviour.md with requirements.txt; see the test that calls it.
pub fn check() -> Result<()> {
    let (path, wanted) = (root().join("docs/nat-behaviour.md"), document()?);
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, &wanted)?;
    }
    let found = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(
        found == wanted,
        "docs/nat-behaviour.md is out of date with requirements.txt; NETDP_REWRITE_DOCS=1 rewrites \
         it"
    );
    Ok(())
}
