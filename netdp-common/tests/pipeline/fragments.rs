//! The queue of fragments that arrive before the first one of their datagram.

use super::{BOTH, back};
use netdp_common::direction::Direction;
use netdp_common::env::{Clock, Fragments};
use netdp_common::layout::{DropReason, FRAGMENT_DROP, Fragment, Tuple};
use netdp_common::verdict::Outcome;
use testkit::fake::{Fake, Frame, Seen, becomes, tuple_of};

#[test]
fn queued_fragments_follow_their_first_one() {
    for net in BOTH {
        let fake = Fake::new();
        fake.out(&net.udp());
        let reply = net.udp().from(net.node).answer();
        let other = reply.with_ip_id(9);
        let run = back(&fake, &Frame::of(&reply.last()));
        assert_eq!((run.outcome, run.seen), (Outcome::Drop, Seen::Hold));
        assert_eq!(fake.back(&other.last()), Seen::Hold);
        assert_eq!(fake.counters().fragments_held, 2);
        assert_eq!(fake.back(&reply.first()), becomes(net.pod));
        let reinjected = fake.reinjected.take();
        assert_eq!(reinjected.len(), 1, "not the other datagram's");
        let bytes = reply.last().bytes();
        assert!(reinjected[0].ends_with(&bytes));
        assert!(matches!(fake.back(&reply.last()), Seen::As(_)));
        // Nothing is counted as dropped on the way.
        assert_eq!(fake.counters().drops, Default::default());
    }
}

#[test]
fn without_room_a_fragment_goes_to_the_nodes_stack() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.queue_capacity = 0;
        let reply = net.udp().from(net.node).answer();
        assert_eq!(fake.back(&reply.last()), Seen::Pass);
        assert_eq!(fake.counters().fragments_held, 0);
    }
}

/// The first fragment arrives on another CPU while this one is being queued, and does not see it.
#[test]
fn a_fragment_that_missed_its_first_one_is_not_held() {
    for net in BOTH {
        let fake = Fake::new();
        fake.out(&net.udp());
        let reply = net.udp().from(net.node).answer();
        let first = reply.first();
        *fake.before_queue.borrow_mut() = Some(Box::new(move |fake: &Fake| {
            fake.back(&first);
        }));
        assert!(matches!(fake.back(&reply.last()), Seen::As(_)));
        assert_eq!(fake.counters().fragments_held, 0);
        assert!(fake.reinjected.borrow().is_empty());
    }
}

#[test]
fn a_fragment_that_missed_its_dropped_first_one_is_dropped_and_counted() {
    for net in BOTH {
        let fake = Fake::new();
        let last = net.udp().from(net.node).answer().last();
        let Tuple {
            src, dst, proto, ..
        } = tuple_of(&last);
        let [a, b, c, d] = last.ip_id.to_be_bytes();
        let [high, low] = [[a, b], [c, d]].map(u16::from_be_bytes);
        // IPv4 has only the lower half of the identification.
        let high = if src.is_v4() { 0 } else { high };
        let datagram = Tuple::new(src, dst, high, low, proto);
        *fake.before_queue.borrow_mut() = Some(Box::new(move |fake: &Fake| {
            let first = Fragment {
                addr: dst,
                verdict: FRAGMENT_DROP,
                new_ip_id: 0,
                last_seen: fake.now(),
                pad: 0,
            };
            fake.insert_fragment(&datagram, &first, Direction::Ingress);
        }));
        let run = back(&fake, &Frame::of(&last));
        let reason = DropReason::FragmentOfDropped;
        assert_eq!((run.outcome, run.seen), (Outcome::Drop, Seen::Drop(reason)));
        assert_eq!(fake.counters().drops.fragment_of_dropped, 1);
        assert_eq!(fake.counters().fragments_held, 0);
    }
}
