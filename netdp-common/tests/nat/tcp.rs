//! TCP segments that open, close and reopen mappings.

use super::{BOTH, Net, V4, becomes, drop_of, halves, opened};
use netdp_common::env::Clock as _;
use netdp_common::flow::{SEEN_DATA, SEEN_FIN, SEEN_RST, SEEN_SYN, TcpState, tcp_state};
use netdp_common::layout::{
    DropReason, Half, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, MAPPING_ORIGIN,
    MAPPING_PICKUP,
};
use testkit::build::{ACK, Build, FIN, Kind, RST, SYN};
use testkit::fake::{Fake, Seen};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;

fn segment(src: &str, dst: &str, flags: u8, seq: u32, ack: u32) -> Build {
    Build::new(src, dst, Kind::Tcp { flags, seq, ack })
}

fn state(fake: &Fake, net: &Net) -> TcpState {
    let (original, reply) = halves(fake, &net.syn());
    tcp_state(original.seen(), reply.seen())
}

/// Returns a connection in which the pod has acknowledged up to 5001.
fn established(net: &Net) -> Fake {
    let fake = opened(&net.syn());
    let steps = [(false, SYN | ACK, 5_000, 1_001), (true, ACK, 1_001, 5_001)];
    for (out, flags, seq, ack) in steps {
        if out {
            fake.out(&segment(net.pod, net.server, flags, seq, ack));
        } else {
            fake.back(&segment(net.server, net.node, flags, seq, ack));
        }
    }
    assert_eq!(state(&fake, net), TcpState::Established);
    fake
}

#[test]
fn strays_without_a_flow_are_dropped() {
    for net in BOTH {
        for flags in [
            0,
            FIN,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | ACK,
            SYN | FIN,
            SYN | RST,
            PSH,
            URG,
            FIN | PSH | URG,
            0x3f,
            0xff,
        ] {
            let fake = Fake::new();
            let stray = Build::tcp(net.pod, net.server, flags);
            let dropped = drop_of(DropReason::TcpNoFlow);
            assert_eq!(fake.out(&stray), dropped, "flags {flags:#x}");
            assert_eq!((fake.snat.len(), fake.rev_snat.len()), (0, 0));
        }
    }
}

#[test]
fn strays_of_a_known_flow_are_translated() {
    for net in BOTH {
        for flags in [0, FIN, FIN | ACK, RST, SYN | ACK, SYN | FIN, 0x3f] {
            let fake = established(&net);
            let late = Build::tcp(net.pod, net.server, flags);
            assert_eq!(fake.out(&late), becomes(net.node), "flags {flags:#x}");
        }
    }
}

#[test]
fn a_connection_in_mid_stream_is_picked_up_with_its_port() {
    for net in BOTH {
        for flags in [ACK, ACK | PSH, ACK | PSH | URG] {
            let fake = Fake::new();
            let data = Build::tcp(net.pod, net.server, flags);
            assert_eq!(fake.out(&data), becomes(net.node));
            assert_eq!(state(&fake, &net), TcpState::Unreplied);
            let (original, reply) = halves(&fake, &data);
            assert_eq!(
                (original.flags & !MAPPING_ORIGIN, reply.flags),
                (
                    MAPPING_PICKUP | MAPPING_COUNTED_ORIGINAL,
                    MAPPING_PICKUP | MAPPING_COUNTED_REPLY
                )
            );
            let back = Build::tcp(net.server, net.node, ACK);
            assert_eq!(fake.back(&back), becomes(net.pod));
            assert_eq!(state(&fake, &net), TcpState::Established);
        }
    }
}

#[test]
fn a_syn_opens_with_urgent_and_ecn_bits_too() {
    for extra in [PSH, URG, 0xc0] {
        let syn = Build::tcp(V4.pod, V4.server, SYN | extra);
        assert_eq!(Fake::new().out(&syn), becomes(V4.node), "{extra:#x}");
    }
}

#[test]
fn the_halves_see_what_is_sent() {
    let fake = established(&V4);
    let (original, reply) = halves(&fake, &V4.syn());
    assert_eq!(original.seen(), SEEN_SYN | SEEN_DATA);
    assert_eq!(reply.seen(), SEEN_SYN);
    assert_eq!((original.tcp_ack, reply.tcp_ack), (5_001, 5_001));
    assert_eq!(
        (original.packets(Half::Original), reply.packets(Half::Reply)),
        (2, 1)
    );
    fake.advance(10);
    fake.back(&segment(V4.server, V4.node, FIN | ACK, 5_001, 1_001));
    let (later, reply) = halves(&fake, &V4.syn());
    assert_eq!(later, original, "a packet writes to its own half only");
    assert_eq!(reply.seen() & SEEN_FIN, SEEN_FIN);
    assert_eq!(reply.last_seen, fake.now());
    assert_eq!(state(&fake, &V4), TcpState::HalfClosed);
}

#[test]
fn a_rst_ends_a_mapping_only_if_the_pod_will_believe_it() {
    for net in BOTH {
        for (seq, flags, credible) in [
            (5_001, RST, true),
            (5_001, RST | ACK, true),
            (5_000, RST, false),
            (5_002, RST, false),
            (0, RST, false),
            (90_000, RST | ACK, false),
        ] {
            let fake = established(&net);
            fake.advance(10);
            let before = halves(&fake, &net.syn()).1;
            let rst = segment(net.server, net.node, flags, seq, 1_001);
            assert_eq!(fake.back(&rst), becomes(net.pod), "always translated");
            let after = halves(&fake, &net.syn()).1;
            if credible {
                assert_eq!(state(&fake, &net), TcpState::Closed, "seq {seq}");
            } else {
                assert_eq!(state(&fake, &net), TcpState::Established, "seq {seq}");
                assert_eq!(after.last_seen, before.last_seen, "nor does it refresh");
                assert_eq!(after.tcp_ack, before.tcp_ack);
            }
            assert_eq!(after.traffic & 0x3ff, (before.traffic & 0x3ff) + 1);
        }
    }
}

#[test]
fn a_refused_connection_ends() {
    for net in BOTH {
        for (flags, credible) in [(RST | ACK, true), (RST, false)] {
            let fake = opened(&net.syn());
            let refusal = segment(net.server, net.node, flags, 0, 1_001);
            assert_eq!(fake.back(&refusal), becomes(net.pod));
            let closed = state(&fake, &net) == TcpState::Closed;
            assert_eq!(closed, credible, "flags {flags:#x}");
        }
    }
}

#[test]
fn a_rst_of_the_pod_ends() {
    for net in BOTH {
        let fake = established(&net);
        let rst = segment(net.pod, net.server, RST, 1_001, 0);
        assert_eq!(fake.out(&rst), becomes(net.node));
        assert_eq!(state(&fake, &net), TcpState::Closed);
    }
}

#[test]
fn a_new_syn_reopens_a_closed_tuple() {
    for net in BOTH {
        for ending in ["fins", "rst of the pod", "rst of the server"] {
            let fake = established(&net);
            match ending {
                "fins" => {
                    fake.out(&segment(net.pod, net.server, FIN | ACK, 1_001, 5_001));
                    fake.back(&segment(net.server, net.node, FIN | ACK, 5_001, 1_002));
                }
                "rst of the pod" => {
                    fake.out(&segment(net.pod, net.server, RST, 1_001, 0));
                }
                _ => {
                    fake.back(&segment(net.server, net.node, RST, 5_001, 0));
                }
            }
            fake.advance(5);
            assert_eq!(fake.out(&net.syn()), becomes(net.node), "{ending}");
            assert_eq!(state(&fake, &net), TcpState::SynSent, "{ending}");
            let (original, reply) = halves(&fake, &net.syn());
            assert_eq!(original.seen(), SEEN_SYN);
            assert_eq!(reply.seen(), 0);
            assert_eq!(
                (original.last_seen, reply.last_seen),
                (fake.now(), fake.now())
            );
            assert_eq!(fake.snat.len(), 1, "the same mapping");
        }
    }
}

#[test]
fn a_syn_does_not_forget_a_live_connection() {
    for net in BOTH {
        let fake = established(&net);
        fake.out(&segment(net.pod, net.server, FIN | ACK, 1_001, 5_001));
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        assert_eq!(state(&fake, &net), TcpState::HalfClosed);
    }
}

/// A pod sends a RST for a connection that it no longer has.
#[test]
fn a_closed_mapping_still_translates() {
    for net in BOTH {
        let fake = established(&net);
        fake.out(&segment(net.pod, net.server, RST, 1_001, 0));
        let late = segment(net.server, net.node, ACK, 5_001, 1_001);
        assert_eq!(fake.back(&late), becomes(net.pod));
        let rst = segment(net.pod, net.server, RST, 1_001, 0);
        assert_eq!(fake.out(&rst), becomes(net.node));
        let (original, _) = halves(&fake, &net.syn());
        assert_eq!(original.seen() & SEEN_RST, SEEN_RST);
    }
}

#[test]
fn both_may_open_at_once() {
    for net in BOTH {
        let fake = opened(&net.syn());
        let crossing = Build::tcp(net.server, net.node, SYN);
        assert_eq!(fake.back(&crossing), becomes(net.pod));
        assert_eq!(state(&fake, &net), TcpState::SynReceived);
        let answer = Build::tcp(net.pod, net.server, SYN | ACK);
        assert_eq!(fake.out(&answer), becomes(net.node));
        fake.out(&Build::tcp(net.pod, net.server, ACK));
        assert_eq!(state(&fake, &net), TcpState::Established);
    }
}

#[test]
fn without_its_reply_half_a_tuple_is_not_reopened() {
    let fake = established(&V4);
    fake.out(&segment(V4.pod, V4.server, RST, 1_001, 0));
    for (wire, _) in fake.rev_snat.all() {
        fake.rev_snat.remove(&wire);
    }
    assert_eq!(fake.out(&V4.syn()), becomes(V4.node));
    assert_eq!(fake.back(&V4.syn().from(V4.node).answer()), Seen::Pass);
}

/// Retransmissions of an unanswered SYN do not extend the time for which it holds the port.
#[test]
fn a_syn_sent_again_does_not_refresh() {
    for net in BOTH {
        let fake = opened(&net.syn());
        let (before, _) = halves(&fake, &net.syn());
        fake.advance(30);
        assert_eq!(fake.out(&net.syn()), becomes(net.node));
        let (after, _) = halves(&fake, &net.syn());
        assert_eq!(after.last_seen, before.last_seen);
        assert_eq!(after.traffic & 0x3ff, (before.traffic & 0x3ff) + 1);
        // Any other segment refreshes it.
        fake.out(&Build::tcp(net.pod, net.server, ACK));
        assert_eq!(halves(&fake, &net.syn()).0.last_seen, fake.now());
    }
}

#[test]
fn a_rst_does_not_refresh() {
    for net in BOTH {
        for out in [true, false] {
            let fake = established(&net);
            let before = halves(&fake, &net.syn());
            fake.advance(30);
            if out {
                fake.out(&segment(net.pod, net.server, RST, 1_001, 0));
            } else {
                fake.back(&segment(net.server, net.node, RST, 5_001, 0));
            }
            assert_eq!(state(&fake, &net), TcpState::Closed);
            let after = halves(&fake, &net.syn());
            let seen = |halves: (netdp_common::layout::Mapping, netdp_common::layout::Mapping)| {
                (halves.0.last_seen, halves.1.last_seen)
            };
            assert_eq!(seen(after), seen(before), "out: {out}");
        }
    }
}
