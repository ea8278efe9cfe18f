//! An agent that starts on the pinned objects of another.

use crate::build::{ACK, Build, SYN};
use crate::node::{Node, becomes};
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TcAttachType};
use netdp_common::layout::{Traffic, pins};
use std::fs;

const POD: &str = "172.16.0.2:4000";
const SERVER: &str = "198.51.100.7:443";
const WIRE: &str = "192.0.2.10:4000";

/// Returns the number of programs on the hooks of the loopback device.
fn attached() -> usize {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .map(|hook| SchedClassifier::query_tcx("lo", hook).expect("asking for TCX programs"))
        .iter()
        .map(|(_, programs)| programs.len())
        .sum()
}

/// Otherwise the kernel detaches them some time after the pins are removed.
#[test]
fn programs_are_off_once_detaching_is_over() {
    let mut node = Node::new();
    for _ in 0..10 {
        node.attach();
        assert_eq!(attached(), 2);
        node.detach();
        assert_eq!(attached(), 0);
    }
}

#[test]
fn a_new_agent_adopts_every_mapping() {
    let mut node = Node::new();
    assert!(!node.datapath().adopted());
    node.policy(&["10.0.0.0/8"]);
    let flows = [
        Build::tcp(POD, SERVER, SYN),
        Build::udp(POD, SERVER),
        Build::echo(POD, "198.51.100.7:0"),
    ];
    for first in &flows {
        assert_eq!(node.out(first), becomes(&first.from(WIRE)));
    }
    let from_outside = Build::udp("198.51.100.9:99", POD);
    node.back(&from_outside);
    let before = node.counters();

    node.stop();
    // Properties fixed when the maps are created stay.
    node.setup.max_flows = 7;
    node.start().expect("a second agent");
    assert!(node.datapath().adopted());
    assert_eq!(node.counters(), before, "nothing is counted anew");
    for first in &flows {
        let reply = first.from(WIRE).answer();
        assert_eq!(node.back(&reply), becomes(&first.answer()), "{first:?}");
        assert_eq!(node.out(first), becomes(&first.from(WIRE)), "{first:?}");
    }
    let established = Build::tcp(POD, SERVER, ACK);
    assert_eq!(node.out(&established), becomes(&established.from(WIRE)));
    assert_eq!(node.flows().len(), 3);
    let answer = from_outside.answer();
    assert_eq!(node.out(&answer), becomes(&answer));
    // The policy is in force before the new agent has read a file.
    let bypassed = Build::tcp(POD, "10.1.2.3:443", SYN);
    assert_eq!(node.out(&bypassed), becomes(&bypassed));
    for n in 0..20 {
        let packet = Build::udp(&format!("172.16.0.2:{}", 5000 + n), SERVER);
        assert_ne!(node.out(&packet), crate::node::Seen::Shot, "the old size");
    }
}

/// Its programs did not record that there are inbound flows to be looked up. The map for that record
/// exists after a downgrade to that version, and otherwise does not.
#[test]
fn an_earlier_version_s_flows_from_outside_keep_their_source() {
    for is_there in [false, true] {
        let mut node = Node::new();
        let from_outside = Build::udp("198.51.100.9:99", POD);
        let answer = from_outside.answer();
        assert_ne!(node.out(&answer.from("172.16.0.2:4001")), becomes(&answer));
        node.back(&from_outside);
        node.stop();
        let pin = node.bpffs().join(pins::INBOUND_USED);
        if is_there {
            let map = Map::Array(MapData::from_pin(&pin).expect("the pinned map"));
            let mut used: Array<_, u32> = map.try_into().expect("an array");
            used.set(0, 0, 0).expect("writing it");
        } else {
            fs::remove_file(&pin).expect("the pin");
        }
        node.start().expect("a second agent");
        assert_eq!(node.out(&answer), becomes(&answer), "{is_there}");
    }
}

#[test]
fn an_agent_with_other_settings_keeps_the_mappings() {
    let mut node = Node::new();
    let packet = Build::udp(POD, SERVER);
    node.out(&packet);
    node.stop();
    node.setup.reserved_ports = [4000].into();
    node.setup.enable_ipv6 = false;
    node.start().expect("a second agent");
    assert_eq!(
        node.out(&packet),
        becomes(&packet.from(WIRE)),
        "a live port"
    );
    let fresh = packet.to("198.51.100.8:443");
    assert_ne!(node.out(&fresh), becomes(&fresh.from(WIRE)), "now reserved");
    let v6 = Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443");
    assert_eq!(node.out(&v6), becomes(&v6));
}

#[test]
fn a_map_of_another_layout_is_refused() {
    let mut node = Node::new();
    node.stop();
    let (snat, uplinks) = (
        node.bpffs().join(pins::SNAT),
        node.bpffs().join(pins::UPLINKS),
    );
    fs::remove_file(&snat).expect("removing a pin");
    fs::rename(uplinks, &snat).expect("renaming a pin");
    let refusal = format!("{:#}", node.start().expect_err("a foreign map"));
    for part in [
        snat.to_str().expect("UTF-8"),
        "has another layout",
        "key 4 bytes, value 40 bytes",
        "netdp detach --bpffs",
        node.bpffs().to_str().expect("UTF-8"),
    ] {
        assert!(refusal.contains(part), "{part:?} is not in: {refusal}");
    }
    assert!(snat.exists(), "nothing is removed unasked");
}

#[test]
fn maps_of_another_version_are_refused() {
    let mut node = Node::new();
    let mut settings = node.datapath().maps().settings().expect("settings");
    settings.layout = 99;
    node.write_settings(&settings);
    node.stop();
    let refusal = format!("{:#}", node.start().expect_err("a foreign version"));
    for part in ["layout 99", "netdp detach --bpffs"] {
        assert!(refusal.contains(part), "{part:?} is not in: {refusal}");
    }
    settings.layout = netdp_common::layout::LAYOUT;
    node.write_settings(&settings);
    node.start().expect("our own version");
}

#[test]
fn two_nodes_do_not_disturb_each_other() {
    let (mut one, mut two) = (Node::new(), Node::new());
    let packet = Build::udp(POD, SERVER);
    one.out(&packet);
    assert_eq!(one.flows().len(), 1);
    assert!(two.flows().is_empty());
    two.policy(&["0.0.0.0/0"]);
    assert_eq!(two.out(&packet), becomes(&packet));
    assert_eq!(one.out(&packet), becomes(&packet.from(WIRE)));
}

/// The versions with layout 1 had these numbers of counters, without bytes. Their programs go on
/// counting there.
#[test]
fn counters_of_an_earlier_version_go_on() {
    go_on::<23>();
    go_on::<26>();
    go_on::<27>();
}

fn go_on<const FEWER: usize>() {
    let mut node = Node::new();
    let flow = Build::udp(POD, SERVER);
    assert_eq!(node.out(&flow), becomes(&flow.from(WIRE)));
    let mut settings = node.datapath().maps().settings().expect("settings");
    settings.layout = 1;
    node.write_settings(&settings);
    node.stop();
    // What there is of layout 2 was left by an upgrade that did not get to attach a program.
    let pin = node.bpffs().join(pins::EARLIER_COUNTERS);
    let made = std::process::Command::new("bpftool")
        .args(["map", "create"])
        .arg(&pin)
        .args(["type", "percpu_array", "key", "4", "value"])
        .arg((FEWER * 8).to_string())
        .args(["entries", "1", "name", "COUNTERS"])
        .status();
    assert!(made.expect("bpftool").success());
    let map = Map::PerCpuArray(MapData::from_pin(&pin).expect("the map"));
    let mut before: PerCpuArray<_, [u64; FEWER]> = map.try_into().expect("counters");
    let cpus = aya::util::nr_cpus().expect("the number of CPUs");
    let values = PerCpuValues::try_from(vec![[3; FEWER]; cpus]).expect("values");
    before.set(0, values, 0).expect("counters");
    node.start().expect("the next agent");
    assert!(node.datapath().adopted());
    let counted = node.counters();
    let each = 3 * u64::try_from(cpus).expect("a number");
    assert_eq!(
        (
            counted.egress_masqueraded,
            counted.mappings_created,
            counted.drops.rewrite_failed
        ),
        (
            Traffic {
                packets: each,
                bytes: 0
            },
            each,
            each
        )
    );
    let has = |number: usize| if FEWER > 12 + number { each } else { 0 };
    assert_eq!(counted.drops.pod_limit, has(13), "{FEWER}");
    assert_eq!(counted.drops.ipsec_policy, has(14), "{FEWER}");
    let values = PerCpuValues::try_from(vec![[4; FEWER]; cpus]).expect("values");
    before.set(0, values, 0).expect("counters");
    let reply = flow.from(WIRE).answer();
    assert_eq!(node.back(&reply), becomes(&flow.answer()));
    let counted = node.counters();
    let each = 4 * u64::try_from(cpus).expect("a number");
    assert!(counted.ingress_translated.packets > each, "{counted:?}");
}

/// Until the first program is attached, an agent of the earlier layout may continue.
#[test]
fn the_layout_is_that_of_the_attached_programs() {
    let mut node = Node::new();
    let layout = |node: &mut Node| {
        let settings = node.datapath().maps().settings();
        settings.expect("settings").layout
    };
    assert_eq!(layout(&mut node), 0);
    let mut settings = node.datapath().maps().settings().expect("settings");
    settings.layout = 1;
    node.write_settings(&settings);
    node.stop();
    node.start().expect("the next agent");
    assert_eq!(layout(&mut node), 1);
    node.attach();
    assert_eq!(layout(&mut node), netdp_common::layout::LAYOUT);
}
