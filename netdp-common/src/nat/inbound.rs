//! Flows that keep the pod's address although their peer is masqueraded: inbound flows, and flows
//! that an earlier policy bypassed.
//!
//! Unanswered flows are kept in a map with LRU eviction ([`Tables::asked`]). Answered flows are
//! kept in a map without eviction ([`Tables::live`]), of which no pod or peer takes more than its
//! share. A closed flow moves back to the former.

use super::origin::is_forged;
use crate::abi::{Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, LIVE_ORIGIN_SHIFT, Live};
use crate::conntrack::{
    ACK, CLOSED_SECONDS, FIN, INBOUND_SECONDS, RST, SEEN_DATA, SYN, age, asked_seconds,
    fin_is_plausible, live_seconds, rst_is_acceptable, ticks32,
};
use crate::packet::{L4, Packet};
use crate::share::{self, Key, Role, ShareSlot};
use crate::tables::Tables;
use crate::tuple::Tuple;

const CLOSED_TICKS: u32 = ticks32(CLOSED_SECONDS);
/// [`Inbound::limit`]: the timeout of [`asked_seconds`] applies.
const BY_PROTOCOL: u32 = u32::MAX;

/// The relation of a pod's packet to such a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Continued {
    /// It continues no such flow.
    No,
    /// It continues such a flow.
    Yes,
    /// It has the tuple of such a flow, but does not come from the pod.
    Forged,
}

/// Checks whether a pod's packet continues the flow of `tuple`, and if so records the packet.
#[inline(never)]
pub(super) fn continued<T: Tables>(tables: &T, pkt: &Packet, tuple: &Tuple) -> Continued {
    let now = tables.now();
    if let Some(slot) = tables.live(tuple) {
        let live = slot.get();
        if is_fresh(tuple.proto, &live, now) {
            let ifindex = tables.ingress_ifindex();
            if live.seen >> LIVE_ORIGIN_SHIFT != ifindex & 0xffff {
                if is_forged(tables, &pkt.tuple.src, pkt.family) {
                    return Continued::Forged;
                }
                slot.set_origin(ifindex);
            }
            slot.refresh(now);
            if let L4::Tcp(segment) = pkt.l4 {
                if segment.flags & ACK != 0 {
                    slot.set_ack(segment.ack);
                }
                let closed = segment.flags & FIN != 0 && slot.set_fin(LIVE_FIN_OUT)
                    || segment.flags & RST != 0 && segment.bad_checksum == 0;
                if closed {
                    end(tables, tuple, CLOSED_TICKS);
                }
            }
            return Continued::Yes;
        }
        end(tables, tuple, 0);
    }
    let Some(slot) = tables.asked(tuple) else {
        return Continued::No;
    };
    let asked = slot.get();
    if !is_asked_still(tuple.proto, asked, now) {
        return Continued::No;
    }
    if is_forged(tables, &pkt.tuple.src, pkt.family) {
        return Continued::Forged;
    }
    slot.refresh(now);
    if asked.limit != CLOSED_TICKS
        && is_answer(&pkt.l4)
        && !promote(tables, pkt, tuple, now, 0)
        && matches!(pkt.l4, L4::Tcp(_))
    {
        // Over its share the flow gets the same timeout, but may be evicted.
        slot.set_limit(ticks32(INBOUND_SECONDS));
    }
    Continued::Yes
}

/// Reports whether a flow with this `tuple` is known. Records nothing.
#[inline(never)]
pub(super) fn is_known<T: Tables>(tables: &T, tuple: &Tuple) -> bool {
    let now = tables.now();
    let live = tables.live(tuple);
    if live.is_some_and(|slot| is_fresh(tuple.proto, &slot.get(), now)) {
        return true;
    }
    (tables.asked(tuple)).is_some_and(|slot| is_asked_still(tuple.proto, slot.get(), now))
}

/// Records a packet from outside to an address behind the node that may begin such a flow
/// (`begins`) or continues one.
#[inline(never)]
pub(super) fn came<T: Tables>(tables: &T, pkt: &Packet, begins: bool) -> bool {
    let now = tables.now();
    let tuple = pkt.tuple.reversed();
    if let Some(slot) = tables.live(&tuple) {
        let live = slot.get();
        if is_fresh(tuple.proto, &live, now) {
            slot.refresh(now);
            if let L4::Tcp(segment) = pkt.l4 {
                // A segment that the pod would not accept changes nothing.
                let fin =
                    segment.flags & FIN != 0 && fin_is_plausible(SEEN_DATA, live.ack, segment);
                let closed = fin && slot.set_fin(LIVE_FIN_IN)
                    || segment.flags & RST != 0 && rst_is_acceptable(SEEN_DATA, live.ack, segment);
                if closed {
                    end(tables, &tuple, CLOSED_TICKS);
                }
            }
            return true;
        }
        end(tables, &tuple, 0);
    }
    if !begins {
        return false;
    }
    let syn = matches!(pkt.l4, L4::Tcp(segment) if segment.flags & (SYN | ACK) == SYN);
    match tables.asked(&tuple) {
        Some(slot) if !syn && is_asked_still(tuple.proto, slot.get(), now) => slot.refresh(now),
        _ => tables.insert_asked(&tuple, BY_PROTOCOL),
    }
    true
}

/// Records that the pod's packet continues a flow that was bypassed. `limit`: silence in ticks
/// after which the flow ends, or 0 for the usual timeout.
#[inline(always)]
pub(super) fn keep<T: Tables>(tables: &T, pkt: &Packet, limit: u32) {
    if !promote(tables, pkt, &pkt.tuple, tables.now(), limit) {
        tables.insert_asked(&pkt.tuple, limit);
    }
}

/// Removes a flow, because its pod begins another with the same tuple.
#[inline(always)]
pub(super) fn forget<T: Tables>(tables: &T, tuple: &Tuple) {
    if tables.live(tuple).is_some() {
        end(tables, tuple, 0);
    }
    tables.remove_asked(tuple);
}

/// Reports whether this kind of packet is sent by a pod only if it takes part in the flow.
#[inline(always)]
const fn is_answer(l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => segment.flags & RST == 0,
        L4::Udp | L4::QueryReply | L4::Address => true,
        L4::Query | L4::Error | L4::LaterFragment | L4::Discovery | L4::Untranslatable(_) => false,
    }
}

/// Moves a flow to the map without eviction, unless its pod or its peer has used up its share of
/// that map.
#[inline(never)]
fn promote<T: Tables>(tables: &T, pkt: &Packet, tuple: &Tuple, now: u32, limit: u32) -> bool {
    let Some([pod, peer, total]) = shares(tables, tuple) else {
        return false;
    };
    let most = share::limit(tables.limits().inbound_capacity, total.inbound());
    if pod.inbound() >= most || peer.inbound() >= most {
        return false;
    }
    let ack = match pkt.l4 {
        L4::Tcp(segment) => segment.ack,
        _ => 0,
    };
    let live = Live {
        last_seen: now,
        limit,
        seen: tables.ingress_ifindex() << LIVE_ORIGIN_SHIFT,
        ack,
    };
    if !tables.insert_live(tuple, &live) {
        return false;
    }
    pod.add_inbound(1);
    peer.add_inbound(1);
    total.add_inbound(1);
    tables.remove_asked(tuple);
    true
}

/// Ends a live flow; its packets that are still in flight keep the pod's address for `linger`
/// ticks.
#[inline(never)]
fn end<T: Tables>(tables: &T, tuple: &Tuple, linger: u32) -> bool {
    if linger > 0 {
        tables.insert_asked(tuple, linger);
    }
    let removed = tables.remove_live(tuple);
    if removed && let Some([pod, peer, total]) = shares(tables, tuple) {
        pod.add_inbound(u64::MAX);
        peer.add_inbound(u64::MAX);
        total.add_inbound(u64::MAX);
    }
    removed
}

/// Returns the shares against which a flow counts: its pod's, its peer's, and the total.
#[inline(always)]
fn shares<T: Tables>(tables: &T, tuple: &Tuple) -> Option<[ShareSlot; 3]> {
    let secret = tables.secret();
    let pod = tables.share(Key::of(secret, &tuple.src, Role::Pod).bucket())?;
    let peer = tables.share(Key::of(secret, &tuple.dst, Role::Peer).bucket())?;
    Some([pod, peer, tables.share(share::TOTAL)?])
}

/// Reports whether an unanswered flow is within its timeout.
#[inline(always)]
const fn is_asked_still(protocol: u32, asked: Inbound, now: u32) -> bool {
    age(now, asked.last_seen) < asked_ticks(protocol, asked)
}

/// Returns the silence in ticks that ends an unanswered flow. Records without a limit continue a
/// flow that was bypassed, or come from agents that did not distinguish answered flows.
#[inline(always)]
const fn asked_ticks(protocol: u32, asked: Inbound) -> u32 {
    match asked.limit {
        0 => ticks32(INBOUND_SECONDS),
        BY_PROTOCOL => ticks32(asked_seconds(protocol)),
        limit => limit,
    }
}

/// Reports whether a live flow is within its timeout.
#[inline(always)]
#[must_use]
pub const fn is_fresh(protocol: u32, live: &Live, now: u32) -> bool {
    let half_closed = live.seen & (LIVE_FIN_OUT | LIVE_FIN_IN) != 0;
    let limit = match live.limit {
        0 => ticks32(live_seconds(protocol, half_closed)),
        limit => limit,
    };
    age(now, live.last_seen) < limit
}
