//! Scan of the network namespace's NAT rules, with the programs that are installed.

use super::classify::{Around, Classifier, Translator};
use super::inward::{self, Diverted};
use super::rule::{Match, Ruleset};
use super::{Finding, Findings, Look, early, iptables, nft, owner, walk};
use crate::iptables::{Backend, Family, Iptables, has_legacy_nat};
use crate::prefixes::PrefixSet;
use crate::programs;
use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Appended when a tool is missing: rules created with it stay invisible.
const NO_PROGRAM: &str = "is not installed, so that NAT rules made with it cannot be read";

/// Intermediate results of a scan.
struct Gathered<'a> {
    around: &'a Around,
    look: Look,
    findings: Findings,
    /// Sources that other rules translate before netdp gets the packets.
    translated: PrefixSet,
    /// Rules that drop replies, with the destinations.
    drops: Vec<(Finding, Vec<IpNet>)>,
}

/// Scans all rules that translate sources, that redirect packets addressed to the node, or that
/// drop replies to pods. Changes nothing, and creates no table.
#[must_use]
pub fn look(around: &Around) -> Look {
    let mut gathered = Gathered {
        around,
        look: Look::default(),
        findings: Findings::default(),
        translated: PrefixSet::default(),
        drops: Vec::new(),
    };
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
                    gathered.judge(&set, &family.to_string(), &backend.to_string());
                    if backend == Backend::Nft {
                        read.push(family);
                    }
                }
                Err(err) => {
                    let nat = &mut gathered.look.nat;
                    if !programs::is_absent(&err) {
                        nat.failed.insert(backend.to_string());
                    }
                    let problem = format!("iptables, {family}, {backend}: {err:#}");
                    match backend {
                        // nft reads its tables, too.
                        Backend::Nft => unread_nft.push(problem.clone()),
                        Backend::Legacy => nat.unread.push(problem.clone()),
                    }
                    gathered.look.seen.unread.push(problem);
                }
            }
        }
    }
    gathered.early_tables(&families);
    if let Err(err) = gathered.native(&read, &local) {
        let look = &mut gathered.look;
        if !programs::is_absent(&err) {
            look.nat.failed.insert("nftables".into());
        }
        let none = read.is_empty() && look.nat.failed.is_empty() && look.nat.unread.is_empty();
        (look.nat.no_programs, look.seen.no_programs) = (none, none);
        let problem = format!("nftables: {err:#}");
        look.nat.unread.append(&mut unread_nft);
        look.nat.unread.push(problem.clone());
        look.seen.unread.push(problem);
    }
    gathered.end()
}

/// Returns the node's addresses of the translated families.
fn reachable(around: &Around) -> BTreeSet<IpAddr> {
    let may = |ip: &&IpAddr| !ip.is_loopback() && (around.enable_ipv6 || ip.is_ipv4());
    around.local.iter().filter(may).copied().collect()
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

impl Gathered<'_> {
    /// Reads the iptables tables that packets meet before netfilter would have translated replies.
    /// Missing programs were reported for the nat table already.
    fn early_tables(&mut self, families: &[Family]) {
        if self.around.translator != Translator::Ebpf {
            return;
        }
        for backend in [Backend::Nft, Backend::Legacy] {
            for (&family, name) in families.iter().flat_map(|f| [(f, "raw"), (f, "mangle")]) {
                match (Iptables { family, backend }).read_table(name) {
                    Ok(table) => {
                        let set = iptables::early(&table, family);
                        self.judge_early(&set, &family.to_string(), &backend.to_string(), name);
                    }
                    Err(err) if programs::is_absent(&err) => {}
                    Err(err) => {
                        let problem = format!("iptables, {family}, {backend}, {name}: {err:#}");
                        self.look.seen.unread.push(problem);
                    }
                }
            }
        }
    }

    fn judge_early(&mut self, set: &Ruleset, family: &str, backend: &str, place: &str) {
        let (around, found) = (self.around, &mut self.drops);
        walk::early_drops(set, |way| {
            let Some(drops) = early::drops_answers(way, around) else {
                return;
            };
            let names: Vec<_> = way.path.iter().copied().chain([place]).collect();
            let finding = Finding {
                owner: owner::owner(&names, &way.rule.text).into(),
                family: family.into(),
                backend: backend.into(),
                chain: format!("{place} {}", way.chain()),
                rule: way.rule.text.clone(),
                count: 1,
                drops: true,
                conflict: true,
                why: drops.why,
            };
            found.push((finding, drops.destinations));
        });
    }

    /// Reads the tables that iptables-nft does not print; it printed its own for the families in
    /// `read`.
    fn native(&mut self, read: &[Family], local: &BTreeSet<IpAddr>) -> Result<()> {
        let around = self.around;
        let chains = json(&["list", "chains"])?;
        for (table, mut roots) in nft::tables(&chains) {
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
            // Tables of iptables-nft were read with its own program.
            let of_iptables = ["raw", "mangle"].contains(&table.name.as_str())
                && family.is_some_and(|family| read.contains(&family));
            if of_iptables || around.translator != Translator::Ebpf {
                roots.early.clear();
            }
            if roots.outward.is_empty() && roots.inward.is_empty() && roots.early.is_empty() {
                continue;
            }
            let name = ["list", "table", &table.family, &table.name];
            let listing = json(&name)?;
            let text = if roots.outward.is_empty() && roots.early.is_empty() {
                String::new()
            } else {
                run(&[&["-s", "-a"], &name[..]].concat())?
            };
            for early in roots.early.iter_mut().filter(|it| it.devices.is_empty()) {
                early.devices = nft::devices(&text, &early.chain);
            }
            let is_here = |early: &nft::Early| {
                let devices = &early.devices;
                let all = devices.is_empty() || around.uplinks.is_empty();
                all || devices.iter().any(|device| around.uplinks.contains(device))
            };
            roots.early.retain(is_here);
            let mut set = nft::ruleset(&listing, &text, roots, local);
            set.family = family;
            let family = family.map_or_else(|| "both".into(), |family| family.to_string());
            let place = format!("{} {}", table.family, table.name);
            let (rules, diverted) = (self.findings.rules.len(), self.look.nat.diverted.len());
            self.judge(&set, &family, "nftables");
            self.judge_early(&set, &family, "nftables", &place);
            let rules = self.findings.rules.iter_mut().skip(rules);
            let rules = rules.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
            let diverted = self.look.nat.diverted.iter_mut().skip(diverted);
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

    fn judge(&mut self, set: &Ruleset, family: &str, backend: &str) {
        let around = self.around;
        let diverted = inward::reached(set).into_iter().map(|way| Diverted {
            owner: owner::owner(&[way.chain], way.rule).into(),
            backend: backend.into(),
            family: family.into(),
            chain: way.chain.into(),
            rule: way.rule.into(),
            ports: way.ports,
        });
        self.look.nat.diverted.extend(diverted);
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
            sources(way).for_each(|net| self.translated.insert(*net));
            let after = position.is_some_and(|own| way.position > own);
            let verdict = classifier.classify(way, after);
            self.findings.add(Finding {
                owner: owner::owner(way.path, &way.rule.text).into(),
                family: family.into(),
                backend: backend.into(),
                chain: way.chain().into(),
                rule: way.rule.text.clone(),
                count: 1,
                drops: false,
                conflict: verdict.conflict,
                why: verdict.why,
            });
        });
    }

    /// Completes the scan. Replies to sources that another rule translates arrive as before:
    /// dropping them has no effect on netdp's flows.
    fn end(mut self) -> Look {
        let hurts =
            |nets: &[IpNet]| nets.is_empty() || !nets.iter().all(|net| self.translated.covers(net));
        for (finding, nets) in self.drops {
            if hurts(&nets) {
                self.findings.add(finding);
            }
        }
        self.look.seen.rules = self.findings.rules;
        self.look
    }
}

/// Returns the sources that a rule translates, whatever its other conditions; none if it names
/// none.
fn sources<'a>(way: &walk::Reached<'a, '_>) -> impl Iterator<Item = &'a IpNet> {
    let nets = way.matches.iter().filter_map(|condition| match condition {
        Match::Source { nets, not: false } => Some(nets),
        _ => None,
    });
    nets.flatten()
}
