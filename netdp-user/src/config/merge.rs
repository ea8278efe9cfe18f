//! Several files into one policy.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::diagnostic::Diagnostic;
use super::key::Key;
use super::parse::{FileConfig, List};
use super::{Action, Config, DEFAULT_RESYNC_INTERVAL, Options, Origin, Rule};

const LINK_LOCAL_V4: IpNet = v4([169, 254, 0, 0], 16);
const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    10,
));

/// RFC 1918.
const DEFAULT_BYPASS: [IpNet; 3] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
];

/// The ranges of RFC 5735 and RFC 6598 that are not the internet, without those that other rules
/// cover.
const RESERVED_BYPASS: [IpNet; 8] = [
    v4([100, 64, 0, 0], 10),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([240, 0, 0, 0], 4),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(a, b, c, d),
        len,
    ))
}

/// Unites `files`, each with its name, in their order. Contradictions go to `errors`.
pub(super) fn merge(
    files: &[(&str, FileConfig)],
    options: &Options,
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Config {
    let masq_link_local = files.iter().any(|(_, file)| file.masq_link_local);
    let masq_link_local_ipv6 = files.iter().any(|(_, file)| file.masq_link_local_ipv6);
    let resync_interval = files
        .iter()
        .filter_map(|(_, file)| file.resync_interval)
        .min();

    let mut user = UserRules {
        rules: Vec::new(),
        index: HashMap::new(),
        errors,
    };
    let mut emptied = None;
    for (name, file) in files {
        if let Some(list) = &file.non_masquerade {
            emptied = emptied.or(Some((*name, list.line)));
            user.add(name, list, Action::Bypass);
        }
    }
    let explicit = emptied.is_some();
    if let Some((name, line)) = emptied
        && user.rules.is_empty()
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
            user.add(name, list, Action::Masquerade);
        }
    }

    let mut rules = Vec::new();
    let built_in = built_in(options, masq_link_local, masq_link_local_ipv6, explicit);
    rules.extend(
        built_in
            .into_iter()
            .filter(|rule| !user.index.contains_key(&rule.prefix)),
    );
    rules.append(&mut user.rules);
    warn_of_shadowed(&rules, warnings);
    Config {
        rules,
        resync_interval: resync_interval.unwrap_or(DEFAULT_RESYNC_INTERVAL),
        masq_link_local,
        masq_link_local_ipv6,
    }
}

/// The rules that nobody wrote. `explicit`: some file has a list of its own.
fn built_in(
    options: &Options,
    masq_link_local: bool,
    masq_link_local_ipv6: bool,
    explicit: bool,
) -> Vec<Rule> {
    let mut prefixes = Vec::new();
    if !masq_link_local {
        prefixes.push(LINK_LOCAL_V4);
    }
    if options.enable_ipv6 && !masq_link_local_ipv6 {
        prefixes.push(LINK_LOCAL_V6);
    }
    if !explicit {
        prefixes.extend(DEFAULT_BYPASS);
        if options.nomasq_all_reserved_ranges {
            prefixes.extend(RESERVED_BYPASS);
        }
    }
    let rule = |prefix| Rule {
        prefix,
        action: Action::Bypass,
        origin: Origin::BuiltIn,
    };
    prefixes.into_iter().map(rule).collect()
}

/// The rules of all files, each prefix once.
struct UserRules<'a> {
    rules: Vec<Rule>,
    /// Where in `rules` a prefix is.
    index: HashMap<IpNet, usize>,
    errors: &'a mut Vec<Diagnostic>,
}

impl UserRules<'_> {
    fn add(&mut self, file: &str, list: &List, action: Action) {
        let file: Arc<str> = Arc::from(file);
        for entry in &list.entries {
            let Some(other) = self
                .index
                .get(&entry.prefix)
                .and_then(|&at| self.rules.get(at))
            else {
                self.index.insert(entry.prefix, self.rules.len());
                let origin = Origin::File {
                    file: Arc::clone(&file),
                    line: entry.line,
                };
                self.rules.push(Rule {
                    prefix: entry.prefix,
                    action,
                    origin,
                });
                continue;
            };
            // Two files that agree are what uniting them is for.
            if other.action != action {
                let message = format!(
                    "{} is in {} here, but in {} at {}; keep one of the two",
                    entry.prefix,
                    list_of(action),
                    list_of(other.action),
                    other.origin
                );
                self.errors.push(Diagnostic::at(&file, entry.line, message));
            }
        }
    }
}

fn list_of(action: Action) -> &'static str {
    match action {
        Action::Bypass => Key::NonMasqueradeCidrs.name(),
        Action::Masquerade => Key::MasqueradeCidrs.name(),
    }
}

/// Warns of each written bypass whose next broader rule is a bypass too: it changes nothing.
fn warn_of_shadowed(rules: &[Rule], warnings: &mut Vec<Diagnostic>) {
    let mut sorted: Vec<&Rule> = rules.iter().collect();
    // A prefix comes right before what it contains, so that the rules around the current one are a
    // stack, and the longest list costs no more than sorting it.
    sorted.sort_by_key(|rule| rule.prefix);
    let mut around: Vec<&Rule> = Vec::new();
    let mut shadowed: HashMap<IpNet, &Rule> = HashMap::new();
    for rule in sorted {
        while around
            .last()
            .is_some_and(|outer| !outer.prefix.contains(&rule.prefix))
        {
            around.pop();
        }
        if let Some(outer) = around.last()
            && (outer.action, rule.action) == (Action::Bypass, Action::Bypass)
        {
            shadowed.insert(rule.prefix, outer);
        }
        around.push(rule);
    }
    for rule in rules {
        if let Origin::File { file, line } = &rule.origin
            && let Some(outer) = shadowed.get(&rule.prefix)
        {
            let key = Key::NonMasqueradeCidrs.name();
            let message = format!(
                "{key}: {} changes nothing, because {} ({}) contains it",
                rule.prefix, outer.prefix, outer.origin
            );
            warnings.push(Diagnostic::at(file, *line, message));
        }
    }
}
