//! Dropped packets: each is counted; refusals are logged and answered. And hairpin packets that the
//! node's stack handles.

use super::{BOTH, back, out};
use netdp_common::direction::Direction;
use netdp_common::layout::{
    DropReason, EVENTS_BEGIN, EVENTS_DROP, EVENTS_REFUSED, SETTING_HAIRPIN,
};
use netdp_common::verdict::Outcome;
use testkit::build::{Build, RST};
use testkit::fake::{Fake, Frame, Origin, Seen, Turned, becomes, tuple_of, turned};

#[test]
fn a_refusal_is_counted_logged_and_answered() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.uplink.flags = 0;
        let run = out(&fake, &Frame::of(&net.syn()));
        let reason = DropReason::NoSourceAddress;
        assert_eq!(
            (run.outcome, run.seen),
            (Outcome::Redirect, Seen::Drop(reason))
        );
        assert_eq!(fake.counters().drops.no_source_address, 1);
        assert_eq!(fake.logged.take(), [(tuple_of(&net.syn()), reason)]);
        assert_eq!(fake.answered.get(), 1);
    }
}

#[test]
fn a_flood_of_refusals_is_answered_in_part() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.uplink.flags = 0;
        for n in 0..100 {
            let packet = net
                .udp()
                .from(&net.pod.replace(":4000", &format!(":{}", 5000 + n)));
            assert!(matches!(fake.out(&packet), Seen::Drop(_)));
        }
        assert_eq!(fake.counters().drops.no_source_address, 100);
        assert_eq!(fake.answered.get(), 8);
        let refusals: Vec<_> = fake.refusals.borrow().values().copied().collect();
        assert_eq!(refusals, [100], "all of one pod");
        fake.advance(1);
        fake.out(&net.udp());
        assert_eq!(fake.answered.get(), 9);
    }
}

#[test]
fn other_drops_are_only_counted() {
    for net in BOTH {
        let fake = Fake::new();
        let stray = Build::tcp(net.pod, net.server, RST);
        let run = out(&fake, &Frame::of(&stray));
        let reason = DropReason::TcpNoFlow;
        assert_eq!((run.outcome, run.seen), (Outcome::Drop, Seen::Drop(reason)));
        assert_eq!(fake.counters().drops.tcp_no_flow, 1);
        assert!(fake.logged.take().is_empty());
        assert_eq!(fake.answered.get(), 0);
        assert!(fake.refusals.borrow().is_empty(), "no new flow");
    }
}

#[test]
fn drops_are_reported_while_somebody_listens() {
    for net in BOTH {
        let mut fake = Fake::new();
        let stray = Build::tcp(net.pod, net.server, RST);
        let dropped = (DropReason::TcpNoFlow, Direction::Egress);
        for (events, reported) in [
            (0, vec![]),
            (EVENTS_BEGIN, vec![]),
            (EVENTS_DROP, vec![dropped]),
        ] {
            fake.settings.events = events;
            fake.out(&stray);
            assert_eq!(fake.reported.take(), reported, "{events}");
        }
        fake.uplink.flags = 0;
        fake.settings.events = EVENTS_REFUSED;
        fake.out(&net.syn());
        let refused = (DropReason::NoSourceAddress, Direction::Egress);
        assert_eq!(fake.reported.take(), [refused]);
    }
}

#[test]
fn the_begin_of_a_mapping_is_reported_once_while_somebody_listens() {
    for net in BOTH {
        let mut fake = Fake::new();
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        assert!(fake.begun.take().is_empty());
        fake.settings.events = EVENTS_BEGIN;
        for _ in 0..2 {
            assert_eq!(fake.out(&net.syn()), becomes(net.node));
        }
        let tuple = tuple_of(&net.syn());
        let begun = fake.begun.take();
        let [(original, wire, _)] = begun[..] else {
            panic!("{begun:?}");
        };
        assert_eq!(original, tuple);
        assert_eq!(wire, tuple_of(&net.answer()));
    }
}

/// On the fast path and on the slow one, for a packet of an established flow and for a new one.
#[test]
fn a_forged_source_is_dropped_and_counted_wherever_it_is_found() {
    for net in BOTH {
        let fake = Fake::new();
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        fake.ingress_ifindex.set(8);
        let pod = tuple_of(&net.udp()).src;
        fake.origins.borrow_mut().insert(pod, Origin::Elsewhere);
        for n in 1..=2 {
            let packet = if n == 1 { net.udp() } else { net.syn() };
            assert_eq!(fake.out(&packet), Seen::Drop(DropReason::ForgedSource));
            assert_eq!(fake.counters().drops.forged_source, n);
        }
        assert_eq!(fake.answered.get(), 0);
    }
}

/// It changes nothing, whether or not it would begin a mapping.
#[test]
fn a_hairpin_packet_without_hops_belongs_to_the_nodes_stack() {
    for (net, message) in [(BOTH[0], 3), (BOTH[1], 1)] {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_HAIRPIN;
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        // To itself: the other pod's part is the same.
        let own = net.udp().to(net.node);
        let received = own.from(net.node).to(net.pod);
        let error = Build::error(net.pod, net.node, message, &received, 200);
        for known in [1, 2, 2] {
            let before = (fake.counters(), fake.snat.all());
            assert_eq!(before.1.len(), known);
            for mut packet in [own.clone(), error.clone()] {
                packet.hops = 1;
                assert_eq!(fake.hairpin(&packet), Turned::Pass);
            }
            assert_eq!((fake.counters(), fake.snat.all()), before);
            assert_eq!(fake.hairpin(&own), turned(net.node, net.pod));
            assert_eq!(fake.hairpin(&error), turned(net.node, net.pod));
        }
        let reply = net.udp().from(net.node).answer();
        assert_eq!(back(&fake, &Frame::of(&reply)).seen, becomes(net.pod));
    }
}
