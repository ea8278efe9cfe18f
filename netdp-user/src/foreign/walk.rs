//! Walk from the base chains to the rules that translate sources or drop ingress packets, with the
//! conditions under which packets reach them.

use super::rule::{Match, NatRule, Ruleset, Target};
use crate::prefixes::PrefixSet;
use ipnet::IpNet;
use netdp_common::layout::Family;

/// Maximum depth of jumps; the kernel allows no more (NFT_JUMP_STACK_SIZE,
/// include/net/netfilter/nf_tables.h).
const MAX_DEPTH: usize = 16;

/// A rule that translates or drops, with the path to it.
#[derive(Debug)]
pub(crate) struct ReachableRule<'a, 'w> {
    pub rule: &'a NatRule,
    /// The only family of packets here, if it is restricted.
    pub family: Option<Family>,
    /// Chains from the base chain on.
    pub path: &'w [&'a str],
    /// Position in the base chain of the rule, or of the jump that leads to it.
    pub position: usize,
    /// Conditions on the path and of the rule itself.
    pub matches: Vec<&'a Match>,
    /// Destinations of packets that leave a chain earlier on the path.
    pub excluded: &'w PrefixSet,
    /// Number of changes of `excluded`.
    pub excluded_version: u64,
    /// The mark without which packets leave a chain earlier on the path.
    pub mark: Option<&'a str>,
    /// Conditions of the other rules by which packets leave a chain earlier on the path: those that
    /// meet all conditions of one of them don't get here.
    pub leaves: &'w [&'a [Match]],
}

impl ReachableRule<'_, '_> {
    /// Returns the chain that contains the rule.
    pub(crate) fn chain(&self) -> &str {
        self.path.last().copied().unwrap_or_default()
    }
}

/// Calls `each` for all rules that translate, in the order in which packets meet them.
pub(crate) fn translating<'a>(set: &'a Ruleset, each: impl FnMut(&ReachableRule<'a, '_>)) {
    let translates = |target: &Target| matches!(target, Target::Masquerade | Target::Snat(_));
    walk(set, &set.roots, translates, each);
}

/// Calls `each` for all rules that drop ingress packets before netfilter would translate replies.
pub(crate) fn early_drops<'a>(set: &'a Ruleset, each: impl FnMut(&ReachableRule<'a, '_>)) {
    walk(
        set,
        &set.early_roots,
        |target| *target == Target::Drop,
        each,
    );
}

fn walk<'a>(
    set: &'a Ruleset,
    roots: &'a [String],
    wanted: fn(&Target) -> bool,
    mut each: impl FnMut(&ReachableRule<'a, '_>),
) {
    let mut walk = Walk::default();
    for root in roots {
        let Some(rules) = set.chains.get(root) else {
            continue;
        };
        walk.path = vec![root];
        let checkpoint = walk.checkpoint();
        for (position, rule) in rules.iter().enumerate() {
            step(set, rule, position, wanted, &mut walk, &mut each);
        }
        walk.return_to(checkpoint);
    }
}

#[derive(Debug, Default)]
struct Walk<'a> {
    path: Vec<&'a str>,
    matches: Vec<&'a Match>,
    /// Destinations in the order in which they were met.
    excluded: Vec<&'a IpNet>,
    /// The destinations of `excluded` as a set.
    excluded_set: PrefixSet,
    excluded_version: u64,
    mark: Option<&'a str>,
    leaves: Vec<&'a [Match]>,
}

/// A position on the path, to return to.
struct Checkpoint<'a> {
    matches: usize,
    excluded: usize,
    mark: Option<&'a str>,
    leaves: usize,
}

impl<'a> Walk<'a> {
    const fn checkpoint(&self) -> Checkpoint<'a> {
        Checkpoint {
            matches: self.matches.len(),
            excluded: self.excluded.len(),
            mark: self.mark,
            leaves: self.leaves.len(),
        }
    }

    /// Removes everything that a completed chain has added.
    fn return_to(&mut self, checkpoint: Checkpoint<'a>) {
        self.path.pop();
        self.matches.truncate(checkpoint.matches);
        for net in self.excluded.drain(checkpoint.excluded..) {
            self.excluded_set.remove(net);
            self.excluded_version += 1;
        }
        self.mark = checkpoint.mark;
        self.leaves.truncate(checkpoint.leaves);
    }

    fn exclude(&mut self, nets: &'a [IpNet]) {
        self.excluded_version += 1;
        for net in nets {
            self.excluded.push(net);
            self.excluded_set.insert(*net);
        }
    }
}

fn step<'a>(
    set: &'a Ruleset,
    rule: &'a NatRule,
    position: usize,
    wanted: fn(&Target) -> bool,
    walk: &mut Walk<'a>,
    each: &mut impl FnMut(&ReachableRule<'a, '_>),
) {
    match &rule.target {
        target if wanted(target) => each(&ReachableRule {
            rule,
            family: set.family,
            path: &walk.path,
            position,
            matches: walk.matches.iter().copied().chain(&rule.matches).collect(),
            excluded: &walk.excluded_set,
            excluded_version: walk.excluded_version,
            mark: walk.mark,
            leaves: &walk.leaves,
        }),
        // A rule with one condition ends the path of every packet that matches it; with more
        // conditions, packets that match one of them may continue.
        Target::Leave => match rule.matches.as_slice() {
            [Match::Destination { nets, not: false }] => walk.exclude(nets),
            [Match::Mark { text, set: false }] => walk.mark = Some(text),
            conditions => walk.leaves.push(conditions),
        },
        Target::Jump(name) => {
            let (Some((name, rules)), true) = (
                set.chains.get_key_value(name),
                walk.path.len() < MAX_DEPTH && !walk.path.contains(&name.as_str()),
            ) else {
                return;
            };
            let checkpoint = walk.checkpoint();
            walk.path.push(name);
            walk.matches.extend(&rule.matches);
            for rule in rules {
                step(set, rule, position, wanted, walk, each);
            }
            walk.return_to(checkpoint);
        }
        Target::Masquerade | Target::Snat(_) | Target::Drop | Target::Other => {}
    }
}
