//! Nested prefixes, found by sorting: even the longest list costs little more than that.

use super::{Rule, RuleAction};

/// Calls `visit` with each rule of `rules` and those around it, the broadest first.
pub(super) fn walk<'a>(rules: &[&'a Rule], mut visit: impl FnMut(&'a Rule, &[&'a Rule])) {
    let mut sorted = rules.to_vec();
    // A prefix comes right before those that it contains, so the rules around the current one are a
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

/// Returns the bypasses of `rules` that lie in, or equal, one of `nat`, each with the broadest
/// such.
pub(super) fn bypasses_inside<'a>(rules: &'a [Rule], nat: &'a [Rule]) -> Vec<(&'a Rule, &'a Rule)> {
    let bypasses = rules
        .iter()
        .filter(|rule| rule.action == RuleAction::Bypass);
    // Sorting is stable: of equal prefixes that of `nat` is the outer one.
    let all: Vec<&Rule> = nat.iter().chain(bypasses).collect();
    let mut inside = Vec::new();
    walk(&all, |rule, around| {
        let outer = around.iter().find(|r| r.action == RuleAction::Masquerade);
        if let (RuleAction::Bypass, Some(outer)) = (rule.action, outer) {
            inside.push((rule, *outer));
        }
    });
    inside
}
