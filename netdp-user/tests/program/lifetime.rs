//! Lifetime of mappings: the programs' clock and the sweep.

use crate::build::{ACK, Build, FIN, SYN};
use crate::node::{Node, V6, becomes};
use netdp_common::flow::Timeouts;
use netdp_user::datapath::SweepStats;
use std::sync::atomic::Ordering;

const POD: &str = "172.16.0.2:4000";
const SERVER: &str = "198.51.100.7:443";
/// A server port that is not well-known.
const HIGH: &str = "198.51.100.7:4433";
const WIRE: &str = "192.0.2.10:4000";

fn sweep(node: &mut Node) -> SweepStats {
    node.sweep(&Node::local())
}

/// Checks that the mapping exists a minute before its timeout and is gone after it. The test itself
/// takes much less than the minute.
fn lives_for(node: &mut Node, from: u64, seconds: u64, what: &str) {
    node.at(from + seconds - 60);
    let swept = sweep(node);
    assert_eq!((swept.live, swept.expired), (1, 0), "{what}: too early");
    // The clock counts ticks: one second covers the rounding.
    node.at(from + seconds + 1);
    let swept = sweep(node);
    assert_eq!((swept.live, swept.expired), (0, 1), "{what}: too late");
    assert!(node.flows().is_empty());
}

#[test]
fn a_mapping_ends_when_its_time_has_come() {
    let timeouts = Timeouts::default();
    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    lives_for(&mut node, 0, timeouts.udp_unreplied, "UDP");

    let mut node = Node::new();
    node.out(&Build::udp(POD, HIGH));
    node.back(&Build::udp(HIGH, WIRE));
    lives_for(&mut node, 0, timeouts.udp_replied, "UDP with replies");

    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    node.back(&Build::udp(SERVER, WIRE));
    lives_for(
        &mut node,
        0,
        timeouts.udp_lookup,
        "a question and its answer",
    );

    let mut node = Node::new();
    node.out(&Build::echo(POD, "198.51.100.7:0"));
    lives_for(&mut node, 0, timeouts.icmp, "a ping");

    let mut node = Node::new();
    node.out(&Build::tcp(POD, SERVER, SYN));
    lives_for(&mut node, 0, timeouts.tcp_opening, "a SYN");

    let mut node = Node::new();
    node.out(&Build::tcp(POD, SERVER, ACK));
    lives_for(&mut node, 0, timeouts.tcp_unreplied, "TCP in mid-stream");
    node.out(&Build::tcp(POD, SERVER, ACK));
    node.back(&Build::tcp(SERVER, WIRE, ACK));
    let from = timeouts.tcp_unreplied + 1;
    lives_for(&mut node, from, timeouts.tcp_established, "TCP");

    let mut node = Node::new();
    node.out(&Build::tcp(POD, SERVER, SYN));
    node.back(&Build::tcp(SERVER, WIRE, SYN | ACK));
    node.out(&Build::tcp(POD, SERVER, FIN | ACK));
    node.back(&Build::tcp(SERVER, WIRE, FIN | ACK));
    lives_for(&mut node, 0, timeouts.tcp_closing, "TCP after both FINs");
}

#[test]
fn packets_of_either_direction_keep_it_alive() {
    let udp = Build::udp(POD, HIGH);
    for outwards in [true, false] {
        let mut node = Node::new();
        node.out(&udp);
        node.back(&udp.from(WIRE).answer());
        for round in 1..=3 {
            node.at(round * 200);
            assert_eq!(sweep(&mut node).live, 1, "outwards: {outwards}");
            if outwards {
                assert_eq!(node.out(&udp), becomes(&udp.from(WIRE)));
            } else {
                let reply = udp.from(WIRE).answer();
                assert_eq!(node.back(&reply), becomes(&udp.answer()));
            }
        }
        lives_for(&mut node, 600, 300, "after the last packet");
    }
}

#[test]
fn what_has_ended_is_gone_both_ways() {
    let mut node = Node::new();
    let udp = Build::udp(POD, SERVER);
    node.out(&udp);
    node.at(121);
    sweep(&mut node);
    let reply = udp.from(WIRE).answer();
    assert_eq!(node.back(&reply), becomes(&reply), "left to the node");
    // Its port is free again.
    let other = udp.from("172.16.0.3:4000");
    assert_eq!(node.out(&other), becomes(&other.from(WIRE)));
}

#[test]
fn mappings_of_a_lost_address_end() {
    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    node.out(&Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443"));
    let v6_only = [V6.into()].into();
    let swept = node.sweep(&v6_only);
    assert_eq!((swept.live, swept.address_gone), (1, 1));
    assert!(node.flows()[0].source.is_ipv6());
}

#[test]
fn a_lost_reply_half_is_made_again() {
    let mut node = Node::new();
    let udp = Build::udp(POD, SERVER);
    node.out(&udp);
    node.lose_reply_half(&udp, WIRE);
    let reply = udp.from(WIRE).answer();
    assert_eq!(node.back(&reply), becomes(&reply));
    node.at(100);
    assert_eq!(sweep(&mut node).repaired, 1);
    assert_eq!(node.back(&reply), becomes(&udp.answer()));
}

#[test]
fn a_ping_of_the_node_holds_its_identifier_for_a_minute() {
    let mut node = Node::new();
    let ping = Build::echo("192.0.2.10:4000", "198.51.100.7:0");
    assert_eq!(node.out(&ping), becomes(&ping));
    let pod = ping.from("172.16.0.2:4000");
    assert_ne!(node.out(&pod), becomes(&pod.from(WIRE)));
    assert_eq!(node.back(&ping.answer()), becomes(&ping.answer()));
    let swept = sweep(&mut node);
    assert_eq!(
        (swept.live, swept.reservations),
        (1, 0),
        "it takes no pod's room"
    );
    node.at(70);
    let swept = sweep(&mut node);
    assert_eq!(swept.live, 0);
    assert_eq!(node.out(&pod), becomes(&pod.from(WIRE)));
}

#[test]
fn a_scan_puts_new_mappings_into_the_schedule() {
    let mut node = Node::new();
    let rules = Node::rules(&Node::local());
    let mut sweeper = node.sweeper();
    sweeper.run_full(&rules).expect("a sweep of nothing");
    let early = Build::udp(POD, SERVER);
    node.out(&early);
    node.at(100);
    let late = Build::udp("172.16.0.3:4001", SERVER);
    node.out(&late);
    let stats = sweeper.scan_new(&rules).expect("a scan");
    assert_eq!((stats.live, stats.expired), (2, 0));
    node.at(121);
    let stats = sweeper.scan_new(&rules).expect("a scan");
    // The earlier one is scheduled, so scans skip it.
    assert_eq!((stats.live, stats.expired), (2, 0));
    sweeper.run_due(&rules).expect("what is due");
    assert_eq!(node.flows().len(), 1, "over by time");
    assert_eq!(node.flows()[0].source_id, 4001);
}

#[test]
fn a_scan_ends_the_mappings_of_a_lost_address_with_both_halves() {
    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    node.out(&Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443"));
    let mut sweeper = node.sweeper();
    sweeper
        .run_full(&Node::rules(&Node::local()))
        .expect("a sweep");
    let v6_only = Node::rules(&[V6.into()].into());
    let stats = sweeper.scan_new(&v6_only).expect("a scan");
    assert_eq!((stats.live, stats.address_gone), (1, 1));
    assert_eq!(node.halves().map(|halves| halves.len()), [1, 1]);
}

#[test]
fn a_sweep_that_is_stopped_ends_nothing_more() {
    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    let rules = Node::rules(&[V6.into()].into());
    let mut sweeper = node.sweeper();
    rules.stop.store(true, Ordering::Release);
    let swept = sweeper.run_full(&rules).expect("a sweep");
    assert!(swept.stopped && swept.bypass_cache_epoch.is_none());
    assert_eq!(node.flows().len(), 1);
    rules.stop.store(false, Ordering::Release);
    assert_eq!(sweeper.run_full(&rules).expect("a sweep").address_gone, 1);
}

#[test]
fn what_was_due_when_a_sweep_was_stopped_is_due_again() {
    let mut node = Node::new();
    let timeouts = Timeouts::default();
    node.out(&Build::udp(POD, SERVER));
    node.at(timeouts.udp_unreplied - 2);
    let rules = Node::rules(&Node::local());
    let mut sweeper = node.sweeper();
    assert_eq!(sweeper.run_full(&rules).expect("a sweep").live, 1);
    // Before the next full sweep.
    node.at(timeouts.udp_unreplied + 1);
    rules.stop.store(true, Ordering::Release);
    let swept = sweeper.run_due(&rules).expect("what is due");
    assert!(swept.stopped);
    assert_eq!(node.flows().len(), 1);
    rules.stop.store(false, Ordering::Release);
    assert_eq!(sweeper.run_due(&rules).expect("what is due").expired, 1);
    assert!(node.flows().is_empty());
}

#[test]
fn a_sweep_that_does_not_know_an_address_yet_keeps_its_mappings() {
    let mut node = Node::new();
    node.out(&Build::udp(POD, SERVER));
    let rules = Node::rules(&[V6.into()].into());
    rules.local_addrs_stale.store(true, Ordering::Release);
    let mut sweeper = node.sweeper();
    let swept = sweeper.run_full(&rules).expect("a sweep");
    assert_eq!((swept.live, swept.address_gone), (1, 0));
    rules.local_addrs_stale.store(false, Ordering::Release);
    assert_eq!(sweeper.run_full(&rules).expect("a sweep").address_gone, 1);
}
