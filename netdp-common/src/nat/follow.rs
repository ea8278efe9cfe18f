//! Packets of known mappings: what they record, what they become.

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

/// What is known of a packet, so that the policy need not be asked. It is counted and
/// recorded.
#[derive(Clone, Copy)]
pub enum Known {
    /// All between its addresses is bypassed.
    Bypassed,
    /// It belongs to a mapping, and its new end is the mapping's.
    Rewrite(Slot),
    /// The mapping keeps a place for somebody else's flow: the packet stays as it is.
    Pass,
    /// It has the address of a pod that lives elsewhere.
    Forged,
    /// It is the node's after all: the mapping has ended.
    Unmapped,
    /// The node has not got the mapping's address at the moment.
    Resting,
}

/// A packet of a known mapping, from the pod's side.
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
            // Who has reset a connection sends nothing more on it.
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

/// A connection that the pod closes may make room from now on.
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

/// Whether the pod itself sends by another interface than before, which is noted then.
#[inline(never)]
fn moved<T: Tables>(tables: &T, tuple: &Tuple, family: Family, slot: Slot, tag: u16) -> bool {
    if is_forged(tables, &tuple.src, family) {
        return false;
    }
    slot.set_origin(tag);
    true
}

/// RFC 9293 3.6.1: a new SYN may reopen a connection in TIME-WAIT.
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

/// A packet that comes back for a known wire tuple.
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
        // The first that comes back.
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

/// What a packet that comes in for a mapping is worth.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Incoming {
    /// The pod will believe it.
    Trusted,
    /// It is translated, but may be forged: it changes nothing.
    Untrusted,
    /// It is for the node, and the mapping ends.
    Nodes,
}

/// Whether the node has come to receive what comes in here since the mapping began.
#[inline(never)]
pub(super) fn is_nodes_by_now<T: Tables>(tables: &T, wire: &Tuple) -> bool {
    let has_sockets = matches!(wire.proto, proto::TCP | proto::UDP);
    tables.node_answers(wire.proto, wire.dst_id) || has_sockets && tables.socket_receives(wire)
}

/// Judges a SYN, FIN or RST that comes in, and what comes after a RST.
///
/// A SYN without ACK begins a connection from outside: that is the node's (requirement
/// 2.14), unless the pod waits for one itself (simultaneous open, RFC 5382 REQ-2a) on a
/// port that the node does not answer on. In the midst of a connection the pod asks what
/// it is about (RFC 5961 4).
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
        // An answer to the SYN, or one sent again.
        return Incoming::Trusted;
    }
    if slot.tcp_seen() & SEEN_RST != 0 && is_in_window(seen, acked, segment) {
        // Who has reset a connection sends nothing more on it.
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

/// Puts what is known into `pkt`.
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

/// Puts the mapping's end into `pkt.new`.
#[inline(always)]
pub fn fill_new(pkt: &mut Packet, slot: Slot) {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
}
