//! Full tables and used ports, with the kernel's maps and loops.

use crate::build::{ACK, Build, SYN};
use crate::node::{Node, Seen, becomes, frame};
use netdp_user::datapath::Hook;
use std::collections::BTreeSet;

const SERVER: &str = "198.51.100.7:443";

#[test]
fn a_full_table_drops_new_flows_only() {
    let mut node = Node::with(|setup| setup.max_flows = 4);
    let flow = |n: u16| Build::udp(&format!("172.16.0.2:{}", 4000 + n), SERVER);
    let wire = |n: u16| flow(n).from(&format!("192.0.2.10:{}", 4000 + n));
    for n in 0..4 {
        assert_eq!(node.out(&flow(n)), becomes(&wire(n)), "flow {n}");
        let reply = wire(n).answer();
        assert_eq!(node.back(&reply), becomes(&flow(n).answer()));
    }
    for n in 4..8 {
        assert_eq!(node.out(&flow(n)), Seen::Shot, "flow {n}");
    }
    assert_eq!(node.counters().drops.table_full, 8);
    for n in 0..4 {
        assert_eq!(node.out(&flow(n)), becomes(&wire(n)), "flow {n} goes on");
        let reply = wire(n).answer();
        assert_eq!(node.back(&reply), becomes(&flow(n).answer()));
    }
    assert_eq!(node.flows().len(), 4);
    // There is room again after they have ended.
    node.at(400);
    let swept = node.sweep(&Node::local());
    assert_eq!(swept.expired, 4);
    assert_eq!(node.out(&flow(7)), becomes(&wire(7)));
}

/// Unanswered mappings are evicted for the next flow of the same pod, without any sweep.
#[test]
fn in_a_full_table_unanswered_flows_give_way() {
    let mut node = Node::with(|setup| (setup.max_flows, setup.pod_flows) = (64, 0));
    let flow = |n: u16| Build::udp(&format!("172.16.0.2:{}", 4000 + n), SERVER);
    let wire = |n: u16| flow(n).from(&format!("192.0.2.10:{}", 4000 + n));
    assert_eq!(node.out(&flow(0)), becomes(&wire(0)));
    assert_eq!(node.back(&wire(0).answer()), becomes(&flow(0).answer()));
    for n in 1..400 {
        assert_eq!(node.out(&flow(n)), becomes(&wire(n)), "flow {n}");
    }
    let good = flow(7).from("172.16.0.3:4007");
    assert_eq!(node.out(&good), becomes(&good.from("192.0.2.10:4007")));
    assert_eq!(node.out(&flow(0)), becomes(&wire(0)), "what lives stays");
    assert_eq!(node.counters().drops.table_full, 0);
}

/// Every port above 1023 towards one server, then none, then one again.
#[test]
fn exhausted_ports_drop_new_flows_only() {
    let mut node = Node::with(|setup| setup.max_flows = 70_000);
    let first = Build::tcp("172.16.0.2:1024", SERVER, SYN);
    let mut out = frame(&first);
    let mut back = frame(&Build::tcp(SERVER, "192.0.2.10:1024", SYN | ACK));
    let (sport, dport) = (14 + 20, 14 + 22);
    for port in 1024..=u16::MAX {
        // The checksum is as wrong as the port; nothing checks it.
        out[sport..sport + 2].copy_from_slice(&port.to_be_bytes());
        back[dport..dport + 2].copy_from_slice(&port.to_be_bytes());
        let seen = node.run_once(Hook::Egress, &out);
        assert_ne!(seen, Seen::Shot, "port {port}");
        node.run_once(Hook::Ingress, &back);
    }
    assert_eq!(node.counters().ports_changed, 0);
    let late = Build::tcp("172.16.0.3:4000", SERVER, SYN);
    assert_eq!(node.out(&late), Seen::Shot);
    assert_eq!(node.counters().drops.no_free_port, 2);
    let first = Build::tcp("172.16.0.2:4000", SERVER, SYN);
    let wire = first.from("192.0.2.10:4000");
    assert_eq!(node.out(&first), becomes(&wire), "a live flow goes on");
    assert_eq!(node.back(&wire.answer()), becomes(&first.answer()));
    let elsewhere = late.to("198.51.100.8:443");
    let wire = elsewhere.from("192.0.2.10:4000");
    assert_eq!(node.out(&elsewhere), becomes(&wire));
    // The last free port is found without a hint from the agent: each packet tries some candidates.
    // A refused flow sends again.
    let ended = Build::tcp("172.16.0.2:54321", SERVER, SYN);
    node.forget(&ended, "192.0.2.10:54321");
    node.at(3);
    let bytes = frame(&late);
    let refused = (0..2_000).take_while(|_| node.run_once(Hook::Egress, &bytes) == Seen::Shot);
    let refused = refused.count();
    assert!(refused < 2_000, "not found");
    assert_eq!(node.out(&late), becomes(&late.from("192.0.2.10:54321")));
    assert_eq!(node.flows().len(), 64_513);
}

#[test]
fn every_port_of_a_class_is_found() {
    let mut node = Node::with(|setup| setup.max_flows = 2_000);
    for n in 0..424u16 {
        let pod = format!("172.16.{}.{}:700", n / 250, n % 250 + 1);
        let packet = frame(&Build::udp(&pod, SERVER));
        assert_ne!(node.run_once(Hook::Egress, &packet), Seen::Shot, "{pod}");
    }
    let flows = node.flows();
    let given: BTreeSet<u16> = flows.iter().map(|flow| flow.nat_id).collect();
    assert_eq!(given, (600..1024).collect());
    let late = Build::udp("172.16.9.9:700", SERVER);
    assert_eq!(node.out(&late), Seen::Shot);
    assert_eq!(node.counters().drops.no_free_port, 2);
}

#[test]
fn reserved_ports_are_never_given() {
    let mut node = Node::with(|setup| {
        setup.reserved_ports = (600..1024).filter(|port| *port != 777).collect();
    });
    let packet = Build::udp("172.16.0.2:700", SERVER);
    assert_eq!(node.out(&packet), becomes(&packet.from("192.0.2.10:777")));
    let second = packet.from("172.16.0.3:700");
    assert_eq!(node.out(&second), Seen::Shot);
}
