//! Walk from the base chains to the rules that translate sources or drop ingress packets, with the
//! conditions under which packets reach them.

use super::rule::{Match, Rule, Ruleset, Target};
use crate::prefixes::PrefixSet;
use ipnet::IpNet;
use netdp_common::addr::Family;

/// Maximum depth of jumps; the kernel allows no more (NFT_JUMP_STACK_SIZE,
/// include/net/netfilter/nf_tables.h).
const MAX_DEPTH: usize = 16;

/// A rule that translates or drops, with the path to it.
#[derive(Debug)]
pub struct Reached<'a, 'w> {
    pub rule: &'a Rule,
    /// The only family of packets here, if it is restricted.
    pub family: Option<Family>,
    /// Chains from the base chain on.
    pub path: &'w [&'a str],
    /// Position in the base chain of the rule, or of the jump that leads to it.
    pub position: usize,
    /// Conditions on the path and of the rule itself.
    pub matches: Vec<&'a Match>,
    /// Destinations of packets that leave a chain earlier on the path.
    pub spared: &'w PrefixSet,
    /// Number of changes of `spared`.
    pub spared_version: u64,
    /// The mark without which packets leave a chain earlier on the path.
    pub mark: Option<&'a str>,
}

impl Reached<'_, '_> {
    /// Returns the chain that contains the rule.
    pub fn chain(&self) -> &str {
        self.path.last().copied().unwrap_or_default()
    }
}

/// Calls `each` for all rules that translate, in the order in which packets meet them.
pub fn reached<'a>(set: &'a Ruleset, each: impl FnMut(&Reached<'a, '_>)) {
    let translates = |target: &Target| matches!(target, Target::Masquerade | Target::Snat(_));
    walk(set, &set.roots, translates, each);
}

/// Calls `each` for all rules that drop ingress packets before netfilter would translate replies.
pub fn early_drops<'a>(set: &'a Ruleset, each: impl FnMut(&Reached<'a, '_>)) {
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
    mut each: impl FnMut(&Reached<'a, '_>),
) {
    let mut way = Way::default();
    for root in roots {
        let Some(rules) = set.chains.get(root) else {
            continue;
        };
        way.path = vec![root];
        let place = way.place();
        for (position, rule) in rules.iter().enumerate() {
            step(set, rule, position, wanted, &mut way, &mut each);
        }
        way.go_back(place);
    }
}

#[derive(Debug, Default)]
struct Way<'a> {
    path: Vec<&'a str>,
    matches: Vec<&'a Match>,
    /// Destinations in the order in which they were met.
    spared: Vec<&'a IpNet>,
    /// The destinations of `spared` as a set.
    spared_set: PrefixSet,
    spared_version: u64,
    mark: Option<&'a str>,
}

/// A position on the path, to return to.
struct Place<'a> {
    matches: usize,
    spared: usize,
    mark: Option<&'a str>,
}

impl<'a> Way<'a> {
    const fn place(&self) -> Place<'a> {
        Place {
            matches: self.matches.len(),
            spared: self.spared.len(),
            mark: self.mark,
        }
    }

    /// Removes everything that a completed chain has added.
    fn go_back(&mut self, place: Place<'a>) {
        self.path.pop();
        self.matches.truncate(place.matches);
        for net in self.spared.drain(place.spared..) {
            self.spared_set.remove(net);
            self.spared_version += 1;
        }
        self.mark = place.mark;
    }

    fn spare(&mut self, nets: &'a [IpNet]) {
        self.spared_version += 1;
        for net in nets {
            self.spared.push(net);
            self.spared_set.insert(*net);
        }
    }
}

fn step<'a>(
    set: &'a Ruleset,
    rule: &'a Rule,
    position: usize,
    wanted: fn(&Target) -> bool,
    way: &mut Way<'a>,
    each: &mut impl FnMut(&Reached<'a, '_>),
) {
    match &rule.target {
        target if wanted(target) => each(&Reached {
            rule,
            family: set.family,
            path: &way.path,
            position,
            matches: way.matches.iter().copied().chain(&rule.matches).collect(),
            spared: &way.spared_set,
            spared_version: way.spared_version,
            mark: way.mark,
        }),
        // A rule with one condition ends the path of every packet that matches it; with more
        // conditions, packets that match one of them may continue.
        Target::Leave => match rule.matches.as_slice() {
            [Match::Destination { nets, not: false }] => way.spare(nets),
            [Match::Mark { text, set: false }] => way.mark = Some(text),
            _ => {}
        },
        Target::Jump(name) => {
            let (Some((name, rules)), true) = (
                set.chains.get_key_value(name),
                way.path.len() < MAX_DEPTH && !way.path.contains(&name.as_str()),
            ) else {
                return;
            };
            let place = way.place();
            way.path.push(name);
            way.matches.extend(&rule.matches);
            for rule in rules {
                step(set, rule, position, wanted, way, each);
            }
            way.go_back(place);
        }
        Target::Masquerade | Target::Snat(_) | Target::Drop | Target::Other => {}
    }
}
