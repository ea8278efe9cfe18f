//! Scope: packets that are translated and packets that are not.

use super::{BOTH, V4, V6, assert_paired, becomes, drop_of, halves, opened};
use netdp_common::layout::{
    Action, DropReason, Half, SETTING_IPV6, SETTING_SEVERAL_UPLINKS, UPLINK_V4, UPLINK_V6,
};
use testkit::build::{ACK, Build, Kind, RST, SYN};
use testkit::fake::{Fake, Seen};

#[test]
fn a_pod_leaves_as_the_node_and_its_reply_comes_back() {
    for net in BOTH {
        for packet in net.openings() {
            let fake = Fake::new();
            assert_eq!(fake.out(&packet), becomes(net.node), "{packet:?}");
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.pod), "{reply:?}");
            assert_paired(&fake);
            let (original, back) = halves(&fake, &packet);
            assert_eq!(
                (original.packets(Half::Original), back.packets(Half::Reply)),
                (1, 1)
            );
            let counters = fake.counters();
            assert_eq!(counters.egress_masqueraded.packets, 1);
            assert_eq!(counters.ingress_translated.packets, 1);
            assert_eq!(counters.mappings_created, 1);
            assert_eq!(counters.ports_changed, 0);
        }
    }
}

#[test]
fn a_bypassed_destination_sees_the_pod() {
    for (net, prefix) in [(V4, "198.51.100.0/24"), (V6, "2001:db8::/32")] {
        for packet in net.openings() {
            let mut fake = Fake::new();
            fake.rule(prefix, Action::Bypass);
            assert_eq!(fake.out(&packet), Seen::Pass);
            assert_eq!(fake.back(&packet.answer()), Seen::Pass);
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            assert!(
                (fake.asked_len() + fake.live_len() == 0),
                "nothing to know there"
            );
            assert_eq!(fake.counters().egress_bypassed.packets, 1);
            assert_eq!(fake.counters().ingress_passed.packets, 1);
        }
    }
}

/// Withheld because of an IPsec policy. The node's own packets have already been checked by it, and
/// packets that keep the pod's address are not subject to it.
#[test]
fn what_is_withheld_is_dropped() {
    for (net, prefix) in [(V4, "198.51.100.0/24"), (V6, "2001:db8::/32")] {
        for packet in net.openings() {
            let mut fake = Fake::new();
            fake.rule(prefix, Action::Withhold);
            let dropped = drop_of(DropReason::IpsecPolicy);
            assert_eq!(fake.out(&packet), dropped, "{packet:?}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            assert_eq!(fake.out(&packet.from(net.node)), Seen::Pass);
        }
        let mut fake = Fake::new();
        fake.rule(prefix, Action::Withhold);
        let dropped = drop_of(DropReason::IpsecPolicy);
        assert_eq!(fake.out(&net.udp().last()), dropped, "before its first");
        let inward = net.udp().answer();
        assert_eq!(fake.back(&inward), Seen::Pass);
        assert_eq!(fake.out(&net.udp()), Seen::Pass, "it began outside");
    }
}

#[test]
fn the_longest_prefix_decides() {
    let mut fake = Fake::new();
    fake.rule("10.0.0.0/8", Action::Bypass);
    fake.rule("10.0.0.0/29", Action::Masquerade);
    fake.rule("10.0.0.5/32", Action::Bypass);
    for (server, wanted) in [
        ("10.0.0.3:6379", becomes("192.0.2.10:4000")),
        ("10.0.0.5:6379", Seen::Pass),
        ("10.0.0.8:6379", Seen::Pass),
        ("11.0.0.3:6379", becomes("192.0.2.10:4000")),
    ] {
        let packet = Build::tcp(V4.pod, server, SYN);
        assert_eq!(fake.out(&packet), wanted, "{server}");
    }
}

#[test]
fn a_live_mapping_outlives_its_policy() {
    for (net, prefix) in [(V4, "0.0.0.0/0"), (V6, "::/0")] {
        for packet in net.openings() {
            let mut fake = opened(&packet);
            fake.rule(prefix, Action::Bypass);
            assert_eq!(fake.out(&packet), becomes(net.node));
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.pod));
            let fresh = packet.from(net.other_pod);
            assert_eq!(fake.out(&fresh), Seen::Pass, "new flows follow it");
        }
    }
}

#[test]
fn what_nothing_may_be_assumed_of_is_left_alone() {
    for (src, dst) in [
        ("172.16.0.2:5353", "224.0.0.251:5353"),
        ("172.16.0.2:68", "255.255.255.255:67"),
        ("0.0.0.0:68", "198.51.100.7:67"),
        ("[fd00:1::2]:5353", "[ff02::fb]:5353"),
        ("[::]:546", "[2001:db8::7]:547"),
        ("[fe80::1]:546", "[2001:db8::7]:547"),
        ("[febf::1]:546", "[2001:db8::7]:547"),
    ] {
        let fake = Fake::new();
        let packet = Build::udp(src, dst);
        assert_eq!(fake.out(&packet), Seen::Pass, "{src} → {dst}");
        assert_eq!(fake.back(&packet), Seen::Pass, "{src} → {dst}");
        assert_eq!(fake.counters().egress_untouched.packets, 1);
        assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        assert!((fake.asked_len() + fake.live_len() == 0));
    }
    // Just outside these ranges.
    for (src, dst) in [
        ("172.16.0.2:1024", "223.255.255.255:1"),
        ("172.16.0.2:1024", "240.0.0.1:1"),
        ("[fec0::1]:1024", "[2001:db8::7]:1"),
    ] {
        let packet = Build::udp(src, dst);
        assert!(
            matches!(Fake::new().out(&packet), Seen::As(_)),
            "{src} → {dst}"
        );
    }
}

#[test]
fn ipv6_is_untouched_while_it_is_off() {
    let mut fake = Fake::new();
    fake.settings.flags &= !SETTING_IPV6;
    for packet in V6.openings() {
        assert_eq!(fake.out(&packet), Seen::Pass);
        assert_eq!(fake.back(&packet.answer()), Seen::Pass);
    }
    for other in [
        Build::new(V6.pod, V6.server, Kind::Other(132)),
        V6.udp().first(),
        V6.udp().last(),
        Build::error(V6.pod, V6.server, 1, &V6.udp().answer(), 100),
    ] {
        assert_eq!(fake.out(&other), Seen::Pass);
        assert_eq!(fake.back(&other.answer()), Seen::Pass);
    }
    assert!((fake.fragments_len() == 0));
    assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
    assert_eq!(fake.out(&V4.syn()), becomes(V4.node));
}

#[test]
fn an_uplink_without_an_address_of_the_family_drops() {
    for (net, flag) in [(V4, UPLINK_V4), (V6, UPLINK_V6)] {
        for packet in net.openings() {
            let mut fake = Fake::new();
            fake.uplink.flags &= !flag;
            let dropped = drop_of(DropReason::NoSourceAddress);
            assert_eq!(fake.out(&packet), dropped);
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
            fake.uplink.flags |= flag;
            assert_eq!(fake.out(&packet), becomes(net.node));
            // An existing mapping keeps its address.
            fake.uplink.flags &= !flag;
            assert_eq!(fake.out(&packet), becomes(net.node));
        }
    }
}

/// Returns packets that no mapping can translate, with their drop reasons.
fn untranslatable(src: &str, dst: &str) -> Vec<(Build, DropReason)> {
    let unsupported = DropReason::UnsupportedProtocol;
    let no_flow = DropReason::IcmpNoFlow;
    let v6 = src.starts_with('[');
    let foreign_icmp = if v6 { 1 } else { 58 };
    let (error, redirect) = if v6 { (1, 137) } else { (3, 5) };
    let mut all = vec![
        (Build::new(src, dst, Kind::Other(51)), unsupported),
        (Build::new(src, dst, Kind::Other(foreign_icmp)), unsupported),
        (Build::new(src, dst, Kind::EchoReply), no_flow),
        (Build::new(src, dst, Kind::Icmp(redirect)), no_flow),
        // Its payload is not a packet.
        (
            Build::new(src, dst, Kind::Icmp(error)),
            DropReason::Malformed,
        ),
        (Build::tcp(src, dst, RST), DropReason::TcpNoFlow),
    ];
    if v6 {
        let mut buried = Build::udp(src, dst);
        buried.extensions = vec![60; 6];
        all.push((buried, DropReason::ExtensionHeader));
    }
    all
}

#[test]
fn what_cannot_be_translated_is_dropped_and_never_leaks() {
    for (net, prefix) in [(V4, "0.0.0.0/0"), (V6, "::/0")] {
        for (packet, reason) in untranslatable(net.pod, net.server) {
            let mut fake = Fake::new();
            assert_eq!(fake.out(&packet), drop_of(reason), "{packet:?}");
            // On ingress, the decision is the node's.
            assert_eq!(fake.back(&packet.answer()), Seen::Pass);
            fake.rule(prefix, Action::Bypass);
            assert_eq!(fake.out(&packet), Seen::Pass, "{packet:?}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        }
        for (packet, _) in untranslatable(net.node, net.server) {
            assert_eq!(Fake::new().out(&packet), Seen::Pass, "host {packet:?}");
        }
    }
}

#[test]
fn unasked_for_packets_reach_the_node_unchanged() {
    for net in BOTH {
        let to_node = [
            Build::udp(net.server, net.node),
            Build::tcp(net.server, net.node, SYN),
            Build::tcp(net.server, net.node, SYN | ACK),
            Build::tcp(net.server, net.node, RST),
            Build::new(net.server, net.node, Kind::EchoReply),
        ];
        let fake = Fake::new();
        for packet in &to_node {
            assert_eq!(fake.back(packet), Seen::Pass, "{packet:?}");
        }
        assert!(
            (fake.asked_len() + fake.live_len() == 0),
            "the node answers itself"
        );
        // A mapping accepts packets from its own peer only.
        let fake = opened(&net.udp());
        let stranger = Build::udp(net.other_server, net.node);
        assert_eq!(fake.back(&stranger), Seen::Pass);
        let elsewhere = Build::udp(net.server, net.node.replace("4000", "4001").as_str());
        assert_eq!(fake.back(&elsewhere), Seen::Pass);
        let friend = Build::udp(net.server, net.node);
        assert_eq!(fake.back(&friend), becomes(net.pod));
    }
}

/// RFC 4861: link-local whatever the sender. Forwarded packets have a lower hop limit.
#[test]
fn neighbour_discovery_is_left_alone() {
    for kind in 133..=137 {
        let mut message = Build::new(V6.pod, V6.server, Kind::Icmp(kind));
        message.data = vec![0; 16];
        let fake = Fake::new();
        assert_eq!(
            fake.out(&message),
            drop_of(DropReason::IcmpNoFlow),
            "{kind}"
        );
        message.hops = 255;
        assert_eq!(fake.out(&message), Seen::Pass, "{kind}");
        assert_eq!(fake.back(&message.answer()), Seen::Pass, "{kind}");
        assert_eq!(fake.counters().egress_untouched.packets, 1);
        let mut v4 = Build::new(V4.pod, V4.server, Kind::Icmp(kind));
        v4.hops = 255;
        assert_eq!(fake.out(&v4), drop_of(DropReason::IcmpNoFlow), "{kind}");
    }
}

/// Packets of a guest on the uplink's own link are not translated.
#[test]
fn what_is_bridged_is_left_alone() {
    for net in BOTH {
        let fake = Fake::new();
        let known = net.udp();
        assert_eq!(fake.out(&known), becomes(net.node));
        fake.bridged.set(true);
        assert_eq!(fake.out(&known), becomes(net.node), "a live mapping stays");
        let reset = Build::tcp(net.pod, net.other_server, RST);
        let error = Build::error(net.pod, net.server, 3, &net.udp().answer(), 64);
        let others = [
            net.syn(),
            net.echo(1),
            reset,
            net.udp().to(net.other_server),
        ];
        for packet in others {
            assert_eq!(fake.out(&packet), Seen::Pass, "{packet:?}");
            assert_eq!(fake.out(&packet.first()), Seen::Pass, "{packet:?}");
            assert_eq!(fake.out(&packet.last()), Seen::Pass, "{packet:?}");
        }
        assert_eq!(fake.out(&error), Seen::Pass);
        assert_eq!(fake.snat.len(), 1);
        let own = Build::udp(net.node, net.other_server);
        assert_eq!(fake.out(&own), Seen::Pass);
        assert_paired(&fake);
    }
}

/// An uplink may also lead to pods whose addresses the policy masquerades.
#[test]
fn what_comes_back_for_a_pod_leaves_by_an_uplink_untouched() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_SEVERAL_UPLINKS;
        for packet in [net.syn(), net.udp(), net.echo(1)] {
            fake.out(&packet);
            let back = packet.answer();
            assert_eq!(fake.out(&back), Seen::Pass, "{back:?}");
            let other = back.to(net.other_pod);
            assert_ne!(fake.out(&other), Seen::Pass, "{other:?}");
        }
    }
}
