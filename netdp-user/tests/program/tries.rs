//! Content of the kernel's tries after any number of changes, compared with an independent reader.

use crate::node::Node;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Map, MapData};
use ipnet::IpNet;
use netdp_common::layout::{ACTION_MASK, Action, Addr, POLICY_NO_RULE, PolicyValue, pins};
use netdp_user::datapath::History;
use netdp_user::reconcile::PolicyRule;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

type Trie = BTreeMap<(u32, IpAddr), (u32, u32)>;

/// Returns the entries of both tries, the active one first.
fn tries(node: &mut Node) -> [Trie; 2] {
    let active = node.datapath().maps().settings().expect("the settings");
    let read = |pin: &str| -> Trie {
        let map = MapData::from_pin(node.bpffs().join(pin)).expect("a pinned map");
        let trie: LpmTrie<_, Addr, PolicyValue> = Map::LpmTrie(map).try_into().expect("a trie");
        let entry = |entry: Result<_, _>| {
            let (key, value): (aya::maps::lpm_trie::Key<Addr>, PolicyValue) =
                entry.expect("an entry");
            let key = (key.prefix_len(), IpAddr::from(key.data()));
            (key, (value.action, value.rule))
        };
        trie.iter().map(entry).collect()
    };
    let [first, second] = [pins::POLICY_0, pins::POLICY_1].map(read);
    if active.active_policy == 0 {
        [first, second]
    } else {
        [second, first]
    }
}

fn rules(policy: &[(IpNet, bool)]) -> Vec<PolicyRule> {
    let policy: BTreeMap<IpNet, bool> = policy.iter().copied().collect();
    let action = |bypass| match bypass {
        true => Action::Bypass,
        false => Action::Masquerade,
    };
    let rule = |(prefix, bypass)| PolicyRule {
        prefix,
        action: action(bypass),
    };
    policy.into_iter().map(rule).collect()
}

fn key(net: &IpNet) -> (u32, IpAddr) {
    let above = if net.addr().is_ipv4() { 96 } else { 0 };
    (u32::from(net.prefix_len()) + above, net.network())
}

/// Returns a strategy for networks that are often equal or nested.
fn network() -> impl Strategy<Value = IpNet> {
    let v4 = (8u8..=32, 0u8..8, 0u8..4).prop_map(|(len, a, b)| {
        let net = IpNet::new(IpAddr::from([10, a, 0, b]), len);
        net.expect("a network").trunc()
    });
    let v6 = (0u8..=128, 0u16..4, 0u16..4).prop_map(|(len, a, b)| {
        let net = IpNet::new(IpAddr::from([0xfd00, a, 0, 0, 0, 0, 0, b]), len);
        net.expect("a network").trunc()
    });
    prop_oneof![v4, v6]
}

#[derive(Debug, Clone)]
enum Step {
    Set(Vec<(IpNet, bool)>, bool),
    Prepare,
    Forget,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let policy = prop::collection::vec((network(), any::<bool>()), 0..12);
    prop_oneof![
        4 => (policy, any::<bool>()).prop_map(|(policy, keep)| Step::Set(policy, keep)),
        2 => Just(Step::Prepare),
        1 => Just(Step::Forget),
        1 => Just(Step::Restart),
    ]
}

/// Returns the rules of a trie without its marks.
fn policy_of(trie: &Trie) -> BTreeMap<(u32, IpAddr), u32> {
    let ruled = trie
        .iter()
        .filter(|(_, (action, _))| action & POLICY_NO_RULE == 0);
    ruled
        .map(|(key, (action, _))| (*key, action & ACTION_MASK))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_trie_holds_what_a_fresh_one_would(steps in prop::collection::vec(step(), 1..12)) {
        let mut node = Node::new();
        node.policy(&[]);
        let root = "0.0.0.0/0".parse().expect("a network");
        let mut wanted = BTreeMap::from([(key(&root), Action::Masquerade as u32)]);
        for step in &steps {
            match step {
                Step::Set(policy, keep) => {
                    let rules = rules(policy);
                    let history = if *keep { History::Keep } else { History::Forget };
                    node.datapath().maps_mut().set_policy(&rules, history).expect("a policy");
                    wanted = BTreeMap::from([(key(&root), Action::Masquerade as u32)]);
                    wanted.extend(rules.iter().map(|r| (key(&r.prefix), r.action as u32)));
                    let [active, _] = tries(&mut node);
                    if !keep {
                        prop_assert_eq!(active.len(), wanted.len(), "what is of the past");
                    }
                }
                Step::Prepare => {
                    node.datapath().prepare_policy().expect("the idle trie");
                    let [active, idle] = tries(&mut node);
                    prop_assert_eq!(active, idle);
                    let again = node.datapath().prepare_policy().expect("the idle trie");
                    prop_assert_eq!(again, 0);
                }
                Step::Forget => node.datapath().expire_history().expect("the policy"),
                Step::Restart => {
                    node.stop();
                    node.start().expect("a second agent");
                }
            }
            let [active, _] = tries(&mut node);
            prop_assert_eq!(policy_of(&active), wanted.clone(), "after {:?}", step);
            let mut numbers: Vec<u32> = active
                .values()
                .filter(|(action, rule)| action & POLICY_NO_RULE == 0 && *rule != u32::MAX)
                .map(|(_, rule)| *rule)
                .collect();
            numbers.sort_unstable();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", numbers);
        }
    }
}

/// A line before all others, after the standby trie has been brought up to date.
#[test]
fn one_more_rule_is_one_write() {
    let mut node = Node::new();
    let all: Vec<(IpNet, bool)> = (0..200u8)
        .map(|n| (format!("10.{n}.0.0/16").parse().expect("a network"), true))
        .collect();
    let mut set = |policy: &[(IpNet, bool)]| {
        let maps = node.datapath().maps_mut();
        let change = maps.set_policy(&rules(policy), History::Keep);
        let change = change.expect("a policy");
        node.datapath().prepare_policy().expect("the idle trie");
        change.writes
    };
    // Including the root of IPv4.
    assert_eq!(set(&all[1..]), 200);
    assert_eq!(set(&all), 1);
    assert_eq!(set(&all[..199]), 1, "the mark that is left of it");
}
