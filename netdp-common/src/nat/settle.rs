//! Mappings whose packets leave by another uplink than before, or whose address the node may
//! have lost.

use super::origin::{is_forged, same};
use super::{choose_source, evict, inbound};
use crate::abi::{Action, MAPPING_HANDED, MAPPING_HOST, MAPPING_YIELDED};
use crate::conntrack::{FIN, RST, SYN, TcpState, tcp_state};
use crate::packet::{L4, Packet};
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::proto;

/// What becomes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Settled {
    /// It goes on.
    Stays,
    /// The node has not got its address at the moment: nothing leaves with it.
    Rests,
    /// It has ended: the flow gets another one.
    Ended,
}

/// What a packet may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Begins {
    /// Nothing by itself.
    Nothing,
    /// A connection.
    Connection,
    /// The same, or it is the mapping's first SYN once more.
    Again,
    /// It answers to a connection from outside.
    Answer,
}

impl Begins {
    /// What a pod's packet of the mapping in `slot` may begin.
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

/// Decides whether a mapping goes on where its packet leaves (docs/adr/0039). One that leaves by
/// another uplink, where the flow would get another address, ends; so does one whose address is
/// gone, where there is another. A TCP connection lives by its address: it keeps it, and rests
/// while the node has not got it. It ends only with a SYN that begins it anew, and where that
/// begins one that is not translated. Of `pkt` tuple and family are read, and the address of a
/// new mapping is put there.
#[inline(never)]
pub(super) fn settle<T: Tables>(
    tables: &T,
    pkt: &mut Packet,
    slot: Slot,
    begins: Begins,
) -> Settled {
    // What somebody else sends in the pod's name changes nothing; it is dropped later.
    if is_forged(tables, &pkt.tuple.src, pkt.family) {
        return Settled::Stays;
    }
    let wire = pkt.tuple.reply_to(slot.addr(), slot.id());
    let reply = tables.rev_snat(&wire);
    let flags = reply.map_or(0, Slot::flags);
    let others = flags & (MAPPING_HOST | MAPPING_HANDED | MAPPING_YIELDED) != 0;
    if others || tables.is_local(&pkt.tuple.src) {
        slot.set_place(tables.place());
        return Settled::Stays;
    }
    let seen = reply.map_or(0, Slot::tcp_seen);
    if begins_untranslated(tables, pkt, slot, seen, begins) {
        evict::end(tables, &pkt.tuple, &wire);
        return Settled::Ended;
    }
    let syn = matches!(begins, Begins::Connection | Begins::Again);
    let elsewhere = slot.place().is_elsewhere(tables.place());
    let there = tables.is_local(&slot.addr());
    if there && !elsewhere && !syn {
        slot.set_place(tables.place());
        return Settled::Stays;
    }
    let has_source = choose_source(tables, pkt);
    let lives = pkt.tuple.proto == proto::TCP && !(syn && is_over(slot, seen));
    let stays = there && (lives || !has_source || same(&pkt.new.addr, &slot.addr()));
    if !stays {
        if lives || !has_source {
            return Settled::Rests;
        }
        evict::end(tables, &pkt.tuple, &wire);
        return Settled::Ended;
    }
    // Where only an address is missing it may come a moment later: asked again until then.
    if lives || has_source {
        slot.set_place(tables.place());
    }
    Settled::Stays
}

/// Whether a packet begins a connection that is not translated, by the ports of one that is over:
/// the policy has it so by now, or it was begun from outside. A SYN that is sent again goes where
/// the first one went. `reply`: what the reply half has seen.
#[inline(never)]
fn begins_untranslated<T: Tables>(
    tables: &T,
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
            is_over(slot, reply) && tables.action(&pkt.tuple.dst) != Action::Masquerade
        }
        // The pod has closed its own connection, and does not answer on that.
        Begins::Answer => {
            matches!(state, TcpState::TimeWait | TcpState::Closed)
                && (tables.action(&pkt.tuple.dst) == Action::Bypass
                    || inbound::is_known(tables, &pkt.tuple))
        }
    }
}

/// Whether a connection has closed or never came up.
#[inline(always)]
fn is_over(slot: Slot, reply: u32) -> bool {
    match tcp_state(slot.tcp_seen(), reply) {
        TcpState::SynSent | TcpState::Unreplied | TcpState::TimeWait | TcpState::Closed => true,
        TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => false,
    }
}
