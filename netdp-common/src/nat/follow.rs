//! Packets of known mappings: what they record, what they become.

use crate::conntrack::{self, ACK, FIN, RST, SEEN_DATA, SYN};
use crate::packet::{L4, Packet, TcpSegment};
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::Tuple;
use crate::verdict::Verdict;

/// A packet of a known mapping, from the pod's side.
#[inline(always)]
pub(super) fn continue_egress<T: Tables>(tables: &T, pkt: &mut Packet, slot: Slot) -> Verdict {
    let now = tables.now();
    if let L4::Tcp(TcpSegment { flags, .. }) = pkt.l4
        && flags & (SYN | ACK | RST | FIN) == SYN
    {
        reopen(tables, pkt, slot, now);
    }
    slot.record(pkt, now);
    tables.count(|c| &mut c.egress_masqueraded);
    rewrite(pkt, slot)
}

/// RFC 9293 3.6.1: a new SYN may reopen a connection in TIME-WAIT.
#[inline(never)]
fn reopen<T: Tables>(tables: &T, pkt: &Packet, slot: Slot, now: u32) -> bool {
    let wire = pkt.tuple.reply_to(slot.addr(), slot.id());
    match tables.rev_snat(&wire) {
        Some(reply) if conntrack::is_closing(slot.tcp_seen(), reply.tcp_seen()) => {
            slot.reopen(now);
            reply.reopen(now);
            true
        }
        _ => false,
    }
}

/// A packet that comes back for a known wire tuple.
#[inline(always)]
pub(super) fn continue_ingress<T: Tables>(tables: &T, pkt: &mut Packet, slot: Slot) -> Verdict {
    let now = tables.now();
    if slot.is_others() {
        slot.record(pkt, now);
        tables.count(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    if let L4::Tcp(segment) = pkt.l4
        && segment.flags & RST != 0
        && !rst_is_credible(tables, pkt, slot)
    {
        slot.record_untrusted();
    } else {
        slot.record(pkt, now);
    }
    tables.count(|c| &mut c.ingress_translated);
    rewrite(pkt, slot)
}

/// Whether the pod will believe this RST: only then may it shorten the mapping
/// (RFC 7857 2.2; RFC 5961 3.2: the exact next sequence number, or, before the
/// pod has acknowledged anything, an acknowledgement).
#[inline(never)]
fn rst_is_credible<T: Tables>(tables: &T, pkt: &Packet, slot: Slot) -> bool {
    let L4::Tcp(segment) = pkt.l4 else {
        return false;
    };
    let wire = &pkt.tuple;
    let original = Tuple::new(slot.addr(), wire.src, slot.id(), wire.src_id, wire.proto);
    match tables.snat(&original) {
        Some(half) if half.tcp_seen() & SEEN_DATA != 0 => half.tcp_ack() == segment.seq,
        Some(_) => segment.flags & ACK != 0,
        None => false,
    }
}

#[inline(always)]
pub(super) fn rewrite(pkt: &mut Packet, slot: Slot) -> Verdict {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
    Verdict::Rewrite
}
