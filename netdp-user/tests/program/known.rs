//! The caches of address pairs: packets between bypassed pairs pass without a lookup, and new flows
//! between masqueraded pairs are not looked up in the policy.

use crate::build::{Build, SYN};
use crate::node::{Node, Seen, becomes, frame};
use crate::test_run::On;
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};
use netdp_common::layout::{Addr, PolicyValue, SETTING_BYPASS_CACHE_VALID, pins};
use netdp_common::packet::pair_slot;
use netdp_user::datapath::Hook;
use netdp_user::reconcile::Change;
use netdp_user::uplinks::Mac;
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

/// Returns the packet from the pod's next ports, and what it becomes on the wire.
fn from_port(pod: &str, server: &str, wire: &str, port: u16) -> (Build, Build) {
    let port = port.to_string();
    let packet = Build::udp(&pod.replace("4000", &port), server);
    let leaves = packet.from(&wire.replace("4000", &port));
    (packet, leaves)
}

/// Makes the agent's policy bypass the servers without a new epoch.
fn bypass_unnoticed(node: &mut Node) {
    let before = node.datapath().maps().settings().expect("settings");
    node.policy(&BYPASS);
    let mut after = node.datapath().maps().settings().expect("settings");
    assert_ne!(before.epoch, after.epoch, "each policy begins an epoch");
    after.epoch = before.epoch;
    node.write_settings(&after);
}

#[test]
fn a_pair_that_is_known_to_be_masqueraded_needs_no_policy_for_an_epoch() {
    let mut node = bypassing(false);
    node.policy(&[]);
    for (pod, server, wire) in PAIRS {
        let (packet, leaves) = from_port(pod, server, wire, 4000);
        assert_eq!(node.out(&packet), becomes(&leaves));
    }
    bypass_unnoticed(&mut node);
    for (pod, server, wire) in PAIRS {
        let (packet, leaves) = from_port(pod, server, wire, 4001);
        assert_eq!(node.out(&packet), becomes(&leaves), "known");
        // Another pod, and another server.
        let (packet, _) = from_port(
            &pod.replace("2:", "3:").replace("2]", "3]"),
            server,
            wire,
            4002,
        );
        assert_eq!(node.out(&packet), becomes(&packet), "asked");
        let (packet, _) = from_port(
            pod,
            &server.replace("7:", "8:").replace("7]", "8]"),
            wire,
            4003,
        );
        assert_eq!(node.out(&packet), becomes(&packet), "asked");
    }
    node.apply(&Change::AddLocal([192, 0, 2, 77].into()));
    for (pod, server, wire) in PAIRS {
        let (packet, _) = from_port(pod, server, wire, 4004);
        assert_eq!(node.out(&packet), becomes(&packet), "another epoch");
    }
}

/// The last pair of a slot replaces the earlier one, and is not taken for it.
#[test]
fn pairs_that_share_a_slot_do_not_mix() {
    let (pod, server, wire) = PAIRS[0];
    let slot = |server: &str| {
        let packet = Build::udp(pod, server);
        let (pod, peer) = (packet.src.ip().into(), packet.dst.ip().into());
        pair_slot(&pod, &peer, 8)
    };
    let other = (0..=u8::MAX)
        .map(|n| format!("203.0.113.{n}:443"))
        .find(|other| slot(other) == slot(server))
        .expect("one of 256 shares the slot");
    let mut node = bypassing(false);
    node.policy(&[]);
    let (packet, leaves) = from_port(pod, server, wire, 4000);
    assert_eq!(node.out(&packet), becomes(&leaves));
    bypass_unnoticed(&mut node);
    let (packet, leaves) = from_port(pod, &other, wire, 4001);
    assert_eq!(
        node.out(&packet),
        becomes(&leaves),
        "the policy masquerades it"
    );
    let (packet, _) = from_port(pod, server, wire, 4002);
    assert_eq!(node.out(&packet), becomes(&packet), "no longer known");
}

/// A pod is known by the interface by which its packets come: from another one its source may be
/// forged, and what comes from none is the node's own.
#[test]
fn a_pair_is_known_by_its_interface() {
    let mut node = bypassing(false);
    node.policy(&[]);
    let on = |came_by| On {
        ifindex: 1,
        came_by,
    };
    for (pod, server, wire) in PAIRS {
        let (packet, leaves) = from_port(pod, server, wire, 4000);
        let seen = node.run_from(Hook::Egress, &frame(&packet), on(1));
        assert_eq!(seen, becomes(&leaves));
    }
    bypass_unnoticed(&mut node);
    for (pod, server, wire) in PAIRS {
        for came_by in [0, 2] {
            let (packet, _) = from_port(pod, server, wire, 4001);
            let seen = node.run_from(Hook::Egress, &frame(&packet), on(came_by));
            assert_eq!(seen, becomes(&packet), "by {came_by}");
        }
        let (packet, leaves) = from_port(pod, server, wire, 4002);
        let seen = node.run_from(Hook::Egress, &frame(&packet), on(1));
        assert_eq!(seen, becomes(&leaves));
    }
}

/// The hardware address of the last packet is remembered; another one is looked up, and so is this
/// one once the agent has removed it.
#[test]
fn a_hardware_address_is_known_until_the_agent_removes_it() {
    let mut node = bypassing(false);
    node.policy(&[]);
    let own = [2, 0, 0, 0, 0, 2];
    for mac in [own, [0; 6]] {
        node.apply(&Change::AddMac(Mac { link: 1, mac }));
    }
    let (pod, server, wire) = PAIRS[0];
    let send = |node: &mut Node, mac: [u8; 6], port: u16| {
        let (packet, leaves) = from_port(pod, server, wire, port);
        let with = |packet: &Build| {
            let mut frame = frame(packet);
            frame[6..12].copy_from_slice(&mac);
            frame
        };
        match node.run_once(Hook::Egress, &with(&packet)) {
            Seen::Next(bytes) if bytes == with(&leaves) => true,
            Seen::Next(bytes) if bytes == with(&packet) => false,
            other => panic!("{other:?}"),
        }
    };
    let guests = [[2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 9, 2], [9, 0, 0, 0, 0, 2]];
    assert!(send(&mut node, own, 4000), "the node sends it");
    for (port, guest) in (4001..).zip(guests) {
        assert!(!send(&mut node, guest, port), "a guest: {guest:02x?}");
    }
    assert!(send(&mut node, own, 4010), "the node sends it");
    let other = [2, 0, 0, 0, 0, 7];
    node.apply(&Change::AddMac(Mac {
        link: 1,
        mac: other,
    }));
    node.apply(&Change::RemoveMac(Mac { link: 1, mac: own }));
    assert!(!send(&mut node, own, 4020), "it is a guest's now");
    assert!(send(&mut node, other, 4021), "the node sends it");
}

/// The hardware address that one uplink has is not taken for one of another.
#[test]
fn a_hardware_address_is_known_at_its_uplink_only() {
    let mut node = bypassing(false);
    node.policy(&[]);
    let v4 = [192, 0, 2, 77].into();
    let second = node.second_uplink(v4, "fd00::77".parse().expect("IPv6"));
    let (own, other) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 9]);
    for (link, mac) in [(1, own), (second, other)] {
        for mac in [mac, [0; 6]] {
            node.apply(&Change::AddMac(Mac { link, mac }));
        }
    }
    // From the same address, on one CPU, one after the other.
    for (port, link, wire) in [
        (4000, 1, Some("192.0.2.10:4000")),
        (4001, second, None),
        (4002, 1, Some("192.0.2.10:4000")),
    ] {
        let (pod, server, _) = PAIRS[0];
        let (packet, leaves) = from_port(pod, server, wire.unwrap_or(pod), port);
        let seen = node.run_on(Hook::Egress, &frame(&packet), link);
        assert_eq!(seen, becomes(&leaves), "at {link}");
    }
}
