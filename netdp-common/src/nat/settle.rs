//! Mappings whose packets leave by another uplink than before, or whose address the node may
//! have lost.

use super::origin::{is_forged, same};
use super::{choose_source, evict};
use crate::abi::{MAPPING_HANDED, MAPPING_HOST, MAPPING_YIELDED};
use crate::conntrack::{TcpState, tcp_state};
use crate::packet::Packet;
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

/// Decides whether a mapping goes on where its packet leaves (docs/adr/0039). One that leaves by
/// another uplink, where the flow would get another address, ends; so does one whose address is
/// gone, where there is another. A TCP connection lives by its address: it keeps it, and rests
/// while the node has not got it. It ends only with a SYN that begins it anew (`syn`). Of `pkt`
/// tuple and family are read, and the address of a new mapping is put there.
#[inline(never)]
pub(super) fn settle<T: Tables>(tables: &T, pkt: &mut Packet, slot: Slot, syn: bool) -> Settled {
    // What somebody else sends in the pod's name changes nothing; it is dropped later.
    if is_forged(tables, &pkt.tuple.src, pkt.family) {
        return Settled::Stays;
    }
    let wire = pkt.tuple.reply_to(slot.addr(), slot.id());
    let reply = tables.rev_snat(&wire);
    let flags = reply.map_or(0, Slot::flags);
    let elsewhere = slot.place().is_elsewhere(tables.place());
    let there = tables.is_local(&slot.addr());
    let stays = flags & (MAPPING_HOST | MAPPING_HANDED | MAPPING_YIELDED) != 0
        || there && !elsewhere && !syn
        || tables.is_local(&pkt.tuple.src);
    if stays {
        slot.set_place(tables.place());
        return Settled::Stays;
    }
    let has_source = choose_source(tables, pkt);
    let lives =
        pkt.tuple.proto == proto::TCP && !(syn && is_over(slot, reply.map_or(0, Slot::tcp_seen)));
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

/// Whether a connection has closed or never came up.
#[inline(always)]
fn is_over(slot: Slot, reply: u32) -> bool {
    match tcp_state(slot.tcp_seen(), reply) {
        TcpState::SynSent | TcpState::Unreplied | TcpState::TimeWait | TcpState::Closed => true,
        TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => false,
    }
}
