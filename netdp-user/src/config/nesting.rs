//! Prefixes inside prefixes, found by sorting: the longest list costs little more than that.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::Diagnostic;
use super::key::Key;
use super::{Action, Origin, Rule};

/// Calls `visit` with each rule of `rules` and those around it, the broadest first.
pub(super) fn walk<'a>(rules: &[&'a Rule], mut visit: impl FnMut(&'a Rule, &[&'a Rule])) {
    let mut sorted = rules.to_vec();
    // A prefix comes right before what it contains, so that the rules around the current one are a
    // stack.
    sorted.sort_by_key(|rule| rule.prefix);
    let mut around: Vec<&Rule> = Vec::new();
    for rule in sorted {
        while around
            .last()
            .is_some_and(|outer| !outer.prefix.contains(&rule.prefix))
        {
            around.pop();
        }
        visit(rule, &around);
        around.push(rule);
    }
}

/// The bypasses of `rules` that lie in one of `nat`, or are the same, each with the broadest such.
pub(super) fn bypasses_inside<'a>(rules: &'a [Rule], nat: &'a [Rule]) -> Vec<(&'a Rule, &'a Rule)> {
    let bypasses = rules.iter().filter(|rule| rule.action == Action::Bypass);
    // Sorting is stable: of equal prefixes that of `nat` is the outer one.
    let all: Vec<&Rule> = nat.iter().chain(bypasses).collect();
    let mut inside = Vec::new();
    walk(&all, |rule, around| {
        let outer = around.iter().find(|r| r.action == Action::Masquerade);
        if let (Action::Bypass, Some(outer)) = (rule.action, outer) {
            inside.push((rule, *outer));
        }
    });
    inside
}

/// Warns of each written bypass whose next broader rule is a bypass too: it changes nothing.
pub(super) fn warn_of_shadowed(rules: &[Rule], warnings: &mut Vec<Diagnostic>) {
    let mut shadowed: HashMap<IpNet, &Rule> = HashMap::new();
    walk(&rules.iter().collect::<Vec<_>>(), |rule, around| {
        if let Some(outer) = around.last()
            && (outer.action, rule.action) == (Action::Bypass, Action::Bypass)
        {
            shadowed.insert(rule.prefix, outer);
        }
    });
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
