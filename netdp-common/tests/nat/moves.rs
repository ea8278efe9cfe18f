//! Flows that move to another uplink, or whose address the node has lost.

use super::{BOTH, Net, assert_paired, becomes, drop_of, opened};
use netdp_common::layout::{DropReason, ENDED_MOVED};
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, addr, tuple_of};

/// Addresses of another uplink, one per family, as written before `:port`.
const OTHER: [&str; 2] = ["203.0.113.10", "[fd01::10]"];

fn bare(address: &str) -> netdp_common::layout::Addr {
    addr(address.trim_matches(['[', ']']))
}

/// Moves egress traffic to another uplink, which has addresses of its own.
fn fail_over(fake: &mut Fake) {
    fake.ifindex = 7;
    (fake.uplink.v4, fake.uplink.v6) = (bare(OTHER[0]), bare(OTHER[1]));
    fake.local.extend([fake.uplink.v4, fake.uplink.v6]);
    fake.settings.epoch += 1;
}

fn segment(net: &Net, flags: u8) -> Build {
    Build::tcp(net.pod, net.server, flags)
}

/// Returns a connection whose SYN was answered.
fn connected(net: &Net) -> Fake {
    let fake = opened(&net.syn());
    let answer = Build::tcp(net.server, net.node, SYN | ACK);
    assert_eq!(fake.back(&answer), becomes(net.pod));
    assert_eq!(fake.out(&segment(net, ACK)), becomes(net.node));
    fake
}

fn other(net: &Net) -> &'static str {
    OTHER[usize::from(net.node_ip.starts_with('['))]
}

/// Returns packets without a connection: a datagram, a ping, a protocol without ports.
fn connectionless(net: &Net) -> [Build; 3] {
    let gre = Build::new(net.pod, net.server, Kind::Other(47));
    [net.udp(), net.echo(4000), gre]
}

#[test]
fn what_has_no_connection_gets_the_address_of_the_uplink_that_it_moves_to() {
    for net in BOTH {
        for packet in connectionless(&net) {
            let mut fake = opened(&packet);
            fail_over(&mut fake);
            let portless = matches!(packet.kind, Kind::Other(_));
            let port = if portless { 0 } else { 4000 };
            let wanted = becomes(&format!("{}:{port}", other(&net)));
            assert_eq!(fake.out(&packet), wanted, "{packet:?}");
            assert_eq!(fake.out(&packet), wanted, "and stays there");
            assert_paired(&fake);
        }
    }
}

/// The agent receives an address slightly after the kernel has begun to route packets there: a flow
/// that keeps the old address meanwhile moves then.
#[test]
fn an_uplink_that_has_no_address_yet_gives_it_later() {
    for net in BOTH {
        for packet in connectionless(&net) {
            let mut fake = opened(&packet);
            let flags = std::mem::take(&mut fake.uplink.flags);
            fake.ifindex = 7;
            for _ in 0..2 {
                let port = fake.snat.all()[0].1.id;
                let old = becomes(&format!("{}:{port}", net.node_ip));
                assert_eq!(fake.out(&packet), old, "nothing else is there");
            }
            // Regardless of other changes that the agent publishes first.
            fake.settings.epoch += 1;
            fake.out(&packet);
            fake.uplink.flags = flags;
            fail_over(&mut fake);
            let portless = matches!(packet.kind, Kind::Other(_));
            let port = if portless { 0 } else { 4000 };
            let wanted = becomes(&format!("{}:{port}", other(&net)));
            assert_eq!(fake.out(&packet), wanted, "{packet:?}");
            assert_paired(&fake);
        }
    }
}

#[test]
fn a_connection_keeps_its_address_when_it_moves() {
    for net in BOTH {
        let mut fake = connected(&net);
        fail_over(&mut fake);
        assert_eq!(fake.out(&segment(&net, ACK)), becomes(net.node));
        assert_eq!(fake.out(&segment(&net, ACK | FIN)), becomes(net.node));
        // In an established connection a SYN is a stray packet.
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        assert_paired(&fake);
    }
}

#[test]
fn a_connection_that_begins_anew_gets_the_new_address() {
    for net in BOTH {
        let wanted = becomes(&format!("{}:4000", other(&net)));
        // Reset before the move, and after its last segments have left by the new uplink.
        let mut fake = connected(&net);
        fail_over(&mut fake);
        assert_eq!(fake.out(&segment(&net, RST)), becomes(net.node));
        assert_eq!(fake.out(&net.syn()), wanted);
        // An unanswered connection.
        let mut fake = opened(&net.syn());
        fail_over(&mut fake);
        assert_eq!(fake.out(&net.syn()), wanted);
        assert_paired(&fake);
    }
}

#[test]
fn the_end_of_a_mapping_that_moves_is_reported() {
    for net in BOTH {
        let mut fake = opened(&net.syn());
        let tuple = tuple_of(&net.syn());
        let wire = tuple_of(&net.syn().from(net.node)).reversed();
        fail_over(&mut fake);
        assert_eq!(*fake.reported_ends.borrow(), []);
        fake.out(&net.syn());
        assert_eq!(*fake.reported_ends.borrow(), [(tuple, wire, ENDED_MOVED)]);
    }
}

#[test]
fn nothing_changes_where_both_uplinks_have_the_address() {
    for net in BOTH {
        for packet in [net.udp(), net.syn(), net.echo(4000)] {
            let mut fake = opened(&packet);
            let before = fake.snat.all();
            fake.ifindex = 7;
            assert_eq!(fake.out(&packet), becomes(net.node));
            let after = fake.snat.all();
            assert_eq!(before[0].1.created, after[0].1.created);
            assert_eq!(fake.counters().mappings_created, 1);
        }
    }
}

/// A new address on the same uplink is used by new flows only.
#[test]
fn nothing_changes_while_a_flow_stays_on_its_uplink() {
    for net in BOTH {
        let mut fake = opened(&net.udp());
        fail_over(&mut fake);
        fake.ifindex = 2;
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
    }
}

#[test]
fn a_mapping_rests_while_its_address_is_gone() {
    for net in BOTH {
        for packet in [net.udp(), net.syn(), net.echo(4000)] {
            let mut fake = opened(&packet);
            let (local, flags) = (std::mem::take(&mut fake.local), fake.uplink.flags);
            fake.uplink.flags = 0;
            fake.settings.epoch += 1;
            assert_eq!(fake.out(&packet), drop_of(DropReason::NoSourceAddress));
            // Ingress packets still belong to the pod.
            let reply = packet.from(net.node).answer();
            assert_eq!(fake.back(&reply), becomes(net.pod));
            (fake.local, fake.uplink.flags) = (local, flags);
            fake.settings.epoch += 1;
            assert_eq!(fake.out(&packet), becomes(net.node));
            assert_eq!(fake.counters().mappings_created, 1);
        }
    }
}

#[test]
fn where_another_address_is_left_only_connections_rest() {
    for net in BOTH {
        let gone = bare(net.node_ip);
        let mut fake = opened(&net.udp());
        fail_over(&mut fake);
        fake.ifindex = 2;
        fake.local.remove(&gone);
        let wanted = becomes(&format!("{}:4000", other(&net)));
        assert_eq!(fake.out(&net.udp()), wanted);
        let mut fake = connected(&net);
        fail_over(&mut fake);
        fake.ifindex = 2;
        fake.local.remove(&gone);
        assert_eq!(
            fake.out(&segment(&net, ACK)),
            drop_of(DropReason::NoSourceAddress)
        );
        assert_paired(&fake);
    }
}

/// A packet forged with the pod's source moves no flow.
#[test]
fn a_forged_packet_moves_no_flow() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.ingress_ifindex.set(3);
        fake.own.set(false);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        fail_over(&mut fake);
        fake.ingress_ifindex.set(4);
        let pod = bare(net.pod_ip);
        fake.origins
            .borrow_mut()
            .insert(pod, testkit::fake::Origin::Elsewhere);
        assert_eq!(fake.out(&net.udp()), drop_of(DropReason::ForgedSource));
        assert_eq!(fake.counters().mappings_created, 1);
        let half = fake.snat.all()[0].1;
        assert_eq!(half.addr, bare(net.node_ip));
    }
}
