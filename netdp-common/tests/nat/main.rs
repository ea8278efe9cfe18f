//! [`nat`](netdp_common::nat): each branch of the decisions, then random walks against a model.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is test; clippy only knows it of the functions marked so"
)]

mod address;
mod errors;
mod fragments;
mod hairpin;
mod host;
mod inbound;
mod known;
mod last_ack;
mod limits;
mod model;
mod modes;
mod moves;
mod ports;
mod race;
mod reach;
mod reload;
mod scope;
mod security;
mod tcp;
mod traffic;
mod untranslatable;

use netdp_common::layout::{DropReason, MAPPING_HOST, Mapping};
use testkit::build::{Build, SYN};
use testkit::fake::{Fake, Seen, becomes, tuple_of};

/// Endpoints of one family; both families have the same set.
#[derive(Clone, Copy, Debug)]
struct Net {
    pod: &'static str,
    other_pod: &'static str,
    server: &'static str,
    other_server: &'static str,
    node: &'static str,
    /// The node's address as written before `:port`.
    node_ip: &'static str,
    pod_ip: &'static str,
    server_ip: &'static str,
}

const V4: Net = Net {
    pod: "172.16.0.2:4000",
    other_pod: "172.16.0.3:4000",
    server: "198.51.100.7:443",
    other_server: "198.51.100.8:443",
    node: "192.0.2.10:4000",
    node_ip: "192.0.2.10",
    pod_ip: "172.16.0.2",
    server_ip: "198.51.100.7",
};

const V6: Net = Net {
    pod: "[fd00:1::2]:4000",
    other_pod: "[fd00:1::3]:4000",
    server: "[2001:db8::7]:443",
    other_server: "[2001:db8::8]:443",
    node: "[fd00::10]:4000",
    node_ip: "[fd00::10]",
    pod_ip: "[fd00:1::2]",
    server_ip: "[2001:db8::7]",
};

const BOTH: [Net; 2] = [V4, V6];

impl Net {
    fn syn(&self) -> Build {
        Build::tcp(self.pod, self.server, SYN)
    }

    fn other_syn(&self) -> Build {
        Build::tcp(self.other_pod, self.server, SYN)
    }

    fn udp(&self) -> Build {
        Build::udp(self.pod, self.server)
    }

    fn echo(&self, id: u16) -> Build {
        let end = |ip: &str, id| format!("{ip}:{id}");
        Build::echo(&end(self.pod_ip, id), &end(self.server_ip, 0))
    }

    /// Returns the first packet of a flow for every protocol.
    fn openings(&self) -> [Build; 3] {
        [self.syn(), self.udp(), self.echo(4000)]
    }
}

/// Returns a masquerading node with a mapping for `packet`.
fn opened(packet: &Build) -> Fake {
    let fake = Fake::new();
    assert!(matches!(fake.out(packet), Seen::As(_)), "{packet:?}");
    fake
}

/// Returns the external endpoint that a flow got.
fn wire_of(seen: Seen) -> String {
    match seen {
        Seen::As(wire) => wire.to_string(),
        other => panic!("not translated: {other:?}"),
    }
}

/// Returns both halves of a packet's mapping.
fn halves(fake: &Fake, packet: &Build) -> (Mapping, Mapping) {
    let tuple = tuple_of(packet);
    let original = fake.snat.get(&tuple).expect("an original half");
    let wire = tuple.reply_to(original.addr, original.id);
    let reply = fake.rev_snat.get(&wire).expect("a reply half");
    assert_eq!((reply.addr, reply.id), (tuple.src, tuple.src_id));
    (original, reply)
}

/// Asserts that every SNAT half has its rev-SNAT half and vice versa; the node's own reservations
/// have only one.
fn assert_paired(fake: &Fake) {
    let mut owned = 0;
    for (tuple, half) in fake.snat.all() {
        let reply = fake.rev_snat.get(&tuple.reply_to(half.addr, half.id));
        let reply = reply.unwrap_or_else(|| panic!("{tuple:?} → {half:?}: no reply half"));
        assert_eq!((reply.addr, reply.id), (tuple.src, tuple.src_id));
    }
    for (wire, half) in fake.rev_snat.all() {
        if half.flags & MAPPING_HOST == 0 {
            let original = wire.answers(half.addr, half.id);
            assert!(fake.snat.get(&original).is_some(), "{wire:?}: half alone");
            owned += 1;
        }
    }
    assert_eq!(owned, fake.snat.len());
}

const fn drop_of(reason: DropReason) -> Seen {
    Seen::Drop(reason)
}
