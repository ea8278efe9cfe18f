//! Packets of known mappings: what they record, what they become.

use crate::conntrack::{self, ACK, FIN, RST, SEEN_DATA, SYN};
use crate::packet::{L4, Packet, TcpSegment};
use crate::slot::Slot;
use crate::tables::Tables;
use crate::tuple::Tuple;
use crate::verdict::Verdict;

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
}

/// A packet of a known mapping, from the pod's side.
#[inline(always)]
pub(super) fn continue_egress<T: Tables>(tables: &T, tuple: &Tuple, l4: &L4, slot: Slot) -> Known {
    let now = tables.now();
    if let L4::Tcp(TcpSegment { flags, .. }) = *l4
        && flags & (SYN | ACK | RST | FIN) == SYN
    {
        reopen(tables, tuple, slot, now);
    }
    slot.record(l4, now);
    tables.count(|c| &mut c.egress_masqueraded);
    Known::Rewrite(slot)
}

/// RFC 9293 3.6.1: a new SYN may reopen a connection in TIME-WAIT.
#[inline(never)]
fn reopen<T: Tables>(tables: &T, tuple: &Tuple, slot: Slot, now: u32) -> bool {
    let wire = tuple.reply_to(slot.addr(), slot.id());
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
pub(super) fn continue_ingress<T: Tables>(tables: &T, wire: &Tuple, l4: &L4, slot: Slot) -> Known {
    let now = tables.now();
    if slot.is_others() {
        slot.record(l4, now);
        tables.count(|c| &mut c.ingress_passed);
        return Known::Pass;
    }
    if let L4::Tcp(TcpSegment { flags, seq, .. }) = *l4
        && flags & RST != 0
        && !rst_is_credible(tables, wire, flags, seq, slot)
    {
        slot.record_untrusted();
    } else {
        slot.record(l4, now);
    }
    tables.count(|c| &mut c.ingress_translated);
    Known::Rewrite(slot)
}

/// Whether the pod will believe this RST: only then may it shorten the mapping
/// (RFC 7857 2.2; RFC 5961 3.2: the exact next sequence number, or, before the
/// pod has acknowledged anything, an acknowledgement).
#[inline(never)]
fn rst_is_credible<T: Tables>(tables: &T, wire: &Tuple, flags: u8, seq: u32, slot: Slot) -> bool {
    let original = Tuple::new(slot.addr(), wire.src, slot.id(), wire.src_id, wire.proto);
    match tables.snat(&original) {
        Some(half) if half.tcp_seen() & SEEN_DATA != 0 => half.tcp_ack() == seq,
        Some(_) => flags & ACK != 0,
        None => false,
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
        Known::Bypassed | Known::Pass => Verdict::Pass,
    }
}

/// Puts the mapping's end into `pkt.new`.
#[inline(always)]
pub fn fill_new(pkt: &mut Packet, slot: Slot) {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
}
