//! VLAN tags, packets that are not IP or malformed, headers outside the linear area, and hashes.

use super::{BOTH, back, out};
use netdp_common::layout::{Action, DropReason, SETTING_BYPASS_CACHE_VALID, UPLINK_UNTAGGED};
use netdp_common::packet::tuple_hash;
use netdp_common::verdict::Outcome;
use testkit::build::Build;
use testkit::fake::{Fake, Frame, Seen, becomes, tuple_of};

const C_TAG: u16 = 0x8100;
const S_TAG: u16 = 0x88a8;

#[test]
fn up_to_two_tags_in_band_are_stepped_over() {
    for net in BOTH {
        for tags in [vec![C_TAG], vec![S_TAG, C_TAG]] {
            let fake = Fake::new();
            let tagged = |packet: &Build| Frame {
                tags: tags.clone(),
                ..Frame::of(packet)
            };
            assert_eq!(out(&fake, &tagged(&net.syn())).seen, becomes(net.node));
            assert_eq!(back(&fake, &tagged(&net.answer())).seen, becomes(net.pod));
        }
    }
}

#[test]
fn a_third_tag_is_not_ip() {
    let fake = Fake::new();
    let frame = Frame {
        tags: vec![S_TAG, C_TAG, C_TAG],
        ..Frame::of(&BOTH[0].syn())
    };
    assert_eq!(out(&fake, &frame).seen, Seen::Pass);
    assert_eq!(fake.snat.len(), 0);
}

#[test]
fn tagged_packets_are_not_those_of_an_untagged_uplink() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.uplink.flags |= UPLINK_UNTAGGED;
        let in_band = Frame {
            tags: vec![C_TAG],
            ..Frame::of(&net.syn())
        };
        let offloaded = Frame {
            offloaded_tag: true,
            ..Frame::of(&net.syn())
        };
        for frame in [&in_band, &offloaded] {
            assert_eq!(out(&fake, frame).seen, Seen::Pass);
        }
        assert_eq!(fake.snat.len(), 0);
        assert_eq!(out(&fake, &Frame::of(&net.syn())).seen, becomes(net.node));
        // Tags do not matter where the uplink has no VLAN devices.
        fake.uplink.flags &= !UPLINK_UNTAGGED;
        assert_eq!(out(&fake, &offloaded).seen, becomes(net.node));
    }
}

#[test]
fn what_is_not_ip_passes_whatever_came_before_it() {
    let fake = Fake::new();
    let arp = Frame {
        bytes: vec![0; 28],
        ethertype: 0x0806,
        ..Frame::of(&BOTH[0].syn())
    };
    for _ in 0..2 {
        let run = out(&fake, &arp);
        assert_eq!((run.seen, run.hash), (Seen::Pass, 0));
        assert_eq!(back(&fake, &arp).seen, Seen::Pass);
        // Its addresses are still in the scratch.
        fake.out(&BOTH[0].syn());
    }
}

#[test]
fn a_packet_without_whole_addresses_arrives_but_does_not_leave() {
    for net in BOTH {
        let fake = Fake::new();
        let mut cut = Frame::of(&net.syn());
        cut.bytes.truncate(19);
        assert_eq!(out(&fake, &cut).seen, Seen::Drop(DropReason::Malformed));
        assert_eq!(fake.counters().drops.malformed, 1);
        assert_eq!(back(&fake, &cut).seen, Seen::Pass);
        // One that another machine on the link sent is not the node's to drop.
        fake.bridged.set(true);
        assert_eq!(out(&fake, &cut).seen, Seen::Pass);
    }
}

/// The addresses in the scratch are another packet's, and say nothing about this one.
#[test]
fn a_packet_without_whole_addresses_is_judged_by_itself() {
    for (net, guest) in [(BOTH[0], "172.16.0.3:4000"), (BOTH[1], "[fd00:1::3]:4000")] {
        let fake = Fake::new();
        let mut cut = Frame::of(&net.syn());
        cut.bytes.truncate(19);
        fake.bridged.set(true);
        // The node sends one pod's packets with an address that the agent does not know yet.
        fake.routed.borrow_mut().insert(tuple_of(&net.syn()).src);
        let guests = (net.syn().from(guest), Seen::Pass);
        for (before, seen) in [(net.syn(), becomes(net.node)), guests] {
            assert_eq!(fake.out(&before), seen);
            assert_eq!(out(&fake, &cut).seen, Seen::Pass, "{before:?}");
        }
    }
}

#[test]
fn a_tag_that_is_cut_off_is_malformed() {
    let fake = Fake::new();
    let mut cut = Frame {
        tags: vec![C_TAG],
        ..Frame::of(&BOTH[0].syn())
    };
    cut.bytes.clear();
    cut.linear = Some(16);
    assert_eq!(out(&fake, &cut).seen, Seen::Drop(DropReason::Malformed));
}

#[test]
fn headers_outside_the_linear_area_are_pulled_in() {
    for net in BOTH {
        for linear in [14, 20, 34, 40, 54] {
            for mut packet in [net.syn(), net.udp()] {
                // More than is pulled.
                packet.data = vec![7; 300];
                let fake = Fake::new();
                let frame = Frame {
                    linear: Some(linear),
                    ..Frame::of(&packet)
                };
                assert_eq!(out(&fake, &frame).seen, becomes(net.node), "{linear}");
                // All of it is in the linear area for the next one.
                assert_eq!(fake.out(&packet), becomes(net.node));
                assert_eq!(fake.snat.len(), 1);
            }
        }
    }
}

#[test]
fn an_error_whose_inner_packet_is_outside_the_linear_area_is_translated() {
    for (net, message) in [(BOTH[0], 3), (BOTH[1], 1)] {
        let fake = Fake::new();
        assert_eq!(fake.out(&net.udp()), becomes(net.node));
        let sent = net.udp().from(net.node);
        let error = Build::error(net.server, net.node, message, &sent, 200);
        let frame = Frame {
            linear: Some(64),
            ..Frame::of(&error)
        };
        assert!(matches!(back(&fake, &frame).seen, Seen::Error(_)));
    }
}

#[test]
fn a_hash_is_set_once_and_is_the_same_on_every_path() {
    for net in BOTH {
        let hash = tuple_hash(&tuple_of(&net.udp()));
        // Translated, on the slow path and on the fast one.
        let mut fake = Fake::new();
        let frame = Frame::of(&net.udp());
        for _ in 0..2 {
            let run = out(&fake, &frame);
            assert_eq!((run.outcome, run.hash), (Outcome::Pass, hash));
        }
        let hashed = Frame {
            hash: 77,
            ..frame.clone()
        };
        assert_eq!(out(&fake, &hashed).hash, 77);
        // Bypassed, by the policy and by the cache.
        fake = Fake::new();
        fake.settings.flags |= SETTING_BYPASS_CACHE_VALID;
        fake.rule("::/0", Action::Bypass);
        for _ in 0..2 {
            let run = out(&fake, &frame);
            assert_eq!((run.seen, run.hash), (Seen::Pass, hash));
        }
        // Fragments have their own.
        let run = out(&fake, &Frame::of(&net.udp().first()));
        assert_eq!((run.seen, run.hash), (Seen::Pass, 0));
    }
}

#[test]
fn a_checksum_that_may_be_partial_is_left_to_the_kernel() {
    for net in BOTH {
        let fake = Fake::new();
        fake.partial_checksums.set(true);
        for _ in 0..2 {
            assert_eq!(fake.out(&net.udp()), becomes(net.node));
        }
        let reply = net.udp().from(net.node).answer();
        assert_eq!(fake.back(&reply), becomes(net.pod));
    }
}

#[test]
fn a_device_without_link_header_has_no_fast_path_and_translates_the_same() {
    for net in BOTH {
        let mut fake = Fake::new();
        fake.uplink.l2_len = 0;
        for packet in [net.syn(), net.udp()] {
            assert_eq!(fake.out(&packet), becomes(net.node));
        }
        assert_eq!(fake.back(&net.answer()), becomes(net.pod));
    }
}
