//! Mappings whose packets leave by another uplink than before, or whose address the node may have
//! lost.

use super::origin::is_forged;
use super::policy;
use super::source::choose_source;
use super::{evict, inbound};
use crate::env::Env;
use crate::flow::{TcpState, tcp_state};
use crate::layout::{
    Action, ENDED_MOVED, ENDED_UNTRANSLATED, MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING,
    MAPPING_HOST, proto,
};
use crate::packet::{FIN, L4, Packet, RST, SYN};
use crate::slot::Slot;

/// The decision about a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Settled {
    /// The mapping remains in use.
    Stays,
    /// The node does not have its address at the moment: no packet leaves with it.
    Rests,
    /// It has ended: the flow gets a new mapping.
    Ended,
}

/// The kind of connection that a packet may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Begins {
    /// None: the packet begins nothing by itself.
    Nothing,
    /// A new connection of the pod.
    Connection,
    /// A new connection, or a retransmission of the mapping's first SYN.
    Again,
    /// A connection from outside, to which it replies.
    Answer,
}

impl Begins {
    /// Returns the kind of connection that a pod's packet of the mapping in `slot` may begin.
    #[inline(always)]
    pub(super) fn of(l4: &L4, slot: Slot) -> Self {
        match l4 {
            L4::Tcp(segment) if l4.is_bare_syn() => {
                if slot.tcp_ack() == segment.seq.wrapping_add(1) {
                    Self::Again
                } else {
                    Self::Connection
                }
            }
            L4::Tcp(segment) if segment.flags & (SYN | RST | FIN) == SYN => Self::Answer,
            _ => Self::Nothing,
        }
    }
}

/// Decides whether a mapping remains valid where its packet leaves (docs/adr/0039). A mapping ends
/// if its packet leaves by another uplink, where the flow would get another address, or if its
/// address is gone and there is another. A TCP connection depends on its address: it keeps the
/// mapping, which rests while the node does not have the address. That mapping ends only with a SYN
/// that reopens the connection, or with a SYN or SYN-ACK of a connection that is not translated.
/// Reads tuple and family of `pkt`, and puts the address of a new mapping there.
#[inline(never)]
pub(super) fn settle<E: Env>(env: &E, pkt: &mut Packet, slot: Slot, begins: Begins) -> Settled {
    // A packet that another source forges in the pod's name changes nothing; it is dropped later.
    if is_forged(env, &pkt.tuple.src, pkt.family) {
        return Settled::Stays;
    }
    let wire = pkt.tuple.reply_to(slot.addr(), slot.id());
    let reply = env.lookup_rev_snat(&wire);
    let flags = reply.map_or(0, Slot::flags);
    let others = flags & (MAPPING_HOST | MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER) != 0;
    if others || env.is_local(&pkt.tuple.src) {
        slot.set_place(env.place());
        return Settled::Stays;
    }
    let seen = reply.map_or(0, Slot::tcp_seen);
    if begins_untranslated(env, pkt, slot, seen, begins) {
        evict::end(env, &pkt.tuple, &wire, ENDED_UNTRANSLATED);
        return Settled::Ended;
    }
    let syn = matches!(begins, Begins::Connection | Begins::Again);
    let elsewhere = slot.place().is_elsewhere(env.place());
    let there = env.is_local(&slot.addr());
    if there && !elsewhere && !syn {
        slot.set_place(env.place());
        return Settled::Stays;
    }
    let has_source = choose_source(env, pkt);
    let lives = pkt.tuple.proto == proto::TCP && !(syn && is_over(slot, seen));
    let stays = there && (lives || !has_source || pkt.new.addr.is_same(&slot.addr()));
    if !stays {
        if lives || !has_source {
            return Settled::Rests;
        }
        evict::end(env, &pkt.tuple, &wire, ENDED_MOVED);
        return Settled::Ended;
    }
    // If only an address is missing, it may appear a moment later: check again until then.
    if lives || has_source {
        slot.set_place(env.place());
    }
    Settled::Stays
}

/// Reports whether a packet begins a connection that is not translated, with the ports of one that
/// is over: because of the current policy, or because it was opened from outside. A retransmitted
/// SYN takes the path of the first one. `reply`: `tcp_seen` of the reply half.
#[inline(never)]
fn begins_untranslated<E: Env>(
    env: &E,
    pkt: &Packet,
    slot: Slot,
    reply: u32,
    begins: Begins,
) -> bool {
    let state = tcp_state(slot.tcp_seen(), reply);
    match begins {
        Begins::Nothing => false,
        Begins::Again if state == TcpState::SynSent => false,
        Begins::Connection | Begins::Again => {
            is_over(slot, reply) && policy::action(env, &pkt.tuple.dst) != Action::Masquerade
        }
        // The pod has closed its own connection, and does not reply on that one.
        Begins::Answer => {
            matches!(state, TcpState::TimeWait | TcpState::Closed)
                && (policy::action(env, &pkt.tuple.dst) == Action::Bypass
                    || inbound::is_recorded(env, &pkt.tuple))
        }
    }
}

/// Reports whether a connection has closed or was never established.
#[inline(always)]
fn is_over(slot: Slot, reply: u32) -> bool {
    match tcp_state(slot.tcp_seen(), reply) {
        TcpState::SynSent | TcpState::Unreplied | TcpState::TimeWait | TcpState::Closed => true,
        TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => false,
    }
}
