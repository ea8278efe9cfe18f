//! Which rules that translate sources, or drop what comes in, are reached from the roots, and what a
//! packet has to be like to get there.

use super::rule::{Match, Rule, Ruleset, Target};
use crate::iptables::Family;
use crate::prefixes::PrefixSet;
use ipnet::IpNet;

/// Chains in chains in chains: the kernel takes no more (NFT_JUMP_STACK_SIZE,
/// include/net/netfilter/nf_tables.h).
const MAX_DEPTH: usize = 16;

/// A rule that translates or drops, with its way there.
#[derive(Debug)]
pub struct Reached<'a, 'w> {
    pub rule: &'a Rule,
    /// The only family whose packets come here, if there is one.
    pub family: Option<Family>,
    /// From the root on.
    pub path: &'w [&'a str],
    /// Where in the root it is, or what leads to it.
    pub position: usize,
    /// Every condition on the way and its own.
    pub matches: Vec<&'a Match>,
    /// Destinations that leave a chain on the way before.
    pub spared: &'w PrefixSet,
    /// How often that has changed.
    pub spared_version: u64,
    /// The mark without which packets leave a chain on the way before.
    pub mark: Option<&'a str>,
}

impl Reached<'_, '_> {
    /// The chain that the rule is in.
    pub fn chain(&self) -> &str {
        self.path.last().copied().unwrap_or_default()
    }
}

/// Shows all that translate to `each`, in the order in which packets meet them.
pub fn reached<'a>(set: &'a Ruleset, each: impl FnMut(&Reached<'a, '_>)) {
    let translates = |target: &Target| matches!(target, Target::Masquerade | Target::Snat(_));
    walk(set, &set.roots, translates, each);
}

/// Shows all to `each` that drop what comes in before answers would get a pod's address.
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
    /// In the order in which they were met.
    spared: Vec<&'a IpNet>,
    /// The same.
    spared_set: PrefixSet,
    spared_version: u64,
    mark: Option<&'a str>,
}

/// How much of a way was gone.
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

    /// Forgets what a chain has added that is over.
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
        // What has one condition only is surely out; with more, it may go on.
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
