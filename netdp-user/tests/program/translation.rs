//! Input packet → output packet, byte for byte.

use crate::build::{ACK, Build, FIN, Kind, RST, SYN};
use crate::node::{Node, Seen, addresses, becomes, frame, ip, tuple_of};
use netdp_common::layout::Family;
use netdp_common::packet::checksum::{fold, pseudo_sum};
use netdp_user::datapath::Hook;
use netdp_user::reconcile::Change;
use netdp_user::uplinks::{SourceChoice, SourceQuery};
use std::net::IpAddr;

/// First packet of a flow, and its external endpoint.
struct Case {
    name: &'static str,
    packet: Build,
    wire: &'static str,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (pod, server, ping, pinged, wire) in [
        (
            "172.16.0.2:4000",
            "198.51.100.7:443",
            "172.16.0.2:4000",
            "198.51.100.7:0",
            "192.0.2.10:4000",
        ),
        (
            "[fd00:1::2]:4000",
            "[2001:db8::7]:443",
            "[fd00:1::2]:4000",
            "[2001:db8::7]:0",
            "[fd00::10]:4000",
        ),
    ] {
        let mut add = |name, packet| cases.push(Case { name, packet, wire });
        add("TCP", Build::tcp(pod, server, SYN));
        add("UDP", Build::udp(pod, server));
        add("ping", Build::echo(ping, pinged));
        let mut bare = Build::udp(pod, server);
        bare.data.clear();
        add("UDP without data", bare);
        let mut even = Build::tcp(pod, server, ACK);
        even.data = vec![0x5a; 1_400];
        add("TCP in mid-stream", even);
    }
    let [pod, server, wire] = ["172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"];
    let unsummed = Build::new(pod, server, Kind::UdpNoChecksum);
    for words in [1, 10] {
        for (name, mut packet) in [
            ("TCP with IP options", Build::tcp(pod, server, SYN)),
            ("UDP with IP options", Build::udp(pod, server)),
            ("UDP without checksum, with IP options", unsummed.clone()),
        ] {
            packet.options = vec![1; words * 4];
            cases.push(Case { name, packet, wire });
        }
    }
    cases.push(Case {
        name: "UDP without checksum",
        packet: unsummed,
        wire,
    });
    // A separate mapping for each, so that one node serves them all.
    for (n, case) in (443..).zip(&mut cases) {
        if case.packet.kind != Kind::Echo {
            case.packet.dst.set_port(n);
        }
    }
    cases
}

#[test]
fn packets_are_translated_there_and_back() {
    let mut node = Node::new();
    for Case { name, packet, wire } in cases() {
        let before = node.counters();
        let translated = packet.from(wire);
        assert_eq!(node.out(&packet), becomes(&translated), "{name}, out");
        let reply = translated.answer();
        let back = packet.answer();
        assert_eq!(node.back(&reply), becomes(&back), "{name}, back");
        // Each packet was run twice.
        let mut wanted = before;
        for (counter, packet) in [
            (&mut wanted.egress_masqueraded, &packet),
            (&mut wanted.ingress_translated, &reply),
        ] {
            counter.packets += 2;
            counter.bytes += 2 * u64::try_from(packet.bytes().len()).expect("a length");
        }
        wanted.mappings_created += 1;
        assert_eq!(node.counters(), wanted, "{name}");
    }
}

#[test]
fn colliding_ports_are_rewritten_too() {
    let mut node = Node::new();
    for Case { name, packet, wire } in cases() {
        let before = node.counters().ports_changed;
        assert_eq!(node.out(&packet), becomes(&packet.from(wire)), "{name}");
        let v4 = packet.src.is_ipv4();
        let other = if v4 {
            "172.16.0.3:4000"
        } else {
            "[fd00:1::3]:4000"
        };
        let rival = packet.from(other);
        let seen = node.out(&rival);
        let flows = node.flows();
        let mut of_rival = flows.iter().filter(|flow| {
            flow.source == rival.src.ip()
                && flow.destination_id == rival.dst.port()
                && (flow.protocol == "udp") == matches!(rival.kind, Kind::Udp | Kind::UdpNoChecksum)
        });
        let id = of_rival.next().expect("a mapping").nat_id;
        assert_ne!(id, 4000, "{name}");
        let translated = rival.from(&wire.replace(":4000", &format!(":{id}")));
        assert_eq!(seen, becomes(&translated), "{name}, out");
        let reply = translated.answer();
        assert_eq!(node.back(&reply), becomes(&rival.answer()), "{name}, back");
        let reply = packet.from(wire).answer();
        assert_eq!(
            node.back(&reply),
            becomes(&packet.answer()),
            "{name}, other"
        );
        assert_eq!(node.counters().ports_changed, before + 1, "{name}");
    }
}

/// Gives a UDP packet data for which its checksum equals the sum of the pseudo-header, as a partial
/// checksum does.
fn look_partial(packet: &mut Build) {
    let (family, header) = if packet.src.is_ipv4() {
        (Family::V4, 20)
    } else {
        (Family::V6, 40)
    };
    let tuple = tuple_of(packet);
    let pseudo = fold(pseudo_sum(&tuple.src, &tuple.dst, family, 17, 10));
    let mut sum_with = |data: [u8; 2]| {
        packet.data = data.to_vec();
        let bytes = packet.bytes();
        u16::from_ne_bytes([bytes[header + 6], bytes[header + 7]])
    };
    let filler = fold(u64::from(sum_with([0, 0])) + u64::from(!pseudo));
    assert_eq!(sum_with(filler.to_ne_bytes()), pseudo);
}

#[test]
fn a_checksum_that_looks_partial_may_be_whole() {
    for (pod, server, wire) in [
        ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"),
        ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"),
    ] {
        let mut node = Node::new();
        let mut packet = Build::udp(pod, server);
        look_partial(&mut packet);
        assert_eq!(node.out(&packet), becomes(&packet.from(wire)));
        let mut reply = Build::udp(server, wire);
        look_partial(&mut reply);
        assert_eq!(node.back(&reply), becomes(&reply.to(pod)));
    }
}

#[test]
fn what_lies_behind_the_packet_stays() {
    let mut node = Node::new();
    for Case { name, packet, wire } in cases() {
        let padding = [0xaa; 18];
        let padded = [frame(&packet), padding.to_vec()].concat();
        let wanted = [frame(&packet.from(wire)), padding.to_vec()].concat();
        let seen = node.run(Hook::Egress, &padded);
        assert_eq!(seen, Seen::Next(wanted), "{name}");
    }
}

#[test]
fn a_connection_is_translated_from_syn_to_rst() {
    for (pod, server, wire) in [
        ("172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"),
        ("[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"),
    ] {
        let mut node = Node::new();
        for (out, flags, state) in [
            (true, SYN, "SynSent"),
            (false, SYN | ACK, "SynReceived"),
            (true, ACK, "Established"),
            (false, ACK, "Established"),
            (false, FIN | ACK, "HalfClosed"),
            (true, FIN | ACK, "TimeWait"),
            (true, SYN, "SynSent"),
            (true, RST, "Closed"),
        ] {
            if out {
                let packet = Build::tcp(pod, server, flags);
                assert_eq!(node.out(&packet), becomes(&packet.from(wire)));
            } else {
                let packet = Build::tcp(server, wire, flags);
                assert_eq!(node.back(&packet), becomes(&packet.to(pod)));
            }
            assert_eq!(node.flows()[0].state, state, "after {flags:#x}");
        }
    }
}

#[test]
fn what_is_not_translated_is_not_touched() {
    let mut node = Node::new();
    node.policy(&["10.0.0.0/8", "2001:db8:1::/48"]);
    for (packet, why) in [
        (
            Build::tcp("172.16.0.2:4000", "10.1.2.3:443", SYN),
            "bypassed",
        ),
        (
            Build::udp("[fd00:1::2]:4000", "[2001:db8:1::7]:443"),
            "bypassed",
        ),
        (
            Build::tcp("192.0.2.10:4000", "198.51.100.7:443", SYN),
            "the node's",
        ),
        (
            Build::udp("[fd00::10]:4000", "[2001:db8::7]:443"),
            "the node's",
        ),
        (
            Build::new("192.0.2.10:0", "198.51.100.7:0", Kind::Other(132)),
            "the node's",
        ),
        (
            Build::udp("172.16.0.2:5353", "224.0.0.251:5353"),
            "multicast",
        ),
        (Build::udp("0.0.0.0:68", "255.255.255.255:67"), "broadcast"),
        (
            Build::udp("[fe80::2]:546", "[2001:db8::7]:547"),
            "link-local",
        ),
    ] {
        assert_eq!(node.out(&packet), becomes(&packet), "{why}");
    }
    let mut arp = vec![0xff; 42];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(node.run(Hook::Egress, &arp), Seen::Next(arp.clone()));
    for packet in [
        Build::tcp("198.51.100.7:443", "192.0.2.10:22", SYN),
        Build::new("198.51.100.7:0", "192.0.2.10:0", Kind::Icmp(3)),
        Build::udp("[2001:db8::7]:443", "[fd00::10]:4000"),
    ] {
        assert_eq!(node.back(&packet), becomes(&packet));
    }
    assert_eq!(node.run(Hook::Ingress, &arp), Seen::Next(arp));
    assert!(node.flows().is_empty());
    let counters = node.counters();
    assert_eq!(counters.egress_bypassed.packets, 4);
    assert_eq!(counters.egress_host.packets, 6);
    assert_eq!(counters.egress_untouched.packets, 6);
    assert_eq!(counters.ingress_passed.packets, 6);
}

#[test]
fn without_ipv6_it_is_not_touched() {
    let mut node = Node::with(|setup| setup.enable_ipv6 = false);
    let packet = Build::udp("[fd00:1::2]:4000", "[2001:db8::7]:443");
    assert_eq!(node.out(&packet), becomes(&packet));
    let v4 = Build::udp("172.16.0.2:4000", "198.51.100.7:443");
    assert_eq!(node.out(&v4), becomes(&v4.from("192.0.2.10:4000")));
}

#[test]
fn an_interface_that_is_no_uplink_is_left_alone() {
    let mut node = Node::new();
    node.apply(&Change::Detach {
        ifindex: 1,
        name: "lo".into(),
    });
    let packet = Build::udp("172.16.0.2:4000", "198.51.100.7:443");
    assert_eq!(node.out(&packet), becomes(&packet));
    assert_eq!(node.back(&packet), becomes(&packet));
}

#[test]
fn a_policy_is_for_new_flows() {
    let mut node = Node::new();
    let old = Build::udp("172.16.0.2:4000", "198.51.100.7:443");
    let new = old.from("172.16.0.3:4000");
    assert_eq!(node.out(&old), becomes(&old.from("192.0.2.10:4000")));
    node.policy(&["198.51.100.0/24"]);
    assert_eq!(node.out(&old), becomes(&old.from("192.0.2.10:4000")));
    assert_eq!(node.out(&new), becomes(&new));
    node.policy(&[]);
    assert_ne!(node.out(&new), becomes(&new));
}

#[test]
fn replies_of_flows_from_outside_keep_their_source() {
    let mut node = Node::new();
    for (server, pod) in [
        ("198.51.100.7:999", "172.16.0.2:80"),
        ("[2001:db8::7]:999", "[fd00:1::2]:80"),
    ] {
        for first in [Build::tcp(server, pod, SYN), Build::udp(server, pod)] {
            assert_eq!(node.back(&first), becomes(&first));
            assert_eq!(node.out(&first.answer()), becomes(&first.answer()));
        }
        // A connection of its own to the same port is not a reply.
        let own = Build::tcp(pod, server, SYN);
        assert_ne!(node.out(&own), becomes(&own));
    }
    assert_eq!(node.counters().egress_replies.packets, 8);
}

/// A reply arrives on one uplink and leaves to its pod by another.
#[test]
fn replies_leave_for_their_pods_by_another_uplink() {
    let mut node = Node::new();
    let (v4, v6) = ("192.0.2.77", "fd00::77");
    let second = node.second_uplink(v4.parse().expect("IPv4"), v6.parse().expect("IPv6"));
    for [pod, server, wire] in [
        ["172.16.0.2:4000", "198.51.100.7:443", "192.0.2.10:4000"],
        ["[fd00:1::2]:4000", "[2001:db8::7]:443", "[fd00::10]:4000"],
    ] {
        let packet = Build::udp(pod, server);
        assert_eq!(node.out(&packet), becomes(&packet.from(wire)));
        let reply = packet.from(wire).answer();
        assert_eq!(node.back(&reply), becomes(&packet.answer()));
        let leaves = frame(&packet.answer());
        let seen = node.run_on(Hook::Egress, &leaves, second);
        assert_eq!(seen, Seen::Next(leaves.clone()));
        // The next agent rewrites its settings.
        node.stop();
        node.start().expect("a second agent");
        let seen = node.run_on(Hook::Egress, &leaves, second);
        assert_eq!(seen, Seen::Next(leaves), "after a restart");
    }
}

/// A source that a packet's route names is used only where the agent has not found that there is just
/// one: there the route is not looked up.
#[test]
fn routes_decide_unless_there_is_only_one_source() {
    let mut node = Node::new();
    addresses(&["192.0.2.99/24", "fd00::99/64"]);
    for knob in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{knob}"), "1").expect("forwarding");
    }
    ip(&[
        "route",
        "add",
        "198.51.100.0/24",
        "dev",
        "lo",
        "src",
        "192.0.2.99",
    ]);
    ip(&[
        "-6",
        "route",
        "add",
        "2001:db8::/64",
        "dev",
        "lo",
        "src",
        "fd00::99",
    ]);
    for named in ["192.0.2.99", "fd00::99"] {
        let addr: IpAddr = named.parse().expect("an address");
        node.apply(&Change::AddLocal(addr));
        let asked = SourceQuery {
            link: 1,
            named: true,
            net: addr.into(),
        };
        node.apply(&Change::SetSource(asked, SourceChoice { addr, via: 1 }));
    }
    let flows = [
        ("172.16.0.2", "198.51.100.7:443", "192.0.2.99", "192.0.2.10"),
        (
            "[fd00:1::2]",
            "[2001:db8::7]:443",
            "[fd00::99]",
            "[fd00::10]",
        ),
    ];
    for (port, only) in [
        (4000, [false, false]),
        (4001, [true, false]),
        (4002, [false, true]),
    ] {
        node.set_only_sources(only);
        for ((pod, server, named, own), only) in flows.iter().zip(only) {
            let packet = Build::udp(&format!("{pod}:{port}"), server);
            let source = if only { own } else { named };
            let leaves = packet.from(&format!("{source}:{port}"));
            assert_eq!(node.out(&packet), becomes(&leaves), "{only}");
        }
    }
}
