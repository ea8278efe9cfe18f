//! Scan of the network namespace's NAT rules, with the programs that are installed.

use super::assess::{Assessor, NatContext, Translator};
use super::probe::{Packet, Probe, Probed};
use super::redirect::{self, Redirect};
use super::rule::{Match, Ruleset};
use super::service::{Connection, Service};
use super::{
    Finding, FindingList, ScanResult, early_drop, iptables, nft, owner, service_nft, walk,
};
use crate::iptables::{Backend, Iptables, Table, has_table};
use crate::prefixes::PrefixSet;
use crate::programs;
use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netdp_common::layout::Family;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Appended when a tool is missing: rules created with it stay invisible.
const NO_PROGRAM: &str = "is not installed, so that NAT rules made with it cannot be read";

/// Intermediate results of a scan.
struct Scan<'a> {
    context: &'a NatContext,
    result: ScanResult,
    findings: FindingList,
    /// Sources that other rules translate before netdp gets the packets.
    translated: PrefixSet,
    /// Rules that drop replies, with the destinations.
    drops: Vec<(Finding, Vec<IpNet>)>,
    /// Instead of an assessment of the rules: the packet that they may translate.
    probe: Option<Probe<'a>>,
}

/// Scans all rules that translate sources, that redirect packets addressed to the node, or that
/// drop replies to pods. Changes nothing, and creates no table.
#[must_use]
pub(crate) fn scan(context: &NatContext) -> ScanResult {
    let mut scan = Scan::new(context, None);
    scan.read();
    scan.finish()
}

/// Finds the rules that translate a packet, or may. Changes nothing, and creates no table.
#[must_use]
pub(crate) fn probe(context: &NatContext, packet: &Packet) -> Probed {
    let found = Probed::default();
    let mut scan = Scan::new(context, Some(Probe { packet, found }));
    scan.read();
    let mut found = scan.probe.map(|probe| probe.found).unwrap_or_default();
    found.unread = scan.result.findings.unread;
    found.no_programs = scan.result.findings.no_programs;
    found
}

/// Finds the service that a connection is addressed to, by native rules of nftables; `None` if no rule changes its
/// destination, or they can't be read.
pub(super) fn nft_service(connection: &Connection<'_>) -> Option<Service> {
    let chains = nft_json(&["list", "chains"]).ok()?;
    let tables = nft::redirecting(&chains, connection.dst.is_ipv4());
    tables.iter().find_map(|(table, roots)| {
        let listing = nft_json(&["list", "table", &table.family, &table.name]).ok()?;
        service_nft::of_table(table, roots, &listing, connection)
    })
}

/// Returns the node's addresses of the translated families.
fn node_addresses(context: &NatContext) -> BTreeSet<IpAddr> {
    let may = |ip: &&IpAddr| !ip.is_loopback() && (context.enable_ipv6 || ip.is_ipv4());
    context.local.iter().filter(may).copied().collect()
}

fn nft_json(arguments: &[&str]) -> Result<Value> {
    let text = run_nft(&[&["-j"], arguments].concat())?;
    serde_json::from_str(&text).context("what nft -j printed")
}

fn run_nft(arguments: &[&str]) -> Result<String> {
    let nft = programs::find("nft")?;
    let nft = nft.ok_or_else(|| programs::absent(format!("the program nft {NO_PROGRAM}")))?;
    Ok(nft.run(arguments, "")?.output)
}

impl<'a> Scan<'a> {
    fn new(context: &'a NatContext, probe: Option<Probe<'a>>) -> Self {
        Self {
            context,
            result: ScanResult::default(),
            findings: FindingList::default(),
            translated: PrefixSet::default(),
            drops: Vec::new(),
            probe,
        }
    }

    /// Reads the rules of both kinds of iptables and of nftables.
    fn read(&mut self) {
        let context = self.context;
        let local = node_addresses(context);
        let mut families = vec![Family::V4];
        if context.enable_ipv6 {
            families.push(Family::V6);
        }
        let mut read = Vec::new();
        let mut unread_nft = Vec::new();
        for backend in [Backend::Nft, Backend::Legacy] {
            for &family in &families {
                if backend == Backend::Legacy && !has_table(family, "nat") {
                    continue;
                }
                match (Iptables { family, backend }).read() {
                    Ok(table) => {
                        let set = iptables::ruleset(&table, family, &local);
                        self.assess(&set, &family.to_string(), &backend.to_string());
                        self.count(&table);
                        if backend == Backend::Nft {
                            read.push(family);
                        }
                    }
                    Err(err) => {
                        let redirects = &mut self.result.redirects;
                        if !programs::is_absent(&err) {
                            redirects.failed.insert(backend.to_string());
                        }
                        let problem = format!("iptables, {family}, {backend}: {err:#}");
                        match backend {
                            // nft reads its tables, too.
                            Backend::Nft => unread_nft.push(problem.clone()),
                            Backend::Legacy => redirects.unread.push(problem.clone()),
                        }
                        self.result.findings.unread.push(problem);
                    }
                }
            }
        }
        self.read_early_tables(&families);
        if let Err(err) = self.read_nftables(&read, &local) {
            let result = &mut self.result;
            if !programs::is_absent(&err) {
                result.redirects.failed.insert("nftables".into());
            }
            let none = read.is_empty()
                && result.redirects.failed.is_empty()
                && result.redirects.unread.is_empty();
            (result.redirects.no_programs, result.findings.no_programs) = (none, none);
            let problem = format!("nftables: {err:#}");
            result.redirects.unread.append(&mut unread_nft);
            result.redirects.unread.push(problem.clone());
            result.findings.unread.push(problem);
        }
    }

    /// Notes how many packets the rules that translate the probe have matched.
    fn count(&mut self, table: &Table) {
        let Some(probe) = &mut self.probe else {
            return;
        };
        for found in &mut probe.found.translations {
            let rules = table.chains.get(&found.finding.chain);
            let mut rules = rules.into_iter().flatten();
            let text = &found.finding.rule;
            let same = rules.find(|rule| text.ends_with(&rule.text));
            found.packets = found.packets.or(same.map(|rule| rule.counters.0));
        }
    }

    /// Reads the iptables tables that packets meet before netfilter would have translated replies.
    /// Missing programs were reported for the nat table already.
    fn read_early_tables(&mut self, families: &[Family]) {
        if self.context.translator != Translator::Ebpf || self.probe.is_some() {
            return;
        }
        for backend in [Backend::Nft, Backend::Legacy] {
            for (&family, name) in families.iter().flat_map(|f| [(f, "raw"), (f, "mangle")]) {
                match (Iptables { family, backend }).read_table(name) {
                    Ok(table) => {
                        let set = iptables::early(&table, family);
                        self.assess_early(&set, &family.to_string(), &backend.to_string(), name);
                    }
                    Err(err) if programs::is_absent(&err) => {}
                    Err(err) => {
                        let problem = format!("iptables, {family}, {backend}, {name}: {err:#}");
                        self.result.findings.unread.push(problem);
                    }
                }
            }
        }
    }

    fn assess_early(&mut self, set: &Ruleset, family: &str, backend: &str, place: &str) {
        let (context, found) = (self.context, &mut self.drops);
        walk::early_drops(set, |rule| {
            let Some(drops) = early_drop::assess_drop(rule, context) else {
                return;
            };
            let names: Vec<_> = rule.path.iter().copied().chain([place]).collect();
            let finding = Finding {
                owner: owner::owner(&names, &rule.rule.text).into(),
                family: family.into(),
                backend: backend.into(),
                chain: format!("{place} {}", rule.chain()),
                rule: rule.rule.text.clone(),
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
    fn read_nftables(&mut self, read: &[Family], local: &BTreeSet<IpAddr>) -> Result<()> {
        let context = self.context;
        let chains = nft_json(&["list", "chains"])?;
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
            if family == Some(Family::V6) && !context.enable_ipv6 {
                continue;
            }
            // Tables of iptables-nft were read with its own program.
            let of_iptables = ["raw", "mangle"].contains(&table.name.as_str())
                && family.is_some_and(|family| read.contains(&family));
            if of_iptables || context.translator != Translator::Ebpf {
                roots.early.clear();
            }
            if roots.outward.is_empty() && roots.inward.is_empty() && roots.early.is_empty() {
                continue;
            }
            let name = ["list", "table", &table.family, &table.name];
            let listing = nft_json(&name)?;
            let text = if roots.outward.is_empty() && roots.early.is_empty() {
                String::new()
            } else {
                run_nft(&[&["-s", "-a"], &name[..]].concat())?
            };
            for early in roots.early.iter_mut().filter(|it| it.devices.is_empty()) {
                early.devices = nft::devices(&text, &early.chain);
            }
            let is_here = |early: &nft::EarlyChain| {
                let devices = &early.devices;
                let all = devices.is_empty() || context.uplinks.is_empty();
                all || devices
                    .iter()
                    .any(|device| context.uplinks.contains(device))
            };
            roots.early.retain(is_here);
            let mut set = nft::ruleset(&listing, &text, roots, local);
            set.family = family;
            let family = family.map_or_else(|| "both".into(), |family| family.to_string());
            let place = format!("{} {}", table.family, table.name);
            let (rules, redirects) = (self.findings.rules.len(), self.result.redirects.rules.len());
            let probe = self.probe.as_ref();
            let translations = probe.map_or(0, |probe| probe.found.translations.len());
            self.assess(&set, &family, "nftables");
            self.assess_early(&set, &family, "nftables", &place);
            let rules = self.findings.rules.iter_mut().skip(rules);
            let rules = rules.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
            let redirects = self.result.redirects.rules.iter_mut().skip(redirects);
            let redirects =
                redirects.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
            let probed = self
                .probe
                .iter_mut()
                .flat_map(|it| &mut it.found.translations);
            let probed = probed.skip(translations).map(|found| &mut found.finding);
            let probed = probed.map(|found| (&mut found.chain, &mut found.owner, &found.rule));
            for (chain, owner, rule) in rules.chain(redirects).chain(probed) {
                *chain = format!("{place} {chain}");
                if owner == owner::UNKNOWN {
                    *owner = owner::owner(&[&table.name], rule).into();
                }
            }
        }
        Ok(())
    }

    fn assess(&mut self, set: &Ruleset, family: &str, backend: &str) {
        let context = self.context;
        if let Some(probe) = &mut self.probe {
            walk::translating(set, |rule| probe.meet(rule, family, backend, context));
            probe.look_for_service(set);
            return;
        }
        let redirects = redirect::reachable(set).into_iter().map(|rule| Redirect {
            owner: owner::owner(&[rule.chain], rule.rule).into(),
            backend: backend.into(),
            family: family.into(),
            chain: rule.chain.into(),
            rule: rule.rule.into(),
            ports: rule.ports,
        });
        self.result.redirects.rules.extend(redirects);
        let own = match &context.translator {
            Translator::Ebpf => None,
            Translator::Chain(name) => Some(name.as_str()),
        };
        let is_own =
            |rule: &walk::ReachableRule<'_, '_>| own.is_some_and(|own| rule.path.contains(&own));
        let mut position = None;
        if own.is_some() {
            walk::translating(set, |rule| {
                if position.is_none() && is_own(rule) {
                    position = Some(rule.position);
                }
            });
        }
        let mut assessor = Assessor::new(context);
        walk::translating(set, |rule| {
            if is_own(rule) {
                return;
            }
            sources(rule).for_each(|net| self.translated.insert(*net));
            let after = position.is_some_and(|own| rule.position > own);
            let assessment = assessor.assess(rule, after);
            self.findings.add(Finding {
                conflict: assessment.conflict,
                why: assessment.why,
                ..Finding::of(rule, family, backend)
            });
        });
    }

    /// Completes the scan. Replies to sources that another rule translates arrive as before:
    /// dropping them has no effect on netdp's flows.
    fn finish(mut self) -> ScanResult {
        let has_effect =
            |nets: &[IpNet]| nets.is_empty() || !nets.iter().all(|net| self.translated.covers(net));
        for (finding, nets) in self.drops {
            if has_effect(&nets) {
                self.findings.add(finding);
            }
        }
        self.result.findings.rules = self.findings.rules;
        self.result
    }
}

/// Returns the sources that a rule translates, whatever its other conditions; none if it names
/// none.
fn sources<'a>(rule: &walk::ReachableRule<'a, '_>) -> impl Iterator<Item = &'a IpNet> {
    let nets = rule.matches.iter().filter_map(|condition| match condition {
        Match::Source { nets, not: false } => Some(nets),
        _ => None,
    });
    nets.flatten()
}
