//! Events, as the programs write them to the ring buffer.

use crate::build::{Build, Kind, RST};
use crate::node::{Node, V4, V6, becomes, frame, tuple_of};
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use netdp_common::layout::{
    BeginEvent, CAPTURED, DropEvent, DropReason, ENDED_MOVED, EVENT_BEGIN, EVENT_DROP, EVENT_OUT,
    EVENT_REFUSED, EVENTS_BEGIN, EVENTS_DROP, EVENTS_END, EVENTS_REFUSED, Ended, EventCount,
    Settings, events_setting, pins,
};
use netdp_user::datapath::Hook;
use netdp_user::reconcile::Change;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Pod, node and server.
const ENDS: [[&str; 3]; 2] = [
    ["172.16.0.2:4000", "192.0.2.10:4000", "198.51.100.7:443"],
    ["[fd00:1::2]:4000", "[fd00::10]:4000", "[2001:db8::7]:443"],
];

fn listen(node: &Node, events: u32) {
    let map = MapData::from_pin(node.bpffs().join(pins::SETTINGS)).expect("a pinned map");
    let map: Array<_, Settings> = Map::Array(map).try_into().expect("an array");
    let settings = map.get(&0, 0).expect("the settings");
    node.write_settings(&Settings { events, ..settings });
}

fn ring(node: &Node) -> RingBuf<MapData> {
    ring_of(node, pins::EVENTS)
}

fn ring_of(node: &Node, pin: &str) -> RingBuf<MapData> {
    let map = MapData::from_pin(node.bpffs().join(pin)).expect("a pinned map");
    Map::RingBuf(map).try_into().expect("a ring buffer")
}

/// Returns the count of a kind, summed over CPUs.
fn count(node: &Node, kind: u32) -> EventCount {
    let map = MapData::from_pin(node.bpffs().join(pins::EVENT_COUNTS)).expect("a pinned map");
    let map: PerCpuArray<_, EventCount> = Map::PerCpuArray(map).try_into().expect("an array");
    let mut sum = EventCount::default();
    for cpu in map.get(&kind, 0).expect("a count").iter() {
        sum.seen += cpu.seen;
        sum.limited += cpu.limited;
        sum.full += cpu.full;
    }
    sum
}

/// Takes all records.
fn take(ring: &mut RingBuf<MapData>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(record) = ring.next() {
        records.push(record.to_vec());
    }
    records
}

fn read<T: aya::Pod>(record: &[u8]) -> T {
    assert_eq!(record.len(), size_of::<T>());
    // SAFETY: it has the size, and every value of the bytes is one of a plain type.
    unsafe { record.as_ptr().cast::<T>().read_unaligned() }
}

fn stray(pod: &str, server: &str, payload: usize) -> Build {
    let (flags, seq, ack) = (RST, 7, 0);
    let mut packet = Build::new(pod, server, Kind::Tcp { flags, seq, ack });
    packet.data = vec![0xa5; payload];
    packet
}

#[test]
fn a_begin_has_both_ends_and_comes_once() {
    let mut node = Node::new();
    let mut ring = ring(&node);
    for [pod, wire, server] in ENDS {
        listen(&node, EVENTS_DROP | EVENTS_REFUSED);
        let other = Build::udp(pod, &server.replace(":443", ":53"));
        assert_eq!(
            node.run_once(Hook::Egress, &frame(&other)),
            becomes_at(&other, wire)
        );
        assert!(take(&mut ring).is_empty(), "nobody listens to begins");
        listen(&node, EVENTS_BEGIN);
        let packet = Build::udp(pod, server);
        for _ in 0..2 {
            assert_eq!(
                node.run_once(Hook::Egress, &frame(&packet)),
                becomes_at(&packet, wire)
            );
        }
        let records = take(&mut ring);
        assert_eq!(records.len(), 1, "{pod}");
        let event: BeginEvent = read(&records[0]);
        assert_eq!((event.kind, event.ifindex), (EVENT_BEGIN, 1));
        assert_eq!(event.tuple, tuple_of(&packet));
        let seen_as =
            std::net::SocketAddr::new(event.addr.into(), u16::try_from(event.id).unwrap());
        assert_eq!(seen_as, wire.parse().unwrap());
        assert!(event.at > 0);
    }
    assert_eq!(count(&node, EVENT_BEGIN).seen, 2);
}

/// Returns the packet with this source.
fn becomes_at(packet: &Build, wire: &str) -> crate::node::Seen {
    becomes(&packet.clone().from(wire))
}

#[test]
fn a_drop_has_the_first_bytes_of_the_packet() {
    let mut node = Node::new();
    let mut ring = ring(&node);
    for [pod, _, server] in ENDS {
        for payload in [0, 1, 60, 300] {
            let bytes = frame(&stray(pod, server, payload));
            listen(&node, 0);
            node.run_once(Hook::Egress, &bytes);
            assert!(take(&mut ring).is_empty(), "nobody listens");
            listen(&node, EVENTS_DROP);
            node.run_once(Hook::Egress, &bytes);
            let records = take(&mut ring);
            assert_eq!(records.len(), 1, "{pod}, {payload} bytes");
            let event: DropEvent = read(&records[0]);
            assert_eq!((event.kind, event.direction), (EVENT_DROP, EVENT_OUT));
            assert_eq!(event.reason, DropReason::TcpNoFlow as u32);
            assert_eq!((event.ifindex, event.l2_len), (1, 14));
            assert_eq!(event.length as usize, bytes.len());
            let captured = bytes.len().min(CAPTURED);
            assert_eq!(event.captured as usize, captured);
            assert_eq!(event.packet[..captured], bytes[..captured]);
        }
    }
}

#[test]
fn a_refusal_is_told_apart_from_a_drop() {
    let mut node = Node::new();
    node.uplink(None, None);
    let mut ring = ring(&node);
    let [pod, _, server] = ENDS[0];
    let bytes = frame(&Build::udp(pod, server));
    listen(&node, EVENTS_DROP);
    node.run_once(Hook::Egress, &bytes);
    assert!(take(&mut ring).is_empty(), "nobody listens to refusals");
    listen(&node, EVENTS_REFUSED);
    node.run_once(Hook::Egress, &bytes);
    let records = take(&mut ring);
    let event: DropEvent = read(&records[0]);
    assert_eq!(event.kind, EVENT_REFUSED);
    assert_eq!(event.reason, DropReason::NoSourceAddress as u32);
    assert_eq!(event.packet[..bytes.len()], bytes);
}

#[test]
fn what_is_over_the_rate_or_finds_no_room_is_counted() {
    let mut node = Node::new();
    let mut ring = ring(&node);
    let [pod, _, server] = ENDS[0];
    let bytes = frame(&stray(pod, server, 0));
    // The clock of the programs does not move while this runs, or gives one more at most.
    listen(&node, events_setting(EVENTS_DROP, 1));
    for _ in 0..10 {
        node.run_once(Hook::Egress, &bytes);
    }
    let taken = take(&mut ring).len() as u64;
    let counted = count(&node, EVENT_DROP);
    assert_eq!(counted.seen, 10);
    assert_eq!(counted.limited + taken, 10);
    assert!(counted.limited >= 1 && taken >= 1, "{counted:?}, {taken}");
    listen(&node, events_setting(EVENTS_DROP, 1_000_000));
    let mut seen = 10;
    while count(&node, EVENT_DROP).full == 0 {
        node.run_once(Hook::Egress, &bytes);
        seen += 1;
        assert!(seen < 20_000, "the buffer is never full");
    }
    let after = count(&node, EVENT_DROP);
    let taken = taken + take(&mut ring).len() as u64;
    assert_eq!(after.seen, seen);
    assert_eq!(taken + after.limited + after.full, seen);
}

/// Addresses that the node may have in place of [`V4`] and [`V6`].
const OTHERS: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 11),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11),
);

/// Has the node lose an address of each family for another.
fn exchange(node: &mut Node, loses: (Ipv4Addr, Ipv6Addr), gains: (Ipv4Addr, Ipv6Addr)) {
    for address in [IpAddr::from(loses.0), loses.1.into()] {
        node.apply(&Change::RemoveLocal(address));
    }
    for address in [IpAddr::from(gains.0), gains.1.into()] {
        node.apply(&Change::AddLocal(address));
    }
    node.uplink(Some(gains.0), Some(gains.1));
}

#[test]
fn an_end_by_a_program_is_reported_to_a_listener_and_to_a_log() {
    for (log_ends, events, is_reported) in [
        (false, 0, false),
        (false, EVENTS_BEGIN | EVENTS_REFUSED | EVENTS_DROP, false),
        (false, EVENTS_END, true),
        (true, 0, true),
        (true, EVENTS_END, true),
    ] {
        let mut node = Node::with(|setup| setup.log_ends = log_ends);
        let mut reports = ring_of(&node, pins::ENDED);
        let packets = ENDS.map(|[pod, _, server]| Build::udp(pod, server));
        for packet in &packets {
            node.run_once(Hook::Egress, &frame(packet));
        }
        exchange(&mut node, (V4, V6), OTHERS);
        listen(&node, events);
        for (packet, [_, wire, _]) in packets.iter().zip(ENDS) {
            node.run_once(Hook::Egress, &frame(packet));
            let records = take(&mut reports);
            assert_eq!(
                records.len(),
                usize::from(is_reported),
                "{log_ends} {events}"
            );
            for record in records {
                let ended: Ended = read(&record);
                assert_eq!((ended.tuple, ended.why), (tuple_of(packet), ENDED_MOVED));
                let had = IpAddr::from(ended.original.addr);
                let wire: std::net::SocketAddr = wire.parse().unwrap();
                assert_eq!((had, ended.original.id), (wire.ip(), wire.port()));
            }
        }
    }
}
