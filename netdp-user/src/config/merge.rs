//! Merge of several files into one policy.
//!
//! The order of the files affects only the order of the rules and the first origin of a rule.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::auto::{self, AutoNetworks};
use super::defaults::{self, Overrides};
use super::diagnostic::Diagnostic;
use super::key::Key;
use super::lint::{self, Exempt};
use super::nesting;
use super::parse::Entry;
use super::settings::{self, Files};
use super::{Config, DEFAULT_RESYNC_INTERVAL, Options, Origin, Rule, RuleAction};

/// Merges `files`, each with its name, in their order, and adds the `networks` that
/// `autoNonMasquerade` names. Contradictions are appended to `errors`.
pub(super) fn merge(
    files: Files<'_>,
    options: &Options,
    networks: &AutoNetworks,
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Config {
    let masq_link_local = settings::any_true(files, Key::MasqLinkLocal, warnings);
    let masq_link_local_ipv6 = settings::any_true(files, Key::MasqLinkLocalIpv6, warnings);
    let resync_interval = settings::shortest_interval(files, warnings);
    let auto = auto::united(files);

    let mut user = UserRules::default();
    for (name, file) in files {
        if let Some(list) = &file.non_masquerade {
            user.add(name, &list.entries, RuleAction::Bypass, errors);
        }
    }
    let emptied = files
        .iter()
        .find_map(|(name, file)| Some((*name, file.non_masquerade.as_ref()?.line)));
    if let Some((name, line)) = emptied
        && user.rules.is_empty()
        && auto.is_empty()
        && options.default_action != Some(RuleAction::Bypass)
    {
        let key = Key::NonMasqueradeCidrs.name();
        let message = format!(
            "{key} is empty, so that all destinations are masqueraded; remove the key for the \
             defaults"
        );
        warnings.push(Diagnostic::at(name, line, message));
    }
    for (name, file) in files {
        if let Some(list) = &file.masquerade {
            user.add(name, &list.entries, RuleAction::Masquerade, errors);
        }
    }

    let overrides = Overrides {
        list: emptied.is_some(),
        masq_link_local,
        masq_link_local_ipv6,
    };
    let mut exempt = Exempt::default();
    let mut rules = defaults::rules(options, overrides);
    rules.retain(|rule| {
        let replaced = user.index.contains_key(&rule.prefix);
        if replaced {
            exempt.replacing.insert(rule.prefix);
        }
        !replaced
    });
    rules.append(&mut user.rules);
    // Before the NAT rules, which replace bypasses inside them, these too.
    let of_cluster = auto::rules(&auto, networks, options, &rules);
    rules.extend(of_cluster);
    add_nat_rules(files, &mut rules, warnings);
    let nat_rules = files.iter().flat_map(|(_, file)| &file.nat_rules);
    exempt.nat_rules = nat_rules.map(|entry| entry.prefix).collect();
    exempt.inside_cluster = !auto.is_empty();
    lint::redundant(&rules, &exempt, warnings);
    let config = Config {
        rules: rules.into(),
        resync_interval: resync_interval.unwrap_or(DEFAULT_RESYNC_INTERVAL),
        masq_link_local,
        masq_link_local_ipv6,
        auto,
    };
    lint::link_local(files, &config, options, warnings);
    config
}

/// The rules of all files, without duplicate prefixes.
#[derive(Default)]
struct UserRules {
    rules: Vec<Rule>,
    /// Position of a prefix in `rules`.
    index: HashMap<IpNet, usize>,
}

impl UserRules {
    fn add(
        &mut self,
        file: &str,
        entries: &[Entry],
        action: RuleAction,
        errors: &mut Vec<Diagnostic>,
    ) {
        let file: Arc<str> = Arc::from(file);
        self.rules.reserve(entries.len());
        self.index.reserve(entries.len());
        for entry in entries {
            let origin = Origin::File {
                file: Arc::clone(&file),
                line: entry.line,
            };
            let known = self.index.get(&entry.prefix);
            let Some(other) = known.and_then(|&at| self.rules.get_mut(at)) else {
                self.index.insert(entry.prefix, self.rules.len());
                self.rules.push(Rule {
                    prefix: entry.prefix,
                    action,
                    origin,
                    also: Vec::new(),
                });
                continue;
            };
            // Equal rules in two files are the normal case of a merge.
            if other.action == action {
                other.also.push(origin);
                continue;
            }
            let message = format!(
                "{} is in {} here, but in {} at {}; keep one of the two",
                entry.prefix,
                list_of(action),
                list_of(other.action),
                other.origin
            );
            errors.push(Diagnostic::at(&file, entry.line, message));
        }
    }
}

/// Adds the entries of every `nat.rules` to `rules`. Such a network is masqueraded as a whole, as
/// it is by k8s-custom-iptables, whose rule comes after all of ip-masq-agent's: a bypass inside is
/// removed.
fn add_nat_rules(files: Files<'_>, rules: &mut Vec<Rule>, warnings: &mut Vec<Diagnostic>) {
    let mut nat = UserRules::default();
    for (name, file) in files {
        nat.add(
            name,
            &file.nat_rules,
            RuleAction::Masquerade,
            &mut Vec::new(),
        );
    }
    if nat.rules.is_empty() {
        return;
    }
    let mut dropped = HashSet::new();
    for (inner, outer) in nesting::bypasses_inside(rules, &nat.rules) {
        dropped.insert(inner.prefix);
        if let Origin::File { file, line } = &inner.origin {
            let message = format!(
                "{}: {} changes nothing, because {} ({}) masquerades all of it; move that to {} \
                 if the longer prefix is to decide",
                Key::NonMasqueradeCidrs.name(),
                inner.prefix,
                outer.prefix,
                outer.origin,
                Key::MasqueradeCidrs.name()
            );
            warnings.push(Diagnostic::at(file, *line, message));
        }
    }
    rules.retain(|rule| !dropped.contains(&rule.prefix));
    // An entry that is also in masqueradeCIDRs only gains an origin.
    for rule in rules.iter_mut() {
        if let Some(&at) = nat.index.get(&rule.prefix)
            && let Some(same) = nat.rules.get(at)
        {
            rule.also.push(same.origin.clone());
            rule.also.extend(same.also.iter().cloned());
        }
    }
    let known: HashSet<IpNet> = rules.iter().map(|rule| rule.prefix).collect();
    rules.extend(
        nat.rules
            .into_iter()
            .filter(|rule| !known.contains(&rule.prefix)),
    );
}

fn list_of(action: RuleAction) -> &'static str {
    match action {
        RuleAction::Bypass => Key::NonMasqueradeCidrs.name(),
        RuleAction::Masquerade => Key::MasqueradeCidrs.name(),
    }
}
