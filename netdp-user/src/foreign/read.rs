//! Reads the rules of the namespace with the programs that there are.

use super::classify::{Around, Translator, classify};
use super::rule::Ruleset;
use super::{Finding, Seen, iptables, nft, owner, walk};
use crate::iptables::{Backend, Family, Iptables};
use crate::programs;
use anyhow::{Context as _, Result};
use serde_json::Value;

/// What nobody would look for.
const NO_PROGRAM: &str = "is not here, so that NAT rules made with it cannot be seen";

/// Looks at every rule that translates sources. Changes nothing, creates no table.
#[must_use]
pub fn look(around: &Around) -> Seen {
    let mut seen = Seen::default();
    let mut families = vec![Family::V4];
    if around.enable_ipv6 {
        families.push(Family::V6);
    }
    let mut read = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        for &family in &families {
            if backend == Backend::Legacy && !has_legacy_nat(family) {
                continue;
            }
            match (Iptables { family, backend }).read() {
                Ok(table) => {
                    let set = iptables::ruleset(&table, family);
                    judge(
                        &set,
                        &family.to_string(),
                        &backend.to_string(),
                        around,
                        &mut seen,
                    );
                    if backend == Backend::Nft {
                        read.push(family);
                    }
                }
                Err(err) => seen
                    .unread
                    .push(format!("iptables, {family}, {backend}: {err:#}")),
            }
        }
    }
    if let Err(err) = native(&read, around, &mut seen) {
        seen.unread.push(format!("nftables: {err:#}"));
    }
    seen
}

/// Whether the older kind of nat table is in use; to ask iptables-legacy would create it.
fn has_legacy_nat(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = std::fs::read_to_string(path).unwrap_or_default();
    names.lines().any(|name| name == "nat")
}

/// Tables that iptables-nft does not print; it printed its own for the families in `read`.
fn native(read: &[Family], around: &Around, seen: &mut Seen) -> Result<()> {
    let chains = json(&["list", "chains"])?;
    for (table, roots) in nft::nat_tables(&chains) {
        let family = match table.family.as_str() {
            "ip" => Some(Family::V4),
            "ip6" => Some(Family::V6),
            _ => None,
        };
        let is_iptables = table.name == "nat" && roots == ["POSTROUTING"];
        if is_iptables && family.is_some_and(|family| read.contains(&family)) {
            continue;
        }
        if family == Some(Family::V6) && !around.enable_ipv6 {
            continue;
        }
        let name = ["list", "table", &table.family, &table.name];
        let listing = json(&name)?;
        let text = run(&[&["-s", "-a"], &name[..]].concat())?;
        let mut set = nft::ruleset(&listing, &text, roots);
        set.family = family;
        let family = family.map_or_else(|| "both".into(), |family| family.to_string());
        let place = format!("{} {}", table.family, table.name);
        let first = seen.rules.len();
        judge(&set, &family, "nftables", around, seen);
        for finding in seen.rules.iter_mut().skip(first) {
            finding.chain = format!("{place} {}", finding.chain);
            if finding.owner == owner::UNKNOWN {
                finding.owner = owner::owner(&[&table.name], &finding.rule).into();
            }
        }
    }
    Ok(())
}

fn json(arguments: &[&str]) -> Result<Value> {
    let text = run(&[&["-j"], arguments].concat())?;
    serde_json::from_str(&text).context("what nft -j printed")
}

fn run(arguments: &[&str]) -> Result<String> {
    let nft = programs::find("nft")?;
    let nft = nft.with_context(|| format!("the program nft {NO_PROGRAM}"))?;
    Ok(nft.run(arguments, "")?.output)
}

fn judge(set: &Ruleset, family: &str, backend: &str, around: &Around, seen: &mut Seen) {
    let all = walk::reached(set);
    let own = match &around.translator {
        Translator::Ebpf => None,
        Translator::Chain(name) => Some(name.as_str()),
    };
    let is_own = |way: &walk::Reached<'_>| own.is_some_and(|own| way.path.contains(&own));
    let position = all.iter().find(|way| is_own(way)).map(|way| way.position);
    for way in all.iter().filter(|way| !is_own(way)) {
        let after = position.is_some_and(|own| way.position > own);
        let verdict = classify(way, after, around);
        seen.add(Finding {
            owner: owner::owner(&way.path, &way.rule.text).into(),
            family: family.into(),
            backend: backend.into(),
            chain: way.chain().into(),
            rule: way.rule.text.clone(),
            count: 1,
            conflict: verdict.conflict,
            why: verdict.why,
        });
    }
}
