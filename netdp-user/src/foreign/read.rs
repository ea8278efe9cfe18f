//! Reads the rules of the namespace with the programs that there are.

use super::classify::{Around, Classifier, Translator};
use super::inward::{self, Diverted};
use super::rule::Ruleset;
use super::{Finding, Findings, Look, iptables, nft, owner, walk};
use crate::iptables::{Backend, Family, Iptables, has_legacy_nat};
use crate::programs;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What nobody would look for.
const NO_PROGRAM: &str = "is not here, so that NAT rules made with it cannot be seen";

/// Looks at every rule that translates sources, and at those that divert what is addressed to the
/// node. Changes nothing, creates no table.
#[must_use]
pub fn look(around: &Around) -> Look {
    let mut look = Look::default();
    let mut findings = Findings::default();
    let local = reachable(around);
    let mut families = vec![Family::V4];
    if around.enable_ipv6 {
        families.push(Family::V6);
    }
    let mut read = Vec::new();
    let mut unread_nft = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        for &family in &families {
            if backend == Backend::Legacy && !has_legacy_nat(family) {
                continue;
            }
            match (Iptables { family, backend }).read() {
                Ok(table) => {
                    let set = iptables::ruleset(&table, family, &local);
                    judge(
                        &set,
                        &family.to_string(),
                        &backend.to_string(),
                        around,
                        (&mut look, &mut findings),
                    );
                    if backend == Backend::Nft {
                        read.push(family);
                    }
                }
                Err(err) => {
                    if !programs::is_absent(&err) {
                        look.nat.failed.insert(backend.to_string());
                    }
                    let problem = format!("iptables, {family}, {backend}: {err:#}");
                    match backend {
                        // nft reads its tables, too.
                        Backend::Nft => unread_nft.push(problem.clone()),
                        Backend::Legacy => look.nat.unread.push(problem.clone()),
                    }
                    look.seen.unread.push(problem);
                }
            }
        }
    }
    if let Err(err) = native(&read, around, &local, (&mut look, &mut findings)) {
        if !programs::is_absent(&err) {
            look.nat.failed.insert("nftables".into());
        }
        let problem = format!("nftables: {err:#}");
        look.nat.unread.append(&mut unread_nft);
        look.nat.unread.push(problem.clone());
        look.seen.unread.push(problem);
    }
    look.seen.rules = findings.rules;
    look
}

/// The node's addresses that packets of translated families may come in for.
fn reachable(around: &Around) -> BTreeSet<IpAddr> {
    let may = |ip: &&IpAddr| !ip.is_loopback() && (around.enable_ipv6 || ip.is_ipv4());
    around.local.iter().filter(may).copied().collect()
}

/// Tables that iptables-nft does not print; it printed its own for the families in `read`.
fn native(
    read: &[Family],
    around: &Around,
    local: &BTreeSet<IpAddr>,
    (look, findings): (&mut Look, &mut Findings),
) -> Result<()> {
    let chains = json(&["list", "chains"])?;
    for (table, roots) in nft::tables(&chains) {
        let family = match table.family.as_str() {
            "ip" => Some(Family::V4),
            "ip6" => Some(Family::V6),
            _ => None,
        };
        let is_iptables = table.name == "nat" && roots.are_iptables();
        if is_iptables && family.is_some_and(|family| read.contains(&family)) {
            continue;
        }
        if family == Some(Family::V6) && !around.enable_ipv6 {
            continue;
        }
        let name = ["list", "table", &table.family, &table.name];
        let listing = json(&name)?;
        let text = if roots.outward.is_empty() {
            String::new()
        } else {
            run(&[&["-s", "-a"], &name[..]].concat())?
        };
        let mut set = nft::ruleset(&listing, &text, roots, local);
        set.family = family;
        let family = family.map_or_else(|| "both".into(), |family| family.to_string());
        let place = format!("{} {}", table.family, table.name);
        let (rules, diverted) = (findings.rules.len(), look.nat.diverted.len());
        judge(&set, &family, "nftables", around, (look, findings));
        let rules = findings.rules.iter_mut().skip(rules);
        let rules = rules.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
        let diverted = look.nat.diverted.iter_mut().skip(diverted);
        let diverted = diverted.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
        for (chain, owner, rule) in rules.chain(diverted) {
            *chain = format!("{place} {chain}");
            if owner == owner::UNKNOWN {
                *owner = owner::owner(&[&table.name], rule).into();
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
    let nft = nft.ok_or_else(|| programs::absent(format!("the program nft {NO_PROGRAM}")))?;
    Ok(nft.run(arguments, "")?.output)
}

fn judge(
    set: &Ruleset,
    family: &str,
    backend: &str,
    around: &Around,
    (look, findings): (&mut Look, &mut Findings),
) {
    let diverted = inward::reached(set).into_iter().map(|way| Diverted {
        owner: owner::owner(&[way.chain], way.rule).into(),
        backend: backend.into(),
        family: family.into(),
        chain: way.chain.into(),
        rule: way.rule.into(),
        ports: way.ports,
    });
    look.nat.diverted.extend(diverted);
    let own = match &around.translator {
        Translator::Ebpf => None,
        Translator::Chain(name) => Some(name.as_str()),
    };
    let is_own = |way: &walk::Reached<'_, '_>| own.is_some_and(|own| way.path.contains(&own));
    let mut position = None;
    if own.is_some() {
        walk::reached(set, |way| {
            if position.is_none() && is_own(way) {
                position = Some(way.position);
            }
        });
    }
    let mut classifier = Classifier::new(around);
    walk::reached(set, |way| {
        if is_own(way) {
            return;
        }
        let after = position.is_some_and(|own| way.position > own);
        let verdict = classifier.classify(way, after);
        findings.add(Finding {
            owner: owner::owner(way.path, &way.rule.text).into(),
            family: family.into(),
            backend: backend.into(),
            chain: way.chain().into(),
            rule: way.rule.text.clone(),
            count: 1,
            conflict: verdict.conflict,
            why: verdict.why,
        });
    });
}
