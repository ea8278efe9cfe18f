//! A connection keeps its port until both FINs have been acknowledged.

use super::{BOTH, Net, assert_paired, becomes, drop_of, opened};
use netdp_common::layout::{DropReason, PortRange, SETTING_PORTS};
use testkit::build::{ACK, Build, FIN, Kind, SYN};
use testkit::fake::{Fake, Seen};

/// Payload bytes of every segment.
const PAYLOAD: u32 = 19;

/// Sender of a segment.
#[derive(Clone, Copy, Debug)]
enum End {
    Pod,
    Server,
}
use End::{Pod, Server};

/// Returns an established connection on the only available port, with next sequence numbers 1001
/// and 5001.
fn established(net: &Net) -> Fake {
    let mut fake = opened(&net.syn());
    fake.settings.flags |= SETTING_PORTS;
    fake.settings.ports[0] = PortRange::new(4000, 4000);
    sends(&fake, net, (Server, SYN | ACK, 5_000, 1_001));
    sends(&fake, net, (Pod, ACK, 1_001, 5_001));
    fake
}

fn sends(fake: &Fake, net: &Net, (end, flags, seq, ack): (End, u8, u32, u32)) {
    let kind = Kind::Tcp { flags, seq, ack };
    let (src, dst) = match end {
        Pod => (net.pod, net.server),
        Server => (net.server, net.node),
    };
    let mut segment = Build::new(src, dst, kind);
    if flags & FIN != 0 && seq == SERVERS_REST {
        segment.data.truncate((SERVERS_END - 1 - seq) as usize);
    }
    match end {
        Pod => assert_eq!(fake.out(&segment), becomes(net.node), "{kind:?}"),
        Server => assert_eq!(fake.back(&segment), becomes(net.pod), "{kind:?}"),
    }
}

/// Returns the verdict on another pod's SYN whose sequence number is beyond those of all earlier
/// connections.
fn another(fake: &Fake, net: &Net) -> Seen {
    let kind = Kind::Tcp {
        flags: SYN,
        seq: 1_000_000,
        ack: 0,
    };
    fake.out(&Build::new(net.other_pod, net.server, kind))
}

/// Sends each segment; only after the last one may another flow get the port.
fn closes(steps: &[(End, u8, u32, u32)]) {
    for net in BOTH {
        for seconds in [0, 5] {
            let fake = established(&net);
            for step in steps {
                assert_eq!(
                    another(&fake, &net),
                    drop_of(DropReason::NoFreePort),
                    "before {step:?}"
                );
                sends(&fake, &net, *step);
                fake.advance(seconds);
            }
            assert_eq!(another(&fake, &net), becomes(net.node), "{steps:?}");
            assert_paired(&fake);
        }
    }
}

const FINS: u8 = FIN | ACK;
const PODS_END: u32 = 1_001 + PAYLOAD + 1;
const SERVERS_END: u32 = 5_001 + PAYLOAD + 1;
/// Sequence number of the remainder of the server's last segment.
const SERVERS_REST: u32 = 5_011;

#[test]
fn a_server_in_last_ack_keeps_its_connection() {
    closes(&[
        (Pod, FINS, 1_001, 5_001),
        (Server, ACK, 5_001, PODS_END),
        (Server, FINS, 5_001, PODS_END),
        // Only the remainder is retransmitted.
        (Server, FINS, SERVERS_REST, PODS_END),
        // Acknowledges the data before the FIN.
        (Pod, ACK, PODS_END, SERVERS_END - 1),
        (Pod, ACK, PODS_END, SERVERS_END),
    ]);
}

#[test]
fn a_pod_in_last_ack_keeps_its_connection() {
    closes(&[
        (Server, FINS, 5_001, 1_001),
        (Pod, ACK, 1_001, SERVERS_END),
        (Pod, FINS, 1_001, SERVERS_END),
        (Pod, FINS, 1_001, SERVERS_END),
        (Server, ACK, SERVERS_END, PODS_END - 1),
        (Server, ACK, SERVERS_END, PODS_END),
    ]);
}

/// The server has not received the pod's FIN when it sends its own.
#[test]
fn a_fin_that_is_sent_again_says_what_has_arrived() {
    closes(&[
        (Pod, FINS, 1_001, 5_001),
        (Server, FINS, 5_001, 1_001),
        (Pod, ACK, PODS_END, SERVERS_END),
        (Pod, FINS, 1_001, SERVERS_END),
        (Server, FINS, 5_001, PODS_END),
    ]);
}

/// Simultaneous close: only retransmissions show that both FINs have arrived.
#[test]
fn fins_that_cross_each_other_keep_the_port() {
    for net in BOTH {
        for first in [Pod, Server] {
            let fake = established(&net);
            let mut fins = [(Pod, FINS, 1_001, 5_001), (Server, FINS, 5_001, 1_001)];
            let mut acks = [
                (Pod, ACK, PODS_END, SERVERS_END),
                (Server, ACK, SERVERS_END, PODS_END),
            ];
            if matches!(first, Server) {
                fins.reverse();
                acks.reverse();
            }
            for step in [fins[0], fins[1], acks[0]] {
                sends(&fake, &net, step);
                let refused = drop_of(DropReason::NoFreePort);
                assert_eq!(another(&fake, &net), refused, "after {step:?}");
            }
            sends(&fake, &net, acks[1]);
            fake.advance(60);
            assert_eq!(another(&fake, &net), becomes(net.node));
        }
    }
}

/// A new connection on the same ports has FINs of its own.
#[test]
fn a_connection_that_begins_anew_waits_anew() {
    for net in BOTH {
        let fake = established(&net);
        let close = [
            (Pod, FINS, 1_001, 5_001),
            (Server, FINS, 5_001, PODS_END),
            (Pod, ACK, PODS_END, SERVERS_END),
        ];
        for step in close {
            sends(&fake, &net, step);
        }
        sends(&fake, &net, (Pod, SYN, 90_000, 0));
        sends(&fake, &net, (Server, SYN | ACK, 70_000, 90_001));
        sends(&fake, &net, (Pod, FINS, 90_001, 70_001));
        // The pod has not received that FIN yet.
        sends(&fake, &net, (Server, FINS, 70_001, 90_001));
        sends(&fake, &net, (Pod, ACK, 90_001 + PAYLOAD + 1, SERVERS_END));
        assert_eq!(another(&fake, &net), drop_of(DropReason::NoFreePort));
    }
}

/// It is not evicted from full tables either, not even for its own pod.
#[test]
fn in_full_tables_it_keeps_its_room() {
    for net in BOTH {
        let mut fake = established(&net);
        fake.limits.capacity = 64;
        fake.limits.flows = 1;
        sends(&fake, &net, (Pod, FINS, 1_001, 5_001));
        sends(&fake, &net, (Server, FINS, 5_001, PODS_END));
        let more = net.syn().to(net.other_server);
        for _ in 0..3 {
            fake.advance(2);
            let refused = fake.out(&more);
            assert_eq!(refused, drop_of(DropReason::PodLimit), "{refused:?}");
        }
        sends(&fake, &net, (Pod, ACK, PODS_END, SERVERS_END));
        assert_eq!(fake.out(&more), becomes(net.node));
        assert_paired(&fake);
    }
}
