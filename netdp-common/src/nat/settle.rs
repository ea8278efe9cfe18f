//! Mappings whose packets leave by another uplink than before, or whose address the node may
//! have lost.

use super::origin::{is_forged, same};
use super::{evict, source_for};
use crate::abi::{MAPPING_HANDED, MAPPING_HOST, MAPPING_YIELDED};
use crate::addr::Family;
use crate::conntrack::{ACK, FIN, RST, SYN, TcpState, tcp_state};
use crate::packet::L4;
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::{Tuple, proto};

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

/// Whether a packet of a known flow may begin it anew.
#[inline(always)]
pub(super) const fn begins_anew(l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
        _ => false,
    }
}

/// Decides whether a mapping goes on where its packet leaves (docs/adr/0040). One that leaves by
/// another uplink, where the flow would get another address, ends; so does one whose address is
/// gone, where there is another. A TCP connection lives by its address: it keeps it, and rests
/// while the node has not got it. It ends only with a SYN that begins it anew (`syn`).
#[inline(never)]
pub(super) fn settle<T: Tables>(
    tables: &T,
    tuple: &Tuple,
    family: Family,
    slot: Slot,
    syn: bool,
) -> Settled {
    // What somebody else sends in the pod's name changes nothing; it is dropped later.
    if is_forged(tables, &tuple.src, family) {
        return Settled::Stays;
    }
    let wire = tuple.reply_to(slot.addr(), slot.id());
    let reply = tables.rev_snat(&wire);
    let flags = reply.map_or(0, Slot::flags);
    let elsewhere = slot.place().is_elsewhere(tables.place());
    let there = tables.is_local(&slot.addr());
    let stays = flags & (MAPPING_HOST | MAPPING_HANDED | MAPPING_YIELDED) != 0
        || there && !elsewhere && !syn
        || tables.is_local(&tuple.src);
    if stays {
        slot.set_place(tables.place());
        return Settled::Stays;
    }
    let source = source_for(tables, tuple, family);
    let lives =
        tuple.proto == proto::TCP && !(syn && is_over(slot, reply.map_or(0, Slot::tcp_seen)));
    match source {
        Some(source) if there && same(&source, &slot.addr()) => {}
        Some(_) if !lives => {
            evict::end(tables, tuple, &wire);
            return Settled::Ended;
        }
        _ if !there => return Settled::Rests,
        _ => {}
    }
    slot.set_place(tables.place());
    Settled::Stays
}

/// Whether a connection has closed or never came up.
#[inline(always)]
fn is_over(slot: Slot, reply: u32) -> bool {
    match tcp_state(slot.tcp_seen(), reply) {
        TcpState::SynSent | TcpState::Unreplied | TcpState::TimeWait | TcpState::Closed => true,
        TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => false,
    }
}
