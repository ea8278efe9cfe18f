//! Runs of the pipeline over the fake.

use super::skb::FakeSkb;
use super::state::Fake;
use crate::build::Build;
use netdp_common::direction::{Direction, End};
use netdp_common::layout::{DropReason, Tuple};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{self, L4, Packet, Parsed};
use netdp_common::pipeline;
use netdp_common::skb::ErrorPart;
use netdp_common::verdict::Outcome;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;

/// A packet on the link.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The bytes from the IP header on.
    pub bytes: Vec<u8>,
    pub ethertype: u16,
    /// EtherTypes of the VLAN tags in the bytes, the outermost first.
    pub tags: Vec<u16>,
    /// The device has taken a VLAN tag off.
    pub offloaded_tag: bool,
    /// The number of bytes in the linear area, the link header included; all if `None`.
    pub linear: Option<usize>,
    /// The hash that the packet has already; 0 for none.
    pub hash: u32,
}

impl Frame {
    pub fn of(packet: &Build) -> Self {
        Self {
            bytes: packet.bytes(),
            ethertype: packet.ethertype(),
            tags: Vec::new(),
            offloaded_tag: false,
            linear: None,
            hash: 0,
        }
    }

    /// Returns the bytes from the link header on, which has `l2_len` bytes.
    fn with_link_header(&self, l2_len: u32) -> Vec<u8> {
        const TAG_CONTROL: u16 = 7;
        let mut out = Vec::new();
        if l2_len != 0 {
            out.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            for tag in &self.tags {
                out.extend(tag.to_be_bytes());
                out.extend(TAG_CONTROL.to_be_bytes());
            }
            out.extend(self.ethertype.to_be_bytes());
        }
        out.extend(&self.bytes);
        out
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Run {
    pub outcome: Outcome,
    pub seen: Seen,
    /// The packet's hash afterwards.
    pub hash: u32,
}

impl Fake {
    /// Returns the verdict on an egress packet.
    pub fn out(&self, packet: &Build) -> Seen {
        parsed(packet);
        self.run(&Frame::of(packet), Direction::Egress).seen
    }

    /// Returns the verdict on an ingress packet.
    pub fn back(&self, packet: &Build) -> Seen {
        parsed(packet);
        self.run(&Frame::of(packet), Direction::Ingress).seen
    }

    /// Runs the pipeline at a hook of the uplink.
    pub fn run(&self, frame: &Frame, direction: Direction) -> Run {
        let before = self.ingress_ifindex.get();
        if direction == Direction::Egress && self.own.get() && self.is_own(frame) {
            self.ingress_ifindex.set(0);
        }
        let skb = self.skb(frame, self.uplink.l2_len);
        let len = self.l3_len.replace(self.len_of(&skb, self.uplink.l2_len));
        let outcome = self.with_scratch(|scratch| pipeline::run(&skb, self, scratch, direction));
        self.ingress_ifindex.set(before);
        self.l3_len.set(len);
        let seen = match (outcome, &skb.written.borrow()[..], self.dropped.take()) {
            (Outcome::Pass, [], None) => Seen::Pass,
            (Outcome::Pass, [one], None) => {
                assert_eq!(one.end, direction.translated_end());
                match one.part {
                    None => Seen::As(one.to),
                    Some(ErrorPart::Whole) => Seen::Error(one.to),
                    Some(ErrorPart::Inner) => Seen::Inner(one.to),
                }
            }
            (Outcome::Drop, [], None) if skb.queued.get() => Seen::Hold,
            (Outcome::Drop | Outcome::Redirect, [], Some(reason)) => {
                let of = reason.direction();
                assert!(
                    of.is_none_or(|of| of == direction),
                    "{direction:?}: {reason:?}"
                );
                Seen::Drop(reason)
            }
            other => panic!("{other:?}"),
        };
        Run {
            outcome,
            seen,
            hash: skb.hash.get(),
        }
    }

    /// Returns the verdict on a pod's packet at an interface towards pods, with both endpoints.
    pub fn hairpin(&self, packet: &Build) -> Turned {
        let skb = self.skb(&Frame::of(packet), packet::ETHERNET);
        self.l3_len.set(self.len_of(&skb, packet::ETHERNET));
        let outcome = self.with_scratch(|scratch| pipeline::hairpin(&skb, self, scratch));
        match (outcome, &skb.written.borrow()[..], self.dropped.take()) {
            (Outcome::Pass, [], None) => Turned::Pass,
            (Outcome::Redirect, [source, destination], None) => {
                assert_eq!(
                    [source.end, destination.end],
                    [End::Source, End::Destination]
                );
                Turned::To(source.to, destination.to)
            }
            // The source may have been rewritten by then.
            (Outcome::Drop, written, Some(reason)) => {
                let half = match written {
                    [] => Direction::Egress,
                    _ => Direction::Ingress,
                };
                let of = reason.direction();
                assert!(of.is_none_or(|of| of == half), "{half:?}: {reason:?}");
                Turned::Drop(reason)
            }
            other => panic!("{other:?}"),
        }
    }

    fn skb(&self, frame: &Frame, l2_len: u32) -> FakeSkb<'_> {
        let bytes = frame.with_link_header(l2_len);
        let l3 = bytes.len() - frame.bytes.len();
        FakeSkb {
            fake: self,
            linear: Cell::new(frame.linear.unwrap_or(bytes.len()).min(bytes.len())),
            ethertype: *frame.tags.first().unwrap_or(&frame.ethertype),
            offloaded_tag: frame.offloaded_tag,
            hops_at: l3
                + if frame.ethertype == packet::ETH_P_IP {
                    8
                } else {
                    7
                },
            hash: Cell::new(frame.hash),
            queued: Cell::new(false),
            written: RefCell::default(),
            bytes,
        }
    }

    /// Returns the length of a packet from its IP header on.
    fn len_of(&self, skb: &FakeSkb<'_>, l2_len: u32) -> u32 {
        let len = u32::try_from(skb.bytes.len()).expect("a short packet");
        self.unsegmented.get().unwrap_or(len - l2_len)
    }

    /// Lends the CPU's scratch. A packet that is handled within another one, as if by another CPU,
    /// gets a new one.
    fn with_scratch(&self, handle: impl FnOnce(&mut Scratch) -> Outcome) -> Outcome {
        let mut scratch = self
            .scratch
            .take()
            .unwrap_or_else(|| Box::new(Scratch::EMPTY));
        let outcome = handle(&mut scratch);
        self.scratch.set(Some(scratch));
        outcome
    }

    /// Reports whether the packet's source is an address of the node.
    fn is_own(&self, frame: &Frame) -> bool {
        let mut pkt = Packet::EMPTY;
        let parsed = packet::parse(&frame.bytes[..], frame.ethertype, 0, &mut pkt);
        parsed == Parsed::Ip && self.local.contains(&pkt.tuple.src)
    }
}

/// Parses a packet, and checks that the fast path would have parsed the same, each into the remains
/// of another packet.
fn parsed(packet: &Build) -> Packet {
    let remains = Packet {
        l4: L4::LaterFragment,
        l3_offset: 1,
        l4_offset: 2,
        is_fragment: 1,
        fragment_id: 3,
        new_ip_id: 4,
        ..Packet::EMPTY
    };
    let bytes = packet.bytes();
    let mut pkt = remains;
    let parsed = packet::parse(&bytes[..], packet.ethertype(), 0, &mut pkt);
    assert_eq!(parsed, Parsed::Ip, "{packet:?}");
    if let Some(fast) = packet::parse_fast(&bytes[..], packet.ethertype(), 0) {
        let mut filled = remains;
        fast.fill(0, &mut filled);
        assert_eq!(filled, pkt, "{packet:?}");
    }
    pkt
}

/// Verdict on a packet that a pod sends to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// The node receives it.
    Pass,
    /// Hairpinned: the new source and the new destination.
    To(SocketAddr, SocketAddr),
    Drop(DropReason),
}

/// Verdict on a packet, with its new source (egress) or destination (ingress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Pass,
    As(SocketAddr),
    /// An ICMP error, rewritten in the outer header and in the quoted packet.
    Error(SocketAddr),
    /// An ICMP error, rewritten only in the quoted packet.
    Inner(SocketAddr),
    Hold,
    Drop(DropReason),
}

/// Returns the verdict "rewritten to `text`".
pub fn becomes(text: &str) -> Seen {
    Seen::As(text.parse().expect("ADDRESS:PORT"))
}

/// Returns the verdict "hairpinned, from `source` to `destination`".
pub fn turned(source: &str, destination: &str) -> Turned {
    let end = |text: &str| text.parse().expect("ADDRESS:PORT");
    Turned::To(end(source), end(destination))
}

/// Returns the tuple of a packet as [`packet::parse`] yields it.
pub fn tuple_of(packet: &Build) -> Tuple {
    parsed(packet).tuple
}
