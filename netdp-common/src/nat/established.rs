//! Packets that hit a mapping: the state that they record, and their translation.

use super::evict;
use super::node;
use super::origin::is_forged;
use super::traffic;
use crate::env::Env;
use crate::flow::{
    Closing, SEEN_OTHERS_FIN, SEEN_OTHERS_RST, SEEN_RST, Sender, TcpState, fin_is_plausible,
    is_closing, is_in_window, rst_is_acceptable, tcp_state,
};
use crate::layout::{
    DropReason, ENDED_FOR_NODE, Family, Half, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY,
    MAPPING_HANDED_OVER, MAPPING_HOST, MAPPING_ORIGIN, Tuple, origin_tag,
};
use crate::packet::{ACK, FIN, L4, Packet, RST, SYN, TcpSegment};
use crate::slot::Slot;
use crate::verdict::Verdict;

/// The result of a hit in the bypass cache or a mapping, which replaces the policy lookup. The
/// packet has been counted and recorded.
#[derive(Clone, Copy)]
pub enum Hit {
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
pub(super) fn on_egress_hit<E: Env>(
    env: &E,
    tuple: &Tuple,
    l4: &L4,
    family: Family,
    slot: Slot,
) -> Hit {
    let now = env.now();
    let tag = origin_tag(env.ingress_ifindex());
    let usual = slot.flags() & (MAPPING_ORIGIN | MAPPING_COUNTED_ORIGINAL)
        == tag | MAPPING_COUNTED_ORIGINAL;
    if !usual && !accept_unusual(env, tuple, family, slot, tag) {
        return Hit::Forged;
    }
    if let L4::Tcp(segment) = *l4 {
        if l4.is_bare_syn() {
            reopen(env, tuple, slot, now);
        } else if segment.flags & RST == 0 && slot.tcp_seen() & SEEN_RST != 0 {
            // A side that has reset a connection sends nothing more on it: the connection is still
            // alive.
            slot.clear_rst();
        } else if segment.bad_checksum != 0 {
            traffic::count(env, tuple, Half::Original, slot);
            env.count_packet(|c| &mut c.egress_masqueraded);
            return Hit::Rewrite(slot);
        }
    }
    traffic::record(env, tuple, Half::Original, slot, l4, now);
    if let L4::Tcp(segment) = *l4
        && segment.flags & (FIN | RST) != 0
    {
        closes(env, tuple, slot, segment);
    }
    env.count_packet(|c| &mut c.egress_masqueraded);
    Hit::Rewrite(slot)
}

/// Records that the pod closes the connection, so that the mapping may be evicted from now on. The
/// reply half gets the hints.
#[inline(never)]
fn closes<E: Env>(env: &E, tuple: &Tuple, slot: Slot, segment: TcpSegment) -> bool {
    env.push_recent(tuple);
    if let Some(reply) = env.lookup_rev_snat(&tuple.reply_to(slot.addr(), slot.id())) {
        let rst = segment.flags & RST != 0;
        reply.note_other_side(if rst {
            SEEN_OTHERS_RST
        } else {
            SEEN_OTHERS_FIN
        });
        if segment.flags & FIN != 0 {
            reply.set_closing(reply.closing().after(segment, Sender::Pod));
        }
    }
    true
}

/// Handles what is unlike most packets: the pod sends by another interface than before, or the half
/// is of layout 1. Returns `false` if the source is forged.
#[inline(never)]
fn accept_unusual<E: Env>(env: &E, tuple: &Tuple, family: Family, slot: Slot, tag: u16) -> bool {
    let moved = slot.flags() & MAPPING_ORIGIN != tag;
    if moved && is_forged(env, &tuple.src, family) {
        return false;
    }
    traffic::begin_counting(env, tuple, Half::Original, slot);
    if moved {
        slot.set_origin(tag);
    }
    true
}

/// Reopens a connection in TIME-WAIT after a new SYN (RFC 9293 3.6.1).
#[inline(never)]
fn reopen<E: Env>(env: &E, tuple: &Tuple, slot: Slot, now: u32) -> bool {
    let wire = tuple.reply_to(slot.addr(), slot.id());
    match env.lookup_rev_snat(&wire) {
        Some(reply) if is_closing(slot.tcp_seen(), reply.tcp_seen()) => {
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
pub(super) fn on_ingress_hit<E: Env>(env: &E, wire: &Tuple, l4: &L4, slot: Slot) -> Hit {
    let now = env.now();
    let usual = slot.flags() & (MAPPING_HOST | MAPPING_HANDED_OVER | MAPPING_COUNTED_REPLY)
        == MAPPING_COUNTED_REPLY;
    if !usual {
        traffic::begin_counting(env, wire, Half::Reply, slot);
        if slot.passes_ingress() {
            traffic::record(env, wire, Half::Reply, slot, l4, now);
            env.count_packet(|c| &mut c.ingress_passed);
            return Hit::Pass;
        }
    }
    let fate = match *l4 {
        L4::Tcp(segment)
            if segment.flags & (SYN | RST | FIN) != 0 || slot.tcp_seen() & SEEN_RST != 0 =>
        {
            judge_segment(env, wire, segment, slot)
        }
        // Checked for the first reply only.
        L4::Udp if slot.packets(Half::Reply) == 0 && node::receives(env, wire) => Incoming::Nodes,
        _ => Incoming::Trusted,
    };
    match fate {
        Incoming::Trusted => traffic::record(env, wire, Half::Reply, slot, l4, now),
        Incoming::Untrusted => traffic::count(env, wire, Half::Reply, slot),
        Incoming::Nodes => {
            let original = wire.answers(slot.addr(), slot.id());
            evict::end(env, &original, wire, ENDED_FOR_NODE);
            env.count_packet(|c| &mut c.ingress_passed);
            return Hit::Unmapped;
        }
    }
    env.count_packet(|c| &mut c.ingress_translated);
    Hit::Rewrite(slot)
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

/// Classifies an arriving SYN, FIN or RST, and segments after a RST.
///
/// A SYN without ACK opens a connection from outside, which belongs to the node (requirement 2.14),
/// unless the pod itself expects one (simultaneous open, RFC 5382 REQ-2a) on a port that the node
/// does not answer on. In an established connection the pod responds to it with a challenge ACK
/// (RFC 5961 4).
#[inline(never)]
fn judge_segment<E: Env>(env: &E, wire: &Tuple, segment: TcpSegment, slot: Slot) -> Incoming {
    let original = wire.answers(slot.addr(), slot.id());
    let Some(half) = env.lookup_snat(&original) else {
        return Incoming::Untrusted;
    };
    let (seen, acked) = (half.tcp_seen(), half.tcp_ack());
    if segment.flags & RST != 0 {
        let acceptable = rst_is_acceptable(seen, acked, segment);
        if acceptable {
            env.push_recent(&original);
        }
        return trusted(acceptable);
    }
    if segment.flags & (SYN | ACK) == SYN {
        return match tcp_state(seen, slot.tcp_seen()) {
            TcpState::Closed | TcpState::TimeWait => Incoming::Nodes,
            TcpState::SynSent | TcpState::SynReceived | TcpState::Unreplied
                if node::receives(env, wire) =>
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
        slot.clear_rst();
    }
    if segment.flags & FIN == 0 {
        return Incoming::Trusted;
    }
    let plausible = fin_is_plausible(seen, acked, segment);
    if plausible {
        env.push_recent(&original);
        slot.set_closing(slot.closing().after(segment, Sender::Peer));
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
pub(super) fn apply(pkt: &mut Packet, hit: Hit) -> Verdict {
    match hit {
        Hit::Rewrite(slot) => {
            fill_new(pkt, slot);
            Verdict::Rewrite
        }
        Hit::Bypassed | Hit::Pass | Hit::Unmapped => Verdict::Pass,
        Hit::Forged => Verdict::Drop(DropReason::ForgedSource),
        Hit::Resting => Verdict::Drop(DropReason::NoSourceAddress),
    }
}

/// Copies the mapping's endpoint into `pkt.new`.
#[inline(always)]
pub fn fill_new(pkt: &mut Packet, slot: Slot) {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
}
