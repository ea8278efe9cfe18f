//! The bypass cache: packets between cached address pairs pass without a lookup.

use crate::build::{Build, SYN};
use crate::node::{Node, becomes};
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};
use netdp_common::layout::{Addr, PolicyValue, SETTING_BYPASS_CACHE_VALID, pins};
use netdp_user::reconcile::Change;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pod, server, and the pod's external endpoint.
const PAIRS: [(&str, &str, &str); 2] = [
    ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"),
    ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"),
];

const BYPASS: [&str; 2] = ["198.51.100.0/24", "2001:db8::/64"];

/// Returns a node that bypasses the servers. `bypass_cache`: the agent has found that no live
/// mapping contradicts that policy.
fn bypassing(bypass_cache: bool) -> Node {
    // The cache is per CPU.
    let mut cpus = CpuSet::new();
    // SAFETY: no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    cpus.set(usize::try_from(cpu).expect("a CPU"))
        .expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("staying on a CPU");

    let mut node = Node::new();
    node.policy(&BYPASS);
    if bypass_cache {
        node.sweep(&Node::local());
    }
    assert_eq!(has_bypass_cache(&mut node), bypass_cache);
    node
}

fn has_bypass_cache(node: &mut Node) -> bool {
    let settings = node.datapath().maps().settings().expect("settings");
    settings.flags & SETTING_BYPASS_CACHE_VALID != 0
}

/// Removes the policy behind the agent's back: a policy lookup then yields "masquerade".
fn lose_policy(node: &Node) {
    for pin in [pins::POLICY_0, pins::POLICY_1] {
        let map = MapData::from_pin(node.bpffs().join(pin)).expect("a pinned trie");
        let mut trie: LpmTrie<_, Addr, PolicyValue> = Map::LpmTrie(map).try_into().expect("a trie");
        let keys: Vec<Key<Addr>> = trie.keys().collect::<Result<_, _>>().expect("keys");
        for key in keys {
            trie.remove(&key).expect("an entry");
        }
    }
}

/// Returns the number of packets that a test counts as: each is run more than once.
fn counted(
    node: &mut Node,
    packet: &Build,
    get: fn(&netdp_common::layout::Counters) -> u64,
) -> u64 {
    let before = get(&node.counters());
    assert_eq!(node.out(packet), becomes(packet));
    get(&node.counters()) - before
}

#[test]
fn a_known_pair_passes_without_a_look_and_is_counted() {
    let mut node = bypassing(true);
    for (pod, server, _) in PAIRS {
        let first = Build::tcp(pod, server, SYN);
        let judged = counted(&mut node, &first, |c| c.egress_bypassed.packets);
        assert!(judged > 0, "the first is counted");
    }
    lose_policy(&node);
    for (pod, server, wire) in PAIRS {
        // Any ports of the same two addresses, in either direction.
        let second = Build::udp(pod, &server.replace("443", "53"));
        let known = counted(&mut node, &second, |c| c.egress_bypassed.packets);
        assert!(known > 0, "it is counted like the first");
        let before = node.counters().ingress_passed.packets;
        assert_eq!(node.back(&second.answer()), becomes(&second.answer()));
        assert_eq!(node.counters().ingress_passed.packets, before + known);
        assert!(node.flows().is_empty());
        // Another pair within the same prefix is not cached.
        let other = Build::udp(pod, &server.replace("7]", "8]").replace(".7:", ".8:"));
        assert_eq!(node.out(&other), becomes(&other.from(wire)));
        node.forget(&other, wire);
    }
}

#[test]
fn a_new_policy_ends_what_is_known() {
    let mut node = bypassing(true);
    for (pod, server, wire) in PAIRS {
        let first = Build::tcp(pod, server, SYN);
        assert_eq!(node.out(&first), becomes(&first));
        node.policy(&[]);
        let bypassed = node.counters().egress_bypassed.packets;
        assert_eq!(node.out(&first), becomes(&first.from(wire)));
        assert_eq!(node.counters().egress_bypassed.packets, bypassed);
        // Nor is the old entry valid again once no mapping is sticky.
        node.sweep(&Node::local());
        assert!(has_bypass_cache(&mut node));
        let again = first.from(&pod.replace("4000", "4001"));
        let its_wire = wire.replace("4000", "4001");
        assert_eq!(node.out(&again), becomes(&again.from(&its_wire)));
        node.policy(&BYPASS);
        // The mappings created meanwhile are sticky.
        assert_eq!(node.out(&first), becomes(&first.from(wire)));
        node.forget(&first, wire);
        node.forget(&again, &its_wire);
        node.sweep(&Node::local());
    }
}

/// Cached decisions are valid for one epoch, and every change begins a new one.
#[test]
fn another_change_has_each_pair_judged_anew() {
    let mut node = bypassing(true);
    for (pod, server, _) in PAIRS {
        let first = Build::udp(pod, server);
        assert_eq!(node.out(&first), becomes(&first));
    }
    lose_policy(&node);
    node.apply(&Change::AddLocal([192, 0, 2, 77].into()));
    assert!(has_bypass_cache(&mut node), "it is the epoch that ends it");
    for (pod, server, wire) in PAIRS {
        let next = Build::udp(pod, server);
        assert_eq!(node.out(&next), becomes(&next.from(wire)));
    }
}

/// Requirement 6.4: a mapping may be older than the policy.
#[test]
fn nothing_is_remembered_while_mappings_may_be_sticky() {
    let mut node = bypassing(false);
    for (pod, server, _) in PAIRS {
        let first = Build::udp(pod, server);
        assert_eq!(node.out(&first), becomes(&first));
        assert_eq!(node.out(&first), becomes(&first));
    }
    // Nor is it stored for later.
    node.sweep(&Node::local());
    assert!(has_bypass_cache(&mut node));
    lose_policy(&node);
    for (pod, server, wire) in PAIRS {
        let next = Build::udp(pod, server);
        assert_eq!(node.out(&next), becomes(&next.from(wire)));
    }
}
