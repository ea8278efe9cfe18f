//! Actions for untranslatable packets (`--untranslatable`).

use super::{BOTH, V4, becomes, drop_of, opened};
use netdp_common::layout::{DropReason, NO_LEAK_ADDRESS, NO_LEAK_DROP, NO_LEAK_PASS};
use testkit::build::{Build, Kind, RST};
use testkit::fake::{Fake, Seen};

fn with(no_leak: u32) -> Fake {
    let mut fake = Fake::new();
    fake.settings.no_leak = no_leak;
    fake
}

/// Returns packets that are themselves untranslatable, and the source that an address-only
/// translation yields.
fn at_fault(net: &super::Net) -> [(Build, String, DropReason); 4] {
    let none = format!("{}:0", net.node_ip);
    let new = |kind| Build::new(net.pod, net.server, kind);
    let foreign_icmp = if net.pod.starts_with('[') { 1 } else { 58 };
    [
        (
            new(Kind::Other(foreign_icmp)),
            none.clone(),
            DropReason::UnsupportedProtocol,
        ),
        (new(Kind::EchoReply), none.clone(), DropReason::IcmpNoFlow),
        (new(Kind::Icmp(3)), none, DropReason::Malformed),
        (
            Build::tcp(net.pod, net.server, RST),
            net.node.to_owned(),
            DropReason::TcpNoFlow,
        ),
    ]
}

#[test]
fn a_packet_at_fault_leaves_as_the_policy_says() {
    for net in BOTH {
        for (packet, source, reason) in at_fault(&net) {
            let fake = with(NO_LEAK_DROP);
            assert_eq!(fake.out(&packet), drop_of(reason), "{packet:?}");
            assert_eq!(fake.counters().egress_let_out.packets, 0);
            let fake = with(NO_LEAK_PASS);
            assert_eq!(fake.out(&packet), Seen::Pass, "{packet:?}");
            assert_eq!(fake.counters().egress_let_out.packets, 1);
            let mut fake = with(NO_LEAK_ADDRESS);
            assert_eq!(fake.out(&packet), becomes(&source), "{packet:?}");
            assert_eq!(fake.counters().egress_let_out.packets, 1);
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            fake.uplink.flags = 0;
            assert_eq!(fake.out(&packet), drop_of(reason), "no address");
            // Values of another version drop the packet.
            assert_eq!(with(77).out(&packet), drop_of(reason));
        }
    }
}

#[test]
fn what_the_node_cannot_serve_never_leaks() {
    for net in BOTH {
        for no_leak in [NO_LEAK_PASS, NO_LEAK_ADDRESS] {
            let mut fake = with(no_leak);
            fake.rev_snat.set_capacity(0);
            assert_eq!(fake.out(&net.syn()), drop_of(DropReason::TableFull));
            fake.rev_snat.set_capacity(9);
            fake.reserved = (0..=u16::MAX).collect();
            assert_eq!(fake.out(&net.syn()), drop_of(DropReason::NoFreePort));
            fake.uplink.flags = 0;
            let dropped = drop_of(DropReason::NoSourceAddress);
            assert_eq!(fake.out(&net.udp()), dropped);
            assert_eq!(fake.out(&net.udp().last()), dropped);
            assert_eq!(fake.counters().egress_let_out.packets, 0);
        }
    }
}

#[test]
fn fragments_of_what_was_let_out_follow_it() {
    let stray = Build::tcp(V4.pod, V4.server, RST);
    let fake = with(NO_LEAK_PASS);
    assert_eq!(fake.out(&stray.first()), Seen::Pass);
    assert_eq!(fake.out(&stray.last()), Seen::Pass);
    let fake = with(NO_LEAK_ADDRESS);
    assert_eq!(fake.out(&stray.first()), becomes(V4.node));
    let id = fake.written_ip_id.get();
    assert_eq!(fake.out(&stray.last()), becomes("192.0.2.10:0"));
    assert_eq!(fake.written_ip_id.get(), id);
}

#[test]
fn what_can_be_translated_is_not_asked_about() {
    for no_leak in [NO_LEAK_PASS, NO_LEAK_ADDRESS] {
        let mut fake = opened(&V4.udp());
        fake.settings.no_leak = no_leak;
        assert_eq!(fake.out(&V4.udp()), becomes(V4.node));
        assert_eq!(fake.out(&V4.syn()), becomes(V4.node));
        assert_eq!(fake.counters().egress_let_out.packets, 0);
    }
}
