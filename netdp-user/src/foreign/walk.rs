//! Which rules that translate sources, or drop what comes in, are reached from the roots, and what a
//! packet has to be like to get there.

use super::rule::{Match, Rule, Ruleset, Target};
use crate::iptables::Family;
use ipnet::IpNet;

/// Chains in chains in chains: the kernel takes no more (NFT_JUMP_STACK_SIZE,
/// include/net/netfilter/nf_tables.h).
const MAX_DEPTH: usize = 16;

/// A rule that translates or drops, with its way there.
#[derive(Debug, Clone)]
pub struct Reached<'a> {
    pub rule: &'a Rule,
    /// The only family whose packets come here, if there is one.
    pub family: Option<Family>,
    /// From the root on.
    pub path: Vec<&'a str>,
    /// Where in the root it is, or what leads to it.
    pub position: usize,
    /// Every condition on the way and its own.
    pub matches: Vec<&'a Match>,
    /// Destinations that leave a chain on the way before.
    pub spared: Vec<&'a IpNet>,
    /// The mark without which packets leave a chain on the way before.
    pub mark: Option<&'a str>,
}

impl Reached<'_> {
    /// The chain that the rule is in.
    pub fn chain(&self) -> &str {
        self.path.last().copied().unwrap_or_default()
    }
}

/// All that translate, in the order in which packets meet them.
pub fn reached(set: &Ruleset) -> Vec<Reached<'_>> {
    let translates = |target: &Target| matches!(target, Target::Masquerade | Target::Snat(_));
    walk(set, &set.roots, translates)
}

/// All that drop what comes in before answers would get a pod's address.
pub fn early_drops(set: &Ruleset) -> Vec<Reached<'_>> {
    walk(set, &set.early_roots, |target| *target == Target::Drop)
}

fn walk<'a>(
    set: &'a Ruleset,
    roots: &'a [String],
    wanted: fn(&Target) -> bool,
) -> Vec<Reached<'a>> {
    let mut found = Vec::new();
    for root in roots {
        let Some(rules) = set.chains.get(root) else {
            continue;
        };
        let mut state = Way {
            path: vec![root],
            ..Way::default()
        };
        for (position, rule) in rules.iter().enumerate() {
            step(set, rule, position, wanted, &mut state, &mut found);
        }
    }
    found
}

#[derive(Debug, Clone, Default)]
struct Way<'a> {
    path: Vec<&'a str>,
    matches: Vec<&'a Match>,
    spared: Vec<&'a IpNet>,
    mark: Option<&'a str>,
}

fn step<'a>(
    set: &'a Ruleset,
    rule: &'a Rule,
    position: usize,
    wanted: fn(&Target) -> bool,
    way: &mut Way<'a>,
    found: &mut Vec<Reached<'a>>,
) {
    match &rule.target {
        target if wanted(target) => found.push(Reached {
            rule,
            family: set.family,
            path: way.path.clone(),
            position,
            matches: way.matches.iter().copied().chain(&rule.matches).collect(),
            spared: way.spared.clone(),
            mark: way.mark,
        }),
        // What has one condition only is surely out; with more, it may go on.
        Target::Leave => match rule.matches.as_slice() {
            [Match::Destination { nets, not: false }] => way.spared.extend(nets),
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
            let mut inner = way.clone();
            inner.path.push(name);
            inner.matches.extend(&rule.matches);
            for rule in rules {
                step(set, rule, position, wanted, &mut inner, found);
            }
        }
        Target::Masquerade | Target::Snat(_) | Target::Drop | Target::Other => {}
    }
}
