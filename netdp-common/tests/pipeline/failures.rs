//! Packets that the kernel fails to rewrite: each is dropped and counted, and none goes on half
//! written.

use super::{BOTH, back, out};
use netdp_common::direction::End;
use netdp_common::layout::{DropReason, SETTING_HAIRPIN};
use netdp_common::verdict::Outcome;
use testkit::build::Build;
use testkit::fake::{Fake, Frame, Run, Seen, Turned, becomes};

fn assert_failed(fake: &Fake, run: &Run, count: u64) {
    let seen = Seen::Drop(DropReason::RewriteFailed);
    assert_eq!((run.outcome, run.seen), (Outcome::Drop, seen));
    assert_eq!(fake.counters().drops.rewrite_failed, count);
    assert_eq!(fake.answered.get(), 0);
}

#[test]
fn a_packet_that_is_not_rewritten_is_dropped() {
    for net in BOTH {
        let fake = Fake::new();
        // Otherwise packets on the fast path are rewritten without the kernel.
        fake.partial_checksums.set(true);
        let reply = net.udp().from(net.node).answer();
        // The slow path, then the fast one.
        for n in 1..=2 {
            fake.fail_rewrite.set(Some(End::Source));
            assert_failed(&fake, &out(&fake, &Frame::of(&net.udp())), 2 * n - 1);
            fake.fail_rewrite.set(Some(End::Destination));
            assert_failed(&fake, &back(&fake, &Frame::of(&reply)), 2 * n);
        }
        fake.fail_rewrite.set(None);
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
    }
}

#[test]
fn an_error_that_is_not_rewritten_is_dropped() {
    for (net, message) in [(BOTH[0], 3), (BOTH[1], 1)] {
        let fake = Fake::new();
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        let reply = net.udp().answer();
        let by_pod = Build::error(net.pod, net.server, message, &reply, 200);
        let by_node = Build::error(net.node, net.server, message, &reply, 200);
        let sent = net.udp().from(net.node);
        let from_outside = Build::error(net.server, net.node, message, &sent, 200);
        assert!(matches!(fake.out(&by_pod), Seen::Error(_)));
        assert!(matches!(fake.out(&by_node), Seen::Inner(_)));
        assert!(matches!(fake.back(&from_outside), Seen::Error(_)));
        fake.fail_rewrite.set(Some(End::Source));
        assert_failed(&fake, &out(&fake, &Frame::of(&by_pod)), 1);
        assert_failed(&fake, &out(&fake, &Frame::of(&by_node)), 2);
        fake.fail_rewrite.set(Some(End::Destination));
        assert_failed(&fake, &back(&fake, &Frame::of(&from_outside)), 3);
    }
}

#[test]
fn a_first_fragment_that_is_not_restored_is_dropped() {
    for net in BOTH {
        let fake = Fake::new();
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        let reply = net.udp().from(net.node).answer();
        assert_eq!(fake.back(&reply.last()), Seen::Hold);
        fake.fail_release.set(true);
        assert_failed(&fake, &back(&fake, &Frame::of(&reply.first())), 1);
        // Whole packets and later fragments release none.
        assert_eq!(fake.back(&reply), becomes(net.pod));
        assert!(matches!(fake.back(&reply.last()), Seen::As(_)));
    }
}

#[test]
fn a_hairpin_packet_that_is_not_rewritten_or_sent_is_dropped() {
    for (net, message) in [(BOTH[0], 3), (BOTH[1], 1)] {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_HAIRPIN;
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        let own = net.udp().to(net.node);
        let received = own.from(net.node).to(net.pod);
        let error = Build::error(net.pod, net.node, message, &received, 200);
        let failed = Turned::Drop(DropReason::RewriteFailed);
        for packet in [own, error] {
            let before = fake.counters().drops.rewrite_failed;
            for end in [End::Source, End::Destination] {
                fake.fail_rewrite.set(Some(end));
                assert_eq!(fake.hairpin(&packet), failed, "{end:?}");
            }
            fake.fail_rewrite.set(None);
            fake.fail_delivery.set(true);
            assert_eq!(fake.hairpin(&packet), failed);
            assert_eq!(fake.counters().drops.rewrite_failed, before + 3);
            fake.fail_delivery.set(false);
            assert!(matches!(fake.hairpin(&packet), Turned::To(..)));
        }
    }
}
