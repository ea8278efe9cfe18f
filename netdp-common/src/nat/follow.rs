//! Packets that hit a mapping: the state that they record, and their translation.

use super::evict;
use super::origin::is_forged;
use crate::abi::{MAPPING_ORIGIN, origin_tag};
use crate::addr::Family;
use crate::conntrack::{
    self, ACK, Closing, FIN, RST, SEEN_OTHERS_FIN, SEEN_OTHERS_RST, SEEN_RST, SYN, TcpState,
    fin_is_plausible, is_in_window, rst_is_acceptable, tcp_state,
};
use crate::packet::{L4, Packet, TcpSegment};
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};

/// The result of a hit in the bypass cache or a mapping, which replaces the policy lookup. The
/// packet has been counted and recorded.
#[derive(Clone, Copy)]
pub enum Known {
    /// A hit in the bypass cache: every packet between its addresses is bypassed.
    Bypassed,
    /// A mapping hit: the new endpoint is that of this half.
    Rewrite(Slot),
    /// The tuple belongs to the node or to netfilter: the packet passes unmodified.
    Pass,
    /// Its source is a pod behind another interface.
    Forged,
    /// It belongs to the node: the mapping has ended.
    Unmapped,
    /// The node does not have the mapping's address at the moment.
    Resting,
}

/// Handles a packet in the original direction that hit a mapping.
#[inline(always)]
pub(super) fn continue_egress<T: Tables>(
    tables: &T,
    tuple: &Tuple,
    l4: &L4,
    family: Family,
    slot: Slot,
) -> Known {
    let now = tables.now();
    let tag = origin_tag(tables.ingress_ifindex());
    if slot.flags() & MAPPING_ORIGIN != tag && !moved(tables, tuple, family, slot, tag) {
        return Known::Forged;
    }
    if let L4::Tcp(segment) = *l4 {
        if l4.is_bare_syn() {
            reopen(tables, tuple, slot, now);
        } else if segment.flags & RST == 0 && slot.tcp_seen() & SEEN_RST != 0 {
            // A side that has reset a connection sends nothing more on it: the connection is still
            // alive.
            slot.mend();
        } else if segment.bad_checksum != 0 {
            slot.record_untrusted();
            return Known::Rewrite(slot);
        }
    }
    slot.record(l4, now);
    if let L4::Tcp(segment) = *l4
        && segment.flags & (FIN | RST) != 0
    {
        closes(tables, tuple, slot, segment);
    }
    tables.count(|c| &mut c.egress_masqueraded);
    Known::Rewrite(slot)
}

/// Records that the pod closes the connection, so that the mapping may be evicted from now on. The
/// reply half gets the hints.
#[inline(never)]
fn closes<T: Tables>(tables: &T, tuple: &Tuple, slot: Slot, segment: TcpSegment) -> bool {
    tables.push_recent(tuple);
    if let Some(reply) = tables.rev_snat(&tuple.reply_to(slot.addr(), slot.id())) {
        let rst = segment.flags & RST != 0;
        reply.note_others(if rst {
            SEEN_OTHERS_RST
        } else {
            SEEN_OTHERS_FIN
        });
        if segment.flags & FIN != 0 {
            reply.set_closing(reply.closing().after(segment, true));
        }
    }
    true
}

/// Reports whether the pod itself now sends by another interface, and records that interface.
#[inline(never)]
fn moved<T: Tables>(tables: &T, tuple: &Tuple, family: Family, slot: Slot, tag: u16) -> bool {
    if is_forged(tables, &tuple.src, family) {
        return false;
    }
    slot.set_origin(tag);
    true
}

/// Reopens a connection in TIME-WAIT after a new SYN (RFC 9293 3.6.1).
#[inline(never)]
fn reopen<T: Tables>(tables: &T, tuple: &Tuple, slot: Slot, now: u32) -> bool {
    let wire = tuple.reply_to(slot.addr(), slot.id());
    match tables.rev_snat(&wire) {
        Some(reply) if conntrack::is_closing(slot.tcp_seen(), reply.tcp_seen()) => {
            slot.reopen(now);
            reply.reopen(now);
            reply.set_closing(Closing::NONE);
            true
        }
        _ => false,
    }
}

/// Handles an arriving packet whose wire tuple hit a mapping.
#[inline(always)]
pub(super) fn continue_ingress<T: Tables>(tables: &T, wire: &Tuple, l4: &L4, slot: Slot) -> Known {
    let now = tables.now();
    if slot.is_others() {
        slot.record(l4, now);
        tables.count(|c| &mut c.ingress_passed);
        return Known::Pass;
    }
    let fate = match *l4 {
        L4::Tcp(segment)
            if segment.flags & (SYN | RST | FIN) != 0 || slot.tcp_seen() & SEEN_RST != 0 =>
        {
            judge_segment(tables, wire, segment, slot)
        }
        // Checked for the first reply only.
        L4::Udp if slot.packets() == 0 && is_nodes_by_now(tables, wire) => Incoming::Nodes,
        _ => Incoming::Trusted,
    };
    match fate {
        Incoming::Trusted => slot.record(l4, now),
        Incoming::Untrusted => slot.record_untrusted(),
        Incoming::Nodes => {
            let original = wire.answers(slot.addr(), slot.id());
            evict::end(tables, &original, wire);
            tables.count(|c| &mut c.ingress_passed);
            return Known::Unmapped;
        }
    }
    tables.count(|c| &mut c.ingress_translated);
    Known::Rewrite(slot)
}

/// The trust in a packet that arrives for a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Incoming {
    /// The pod will accept it.
    Trusted,
    /// It is translated, but may be forged: it changes no state.
    Untrusted,
    /// It belongs to the node, and the mapping ends.
    Nodes,
}

/// Reports whether the node has begun to receive packets with this wire tuple since the mapping
/// began.
#[inline(never)]
pub(super) fn is_nodes_by_now<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    let has_sockets = matches!(wire.proto, proto::TCP | proto::UDP);
    tables.node_answers(wire.proto, wire.dst_id) || has_sockets && tables.socket_receives(wire)
}

/// Classifies an arriving SYN, FIN or RST, and segments after a RST.
///
/// A SYN without ACK opens a connection from outside, which belongs to the node (requirement 2.14),
/// unless the pod itself expects one (simultaneous open, RFC 5382 REQ-2a) on a port that the node
/// does not answer on. In an established connection the pod responds to it with a challenge ACK
/// (RFC 5961 4).
#[inline(never)]
fn judge_segment<T: Tables>(tables: &T, wire: &Tuple, segment: TcpSegment, slot: Slot) -> Incoming {
    let original = wire.answers(slot.addr(), slot.id());
    let Some(half) = tables.snat(&original) else {
        return Incoming::Untrusted;
    };
    let (seen, acked) = (half.tcp_seen(), half.tcp_ack());
    if segment.flags & RST != 0 {
        let acceptable = rst_is_acceptable(seen, acked, segment);
        if acceptable {
            tables.push_recent(&original);
        }
        return trusted(acceptable);
    }
    if segment.flags & (SYN | ACK) == SYN {
        return match tcp_state(seen, slot.tcp_seen()) {
            TcpState::Closed | TcpState::TimeWait => Incoming::Nodes,
            TcpState::SynSent | TcpState::SynReceived | TcpState::Unreplied
                if is_nodes_by_now(tables, wire) =>
            {
                Incoming::Nodes
            }
            TcpState::SynSent | TcpState::SynReceived => Incoming::Trusted,
            TcpState::Established | TcpState::Unreplied | TcpState::HalfClosed => {
                Incoming::Untrusted
            }
        };
    }
    if segment.flags & SYN != 0 {
        // A reply to the SYN, or its retransmission.
        return Incoming::Trusted;
    }
    if slot.tcp_seen() & SEEN_RST != 0 && is_in_window(seen, acked, segment) {
        // A side that has reset a connection sends nothing more on it: the connection is still
        // alive.
        slot.mend();
    }
    if segment.flags & FIN == 0 {
        return Incoming::Trusted;
    }
    let plausible = fin_is_plausible(seen, acked, segment);
    if plausible {
        tables.push_recent(&original);
        slot.set_closing(slot.closing().after(segment, false));
    }
    trusted(plausible)
}

const fn trusted(trusted: bool) -> Incoming {
    if trusted {
        Incoming::Trusted
    } else {
        Incoming::Untrusted
    }
}

/// Fills in `pkt` from a hit and returns the verdict.
#[inline(always)]
pub(super) fn apply(pkt: &mut Packet, known: Known) -> Verdict {
    match known {
        Known::Rewrite(slot) => {
            fill_new(pkt, slot);
            Verdict::Rewrite
        }
        Known::Bypassed | Known::Pass | Known::Unmapped => Verdict::Pass,
        Known::Forged => Verdict::Drop(DropReason::ForgedSource),
        Known::Resting => Verdict::Drop(DropReason::NoSourceAddress),
    }
}

/// Copies the mapping's endpoint into `pkt.new`.
#[inline(always)]
pub fn fill_new(pkt: &mut Packet, slot: Slot) {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
}
